"""Bytes from another machine, any bytes, are a message or a ProtocolError."""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.net.messages import messages

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


@st.composite
def damaged(draw, frames):
    """Return a frame, or what is left of it when bytes are flipped, cut out, put in or repeated."""
    frame = bytearray(draw(frames))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(frame)))
        stop = draw(st.integers(start, min(start + 12, len(frame))))
        match draw(st.sampled_from(["flip", "cut out", "put in", "repeat", "cut off"])):
            case "flip" if start < len(frame):
                frame[start] ^= draw(st.integers(1, 255))
            case "cut out":
                del frame[start:stop]
            case "put in":
                frame[start:start] = draw(st.binary(max_size=12))
            case "repeat":
                frame[stop:stop] = frame[start:stop]
            case "cut off":
                del frame[start:]
    return bytes(frame)


@settings(deadline=None)
@given(messages())
def test_every_message_comes_back_as_it_was(message):
    frame = wire.encode(message)
    assert wire.encode(wire.decode(frame)) == frame
    assert type(wire.decode(frame)) is type(message)


@settings(deadline=None, max_examples=100)
@given(damaged(messages().map(wire.encode) | st.sampled_from(FRAMES)))
def test_a_damaged_message_is_a_protocol_error_or_another_message_that_is_sound(frame):
    with suppress(ProtocolError):
        other = wire.decode(frame)
        again = wire.decode(wire.encode(other))  # which holds each field to its bounds
        assert wire.encode(again) == wire.encode(other)


@settings(deadline=None)
@given(messages().map(wire.encode), st.data())
def test_a_message_that_was_cut_or_has_more_behind_it_is_a_protocol_error(frame, data):
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    for wrong in (cut, frame + data.draw(st.binary(min_size=1, max_size=12))):
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
