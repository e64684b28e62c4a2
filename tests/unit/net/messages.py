"""Any messages at all: whatever the types of the protocol let a member say."""

from typing import Any, get_args

import msgspec.inspect as kind
from hypothesis import strategies as st

from atoll.net import wire

I64, U64 = -(2**63), 2**64 - 1  # what msgpack has numbers for
LONG = 40  # that a text is, at most


def messages(*types: type) -> st.SearchStrategy[wire.Message]:
    """Return a strategy for messages of these types, or all; each field is within its bounds."""
    return st.one_of([values(kind.type_info(one)) for one in types or get_args(wire.Message)])


def values(of: kind.Type) -> st.SearchStrategy[Any]:
    match of:
        case kind.StructType(cls=struct, fields=fields):
            return st.builds(struct, **{field.name: values(field.type) for field in fields})
        case kind.UnionType(types=types):
            return st.one_of(*map(values, types))
        case kind.VarTupleType(item_type=item, min_length=least, max_length=most):
            items = st.lists(values(item), min_size=least or 0, max_size=min(most or 3, 3))
            return items.map(tuple)
        case kind.StrType() | kind.BytesType():
            return texts(of)
        case kind.IntType() | kind.FloatType():
            return numbers(of)
        case kind.BoolType():
            return st.booleans()
        case kind.NoneType():
            return st.none()
    raise AssertionError(f"no values for {of}")


def texts(of: kind.StrType | kind.BytesType) -> st.SearchStrategy[str] | st.SearchStrategy[bytes]:
    if isinstance(of, kind.StrType) and of.pattern is not None:
        return st.from_regex(of.pattern)
    least, most = of.min_length or 0, min(of.max_length or LONG, LONG)
    draw = st.text if isinstance(of, kind.StrType) else st.binary
    return draw(min_size=least, max_size=most)


def numbers(of: kind.IntType | kind.FloatType) -> st.SearchStrategy[float]:
    assert of.gt is of.multiple_of is None
    if isinstance(of, kind.FloatType):
        assert of.lt is None
        return st.floats(min_value=of.ge, max_value=of.le)
    most = U64 if of.lt is None else of.lt - 1
    return st.integers(I64 if of.ge is None else of.ge, most if of.le is None else of.le)
