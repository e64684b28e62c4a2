import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import ProtocolError
from atoll.ids import Digest
from atoll.net import wire
from atoll.net.framing import Inbox, frame

LIMIT = 200_000
BLOB = wire.Blob(digest=Digest("d1" * 32), num_bytes=0)


def put(inbox: Inbox, arrived: bytes) -> bytes:
    """Fill what room there is, and return the rest."""
    room = inbox.room()
    num_bytes = min(len(room), len(arrived))
    room[:num_bytes] = arrived[:num_bytes]
    inbox.filled(num_bytes)
    return arrived[num_bytes:]


def with_payload(payload: bytes) -> bytes:
    return frame(wire.Blob(digest=BLOB.digest, num_bytes=len(payload))) + payload


def take(inbox: Inbox, taken: list[bytearray | wire.Message]) -> None:
    """Take out all that is whole; a Blob is followed by its payload."""
    while not inbox.payload_left:
        message = inbox.take_message()
        if message is None:
            return
        taken.append(message)
        if isinstance(message, wire.Blob):
            payload = bytearray(message.num_bytes)
            taken.append(payload)
            inbox.expect_payload(memoryview(payload))


SIZES = st.sampled_from([0, 1, 100, 65_000, 65_536, 150_000])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), SIZES), max_size=8),
    st.lists(st.integers(1, 100_000), min_size=1),
)
def test_however_the_bytes_arrive_the_same_comes_out(kinds, cuts):
    sent = [
        bytes([i]) * size if is_payload else wire.Authority(certificate=bytes([i]) * size)
        for i, (is_payload, size) in enumerate(kinds)
    ]
    stream = b"".join(
        with_payload(item) if isinstance(item, bytes) else frame(item) for item in sent
    )
    inbox, taken, at = Inbox(limit_bytes=LIMIT), [], 0
    for turn in range(len(stream) + 1):
        arrived = stream[at : at + cuts[turn % len(cuts)]]
        at += len(arrived) - len(put(inbox, arrived))
        take(inbox, taken)
        if at == len(stream):
            break
    assert at == len(stream), "the inbox is full and nothing can be taken out"
    assert [item for item in taken if not isinstance(item, wire.Blob)] == sent
    assert [item.num_bytes for item in taken if isinstance(item, wire.Blob)] == [
        len(item) for item in sent if isinstance(item, bytes)
    ]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_a_message_or_a_protocol_error(garbage):
    inbox = Inbox(limit_bytes=LIMIT)
    put(inbox, garbage)
    try:
        inbox.take_message()
    except ProtocolError:
        return


def test_the_buffer_grows_with_what_comes_and_not_with_what_is_announced():
    inbox, rest = Inbox(limit_bytes=LIMIT), bytes(LIMIT)
    put(inbox, LIMIT.to_bytes(4, "big"))
    num_come = 4
    while num_come < LIMIT:
        assert inbox.take_message() is None
        assert num_come + len(inbox.room()) <= max(16 * 1024, 2 * num_come)
        left = put(inbox, rest)
        num_come, rest = num_come + len(rest) - len(left), left


def test_too_long_a_message_is_refused_by_its_length_alone():
    inbox = Inbox(limit_bytes=1000)
    put(inbox, (1001).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="1001 bytes"):
        inbox.take_message()
    inbox = Inbox(limit_bytes=1000)
    put(inbox, (1000).to_bytes(4, "big"))
    assert inbox.take_message() is None


def test_a_full_inbox_has_no_room_until_something_is_taken():
    inbox = Inbox(limit_bytes=LIMIT)
    rest = put(inbox, frame(BLOB) * 2000)
    assert rest
    assert len(inbox.room()) == 0
    assert inbox.take_message() == BLOB
    assert len(inbox.room()) == len(frame(BLOB))


def test_the_room_that_a_large_message_needed_is_given_back():
    inbox = Inbox(limit_bytes=LIMIT)
    large = wire.Authority(certificate=bytes(150_000))
    rest = frame(large)
    small = len(inbox.room())
    while rest:
        rest = put(inbox, rest)
        message = inbox.take_message()
    assert message == large
    assert len(inbox.room()) == small


def test_a_payload_arrives_where_it_stays():
    inbox = Inbox(limit_bytes=LIMIT)
    put(inbox, b"ab")
    payload = bytearray(4)
    inbox.expect_payload(memoryview(payload))
    assert inbox.payload_left == 2
    room = inbox.room()
    assert len(room) == 2
    assert put(inbox, b"cdEF") == b"EF"
    assert inbox.payload_left == 0
    assert payload == b"abcd"
    room[0] = ord("C")
    assert payload == b"abCd", "it was copied"
