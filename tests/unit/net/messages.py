"""Any messages at all: whatever the types of the protocol let a member say."""

from typing import Any, get_args

import msgspec.inspect as kind
from hypothesis import strategies as st

from atoll.net import wire

I64, U64 = -(2**63), 2**64 - 1  # what msgpack has numbers for


def messages() -> st.SearchStrategy[wire.Message]:
    """Return a strategy for messages of all types, each within the bounds of its fields."""
    return st.one_of([values(kind.type_info(message)) for message in get_args(wire.Message)])


def values(of: kind.Type) -> st.SearchStrategy[Any]:
    match of:
        case kind.NoneType():
            return st.none()
        case kind.BoolType():
            return st.booleans()
        case kind.IntType(ge=ge, lt=lt, le=le):
            assert of.gt is of.multiple_of is None
            most = U64 if lt is le is None else min(U64 if lt is None else lt - 1, le or U64)
            return st.integers(I64 if ge is None else ge, most)
        case kind.FloatType(ge=ge, le=le):
            assert of.gt is of.lt is of.multiple_of is None
            return st.floats(min_value=ge, max_value=le)
        case kind.StrType(pattern=None, min_length=least, max_length=most):
            return st.text(min_size=least or 0, max_size=min(most or 9, 9))
        case kind.StrType(pattern=pattern):
            return st.from_regex(pattern)
        case kind.BytesType(min_length=least, max_length=most):
            return st.binary(min_size=least or 0, max_size=min(most or 40, 40))
        case kind.VarTupleType(item_type=item, min_length=least, max_length=most):
            items = st.lists(values(item), min_size=least or 0, max_size=min(most or 3, 3))
            return items.map(tuple)
        case kind.UnionType(types=types):
            return st.one_of(*map(values, types))
        case kind.StructType(cls=struct, fields=fields):
            return st.builds(struct, **{field.name: values(field.type) for field in fields})
    raise AssertionError(f"no values for {of}")
