"""Between TOML tables and structs: errors that name the key, and back with every key explained.

    table --convert--> struct --template--> TOML whose comments are the structs' own explanations

A key's explanation stands beside its type, as `Annotated[int, about("...")]`; that of a table is
the first line of its struct's docstring.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, inspect, structs

from atoll.errors import ConfigError

LINE_WIDTH = 100

S = TypeVar("S", bound=Struct)


def about(explanation: str) -> Meta:
    """Return the explanation of a key, for `Annotated`."""
    return Meta(description=explanation)


def read(path: Path, *, hint: str) -> dict[str, Any]:
    """Return the table that is in a TOML file; `hint` says what to do if there is no such file.

    Raises:
        ConfigError: there is none, it cannot be read, or it is no TOML. For `errors_of` to name.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such file", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML: the message says in which line
        raise ConfigError(f"not a TOML file: {error}") from error


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Put the file's name in front of every ConfigError about what is in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error


def convert(table: object, struct: type[S]) -> S:
    """Return the struct that a table, from a file or from another machine, stands for.

    Raises:
        ConfigError: a key is unknown or missing, or has a value that is not allowed.
    """
    _check_table(table, struct, key="")
    return msgspec.convert(table, struct)


def _check_table(table: object, struct: type[Struct], *, key: str) -> None:
    """Raise ConfigError for the first key of `table` that `struct` has no place for."""
    if not isinstance(table, dict):
        raise ConfigError(f"{key or 'all of it'}: {table!r:.60} is not a table")
    prefix = f"{key}." if key else ""
    fields = {field.name: field for field in structs.fields(struct)}
    for name in table:
        if name not in fields:
            raise ConfigError(f"{prefix}{name}: unknown key", hint=_did_you_mean(name, fields))
    for name, field in fields.items():
        if name in table:
            _check_value(table[name], field, key=prefix + name)
        elif field.required:
            raise ConfigError(f"{prefix}{name}: missing", hint=_comment(field))


def _check_value(value: object, field: structs.FieldInfo, *, key: str) -> None:
    kind = _kind(field)
    if isinstance(kind, inspect.VarTupleType):
        if not isinstance(value, list) or not value:
            hint = f"write [[{key}]] above each"
            raise ConfigError(f"{key}: not a list of at least one table", hint=hint)
        for index, table in enumerate(value):
            _check_table(table, _struct_of(kind), key=f"{key}[{index}]")
    elif isinstance(kind, inspect.StructType):
        _check_table(value, kind.cls, key=key)
    elif isinstance(kind, inspect.UnionType):  # a table that may be left out
        if value is not None:
            _check_table(value, _struct_of(kind), key=key)
    elif not _is_allowed(value, field):
        problem = f"{key}: {value!r:.60} is not {_allowed(field)}"
        raise ConfigError(problem, hint=_explanation(field))


def _is_allowed(value: object, field: structs.FieldInfo) -> bool:
    if isinstance(value, float) and not isfinite(value):  # JSON cannot say it, nor training use it
        return False
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError:
        return False
    return True


def _allowed(field: structs.FieldInfo) -> str:
    """Return what a value has to be, for the end of a sentence."""
    match kind := _kind(field):
        case inspect.LiteralType():
            return f"one of {', '.join(_choices(field))}"
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.StrType(pattern=str(pattern)):
            return f"a string that matches {pattern}"
        case inspect.StrType():
            if kind.max_length is not None:
                return f"a string of at most {kind.max_length} characters"
            return "a string that is not empty" if kind.min_length else "a string"
        case _:
            return "true or false"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    bounds = {"above": kind.gt, "at least": kind.ge, "below": kind.lt, "at most": kind.le}
    said = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    return " " + " and ".join(said) if said else ""


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


class Key(NamedTuple):
    """A key of a table, for those who read about it; `default` is as TOML has it, or empty."""

    table: str
    name: str
    default: str
    allowed: str
    explanation: str


def keys(struct: type[Struct], *, table: str = "") -> Iterator[Key]:
    """Yield every key, table by table, as they stand in a file."""
    fields = structs.fields(struct)
    for field in fields:
        if not _is_table(_kind(field)):
            default = "" if field.default is msgspec.NODEFAULT else _toml(field.default)
            yield Key(table, field.name, default, _allowed(field), _explanation(field))
    for field in fields:
        if _is_table(_kind(field)):
            name = f"{table}.{field.name}".lstrip(".")
            yield from keys(_struct_of(_kind(field)), table=name)


def template(config: Struct) -> str:
    """Return TOML that loads as `config`, with an explanation of every key."""
    return "\n".join((f"# {_summary(type(config))}", "", *_lines(config, table=""))) + "\n"


def _lines(config: Struct, *, table: str) -> Iterator[str]:
    tables = []
    for field in structs.fields(config):
        value = getattr(config, field.name)
        if _is_table(_kind(field)):
            tables.append((f"{table}.{field.name}".lstrip("."), field, value))
        else:
            yield from _key_lines(f"{field.name} = {_toml(value)}", _comment(field))
    for name, field, value in tables:
        struct = _struct_of(_kind(field))
        if value is None:
            off = _lines(struct(), table=name)
            yield from ("", f"# Off: {_summary(struct)}", f"# [{name}]", *(f"# {x}" for x in off))
        elif isinstance(value, Struct):
            yield from ("", f"# {_summary(struct)}", f"[{name}]", *_lines(value, table=name))
        else:
            for item in value:
                yield from ("", f"# {_summary(struct)}", f"[[{name}]]", *_lines(item, table=name))


def _key_lines(assignment: str, comment: str) -> tuple[str, ...]:
    line = f"{assignment:<34}  # {comment}"
    return (line,) if len(line) <= LINE_WIDTH else (f"# {comment}", assignment)


def _toml(value: object) -> str:
    if isinstance(value, float):
        return repr(float(value))
    # A string of JSON is one of TOML, but for the one character that only TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(field: structs.FieldInfo) -> str:
    choices = _choices(field)
    return _explanation(field) + (f" ({' | '.join(choices)})" if len(choices) > 1 else "")


def _explanation(field: structs.FieldInfo) -> str:
    """Return what `about` says of a key, or what a table's own struct says."""
    if _is_table(kind := _kind(field)):
        return _summary(_struct_of(kind))
    info = inspect.type_info(field.type)
    schema = info.extra_json_schema if isinstance(info, inspect.Metadata) else None
    return str((schema or {}).get("description", ""))


def _choices(field: structs.FieldInfo) -> tuple[str, ...]:
    """Return the values that a key can have, in the order of its type, if they can be listed."""
    bare = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
    return get_args(bare) if get_origin(bare) is Literal else ()


def _is_table(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.StructType | inspect.VarTupleType | inspect.UnionType)


def _summary(struct: type[Struct]) -> str:
    return (struct.__doc__ or "").partition("\n")[0]


def _kind(field: structs.FieldInfo) -> inspect.Type:
    info = inspect.type_info(field.type)
    return info.type if isinstance(info, inspect.Metadata) else info


def _struct_of(kind: inspect.Type) -> type[Struct]:
    """Return the struct of a table, of each table of a list, or of a table that may be left out."""
    match kind:
        case inspect.StructType():
            return kind.cls
        case inspect.VarTupleType():
            return _struct_of(kind.item_type)
        case inspect.UnionType():
            return _struct_of(next(k for k in kind.types if isinstance(k, inspect.StructType)))
        case _:
            raise AssertionError(f"not a table: {kind}")
