import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from atoll.errors import ProtocolError
from atoll.ids import Digest, LeaseId, PeerId, RoundId, digest_of
from atoll.net import records
from atoll.net.identity import Identity
from atoll.net.records import Committed, Entry, Planned, RosterEntry, SliceUpdate, entry_hash

HOST = Identity.create()
PREVIOUS = digest_of(b"previous")
A = PeerId("a" * 32)
COMMIT = Committed(
    round=RoundId(7),
    fragment=0,
    codec="int8",
    update_codec="int8",
    roster=(
        RosterEntry(
            peer=A,
            share=1.0,
            num_tokens=512,
            num_steps=2,
            mean_loss=2.5,
            leases=(LeaseId(1),),
            contribution=digest_of(b"c"),
        ),
    ),
    updates=(SliceUpdate(digest=digest_of(b"u"), num_bytes=3),),
)


def announced(body: bytes, *, signer: Identity = HOST):
    """Return the message that announces this body as entry 5 of the journal."""
    digest = entry_hash(seq=5, previous=PREVIOUS, body=body)
    return Entry(5, PREVIOUS, body, digest, signer.sign(bytes.fromhex(digest))).to_commit()


GOOD = announced(records.encode(COMMIT))


def judge(message):
    return records.committed(message, public_key=HOST.public_key)


def test_a_commit_that_the_host_signed_is_believed():
    assert judge(GOOD) == COMMIT
    assert records.decode(GOOD.body) == COMMIT


@pytest.mark.parametrize(
    "message",
    [
        announced(GOOD.body, signer=Identity.create()),
        replace(GOOD, seq=6),
        replace(GOOD, previous=digest_of(b"another")),
        replace(GOOD, body=GOOD.body.replace(b"512", b"513")),
        replace(GOOD, hash=digest_of(b"another")),
        replace(GOOD, signature=b""),
        replace(GOOD, signature=bytes(64)),
    ],
)
def test_a_commit_that_it_did_not_sign_as_it_is_is_refused(message):
    with pytest.raises(ProtocolError, match="did not sign"):
        judge(message)


def test_another_record_is_no_commit():
    with pytest.raises(ProtocolError, match="a Planned record, where a commit was due"):
        judge(announced(records.encode(Planned(round=RoundId(7), peers=(A,)))))


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"kind":"committed"}'])
def test_signed_garbage_is_a_protocol_error(body):
    with pytest.raises(ProtocolError, match="not a journal record"):
        judge(announced(body))


@given(st.integers(0, len(GOOD.body) - 1), st.integers(1, 255))
def test_no_byte_of_the_body_can_be_changed(index, flip):
    body = bytearray(GOOD.body)
    body[index] ^= flip
    with pytest.raises(ProtocolError):
        judge(replace(GOOD, body=bytes(body)))


def test_a_contribution_is_named_by_its_slices_in_order():
    one, two = digest_of(b"1"), digest_of(b"2")
    assert records.contribution_digest((one, two)) != records.contribution_digest((two, one))
    expected: Digest = digest_of(bytes.fromhex(one) + bytes.fromhex(two))
    assert records.contribution_digest((one, two)) == expected
