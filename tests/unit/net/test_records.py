import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from atoll.errors import ProtocolError
from atoll.ids import Digest, LeaseId, PeerId, RoundId, digest_of
from atoll.net import records, wire
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


COUNTED = wire.Counted(leases=(LeaseId(1),), contribution=digest_of(b"c"))
GOOD = announced(records.encode(COMMIT))


def judge(message):
    return records.committed(message, public_key=HOST.public_key)


def test_a_commit_that_the_host_signed_is_believed():
    heard = judge(replace(GOOD, counted=COUNTED))
    assert heard.counted == COUNTED
    assert (heard.round, heard.num_contributors) == (7, 1)
    assert (heard.updates, heard.update_codec) == (COMMIT.updates, "int8")


def test_what_members_are_told_of_a_commit_does_not_grow_with_its_roster():
    (entry,) = COMMIT.roster
    crowd = replace(COMMIT, roster=(entry,) * 1000)
    few, many = (len(records.brief(records.encode(commit))) for commit in (COMMIT, crowd))
    assert many == few + len("1000") - len("1")


@pytest.mark.parametrize("name", Committed.__struct_fields__)
def test_the_hash_of_a_commit_is_of_all_of_it(name):
    (entry,) = COMMIT.roster
    others = {
        "round": RoundId(8),
        "fragment": 1,
        "codec": "fp32",
        "update_codec": "fp32",
        "roster": (replace(entry, leases=(LeaseId(2),)),),
        "updates": (),
        "partials": ((COMMIT.updates[0].digest,),),
        "widths": (2, 1),
    }
    other = records.encode(replace(COMMIT, **{name: others[name]}))
    assert announced(other).hash != GOOD.hash


@pytest.mark.parametrize(
    "message",
    [
        announced(GOOD.body, signer=Identity.create()),
        replace(GOOD, seq=6),
        replace(GOOD, previous=digest_of(b"another")),
        replace(GOOD, body=GOOD.body.replace(b"int8", b"fp32")),
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


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"kind":"announced"}'])
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
