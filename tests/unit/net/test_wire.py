"""Bytes from another machine, any bytes, are a message or a ProtocolError."""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import ProtocolError
from atoll.ids import Digest
from atoll.net import wire

FRAMES = [path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("golden/wire/*.bin"))]
FETCH = wire.Fetch(digest=Digest("d1" * 32))


def test_there_are_examples():
    assert len(FRAMES) > 25


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(frame):
    with suppress(ProtocolError):
        wire.decode(frame)


@settings(deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_a_damaged_message_is_a_protocol_error_or_a_message(frame, data):
    damaged = bytearray(frame)
    damaged[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ProtocolError):
        wire.decode(damaged)


@settings(deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_a_message_that_was_cut_or_has_more_behind_it_is_a_protocol_error(frame, data):
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    for wrong in (cut, frame + b"\x00"):
        with pytest.raises(ProtocolError):
            wire.decode(wrong)


def with_field(message: wire.Message, field: bytes) -> bytes:
    """Return the message with one more msgpack field."""
    frame = wire.encode(message)
    assert 0x80 <= frame[0] < 0x8F, "a msgpack map of at most 14"
    return bytes([frame[0] + 1]) + frame[1:] + field


def test_a_newer_peer_may_send_a_field_we_do_not_know():
    assert wire.decode(with_field(FETCH, b"\xa3new\x01")) == FETCH


def test_a_field_nested_a_hundred_thousand_deep_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        wire.decode(with_field(FETCH, b"\xa3new" + b"\x91" * 100_000 + b"\x00"))


def test_an_oversize_message_is_refused_before_it_is_parsed():
    with pytest.raises(ProtocolError, match="4 at most"):
        wire.decode(b"\xc1\xc1\xc1\xc1\xc1", limit_bytes=4)
    with pytest.raises(ProtocolError, match="at most"):
        wire.decode(bytes(wire.MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("digest", "../../etc/passwd"),
        ("digest", "D1" * 32),
        ("digest", "d1" * 32 + "\n"),
        ("num_bytes", -1),
        ("num_bytes", 2**31 + 1),
        ("num_bytes", 1.5),
        ("num_bytes", "12"),
        ("t", "no such tag"),
    ],
)
def test_a_value_out_of_its_bounds_is_a_protocol_error(changed, value):
    fields = {"t": "blob", "digest": "d1" * 32, "num_bytes": 12}
    assert isinstance(wire.decode(msgspec.msgpack.encode(fields)), wire.Blob)
    with pytest.raises(ProtocolError):
        wire.decode(msgspec.msgpack.encode(fields | {changed: value}))
