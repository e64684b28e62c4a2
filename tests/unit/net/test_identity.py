import stat
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import DamagedError, ProtocolError, RunError
from atoll.ids import digest_of, peer_id_of
from atoll.net.authority import Authority
from atoll.net.identity import Identity, public_key_of, signed_key, verify

AUTHORITY = Authority.create(run=digest_of(b"run"))
OTHER_AUTHORITY = Authority.create(run=digest_of(b"run"))


def enrolled() -> Identity:
    identity = Identity.create()
    certificate = AUTHORITY.sign_member(identity.public_key, "anna")
    identity.certify(certificate, AUTHORITY.certificate)
    return identity


def test_a_signature_holds_for_its_key_and_its_payload_only():
    anna, ben = Identity.create(), Identity.create()
    signature = anna.sign(b"payload")
    assert verify(anna.public_key, b"payload", signature)
    assert not verify(anna.public_key, b"Payload", signature)
    assert not verify(ben.public_key, b"payload", signature)
    assert not verify(anna.public_key, b"payload", b"")
    assert not verify(b"short", b"payload", signature)


def test_the_id_is_that_of_the_public_key():
    identity = Identity.create()
    assert len(identity.public_key) == 32
    assert identity.peer_id == peer_id_of(identity.public_key)


@pytest.mark.parametrize("make", [Identity.create, enrolled])
def test_what_is_saved_is_loaded(make, tmp_path):
    identity, directory = make(), tmp_path / "peer"
    assert not Identity.exists(directory)
    identity.save(directory)
    assert Identity.exists(directory)
    loaded = Identity.load(directory)
    assert loaded.peer_id == identity.peer_id
    assert (loaded.certificate, loaded.authority) == (identity.certificate, identity.authority)
    assert verify(identity.public_key, b"x", loaded.sign(b"x"))


def test_only_the_user_can_read_the_key_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "identity.pem.new").write_text("left by a crash")
    Identity.create().save(tmp_path)
    enrolled().save(tmp_path)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_missing_or_unwritable_file_is_a_run_error_with_a_hint(tmp_path):
    with pytest.raises(RunError, match=r"identity\.pem") as caught:
        Identity.load(tmp_path)
    assert caught.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        Identity.create().save(tmp_path / "file" / "below")


def test_a_damaged_file_is_told(tmp_path):
    identity = enrolled()
    identity.save(tmp_path)
    path = tmp_path / "identity.pem"
    pem = path.read_bytes()
    begin = pem.index(b"-----BEGIN CERT")
    another_key = Identity.create().pem()
    for damaged in (b"", b"\xff", pem[: begin // 2], pem[:-300], another_key + pem[begin:]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"identity\.pem") as caught:
            Identity.load(tmp_path)
        assert caught.value.hint
    one_certificate = pem[: pem.index(b"-----BEGIN CERT", begin + 1)]
    path.write_bytes(one_certificate)
    with pytest.raises(DamagedError):
        Identity.load(tmp_path)


def test_a_certificate_of_another_key_or_another_authority_is_refused():
    anna, ben = Identity.create(), Identity.create()
    for_ben = AUTHORITY.sign_member(ben.public_key, "ben")
    with pytest.raises(ProtocolError, match="another key"):
        anna.certify(for_ben, AUTHORITY.certificate)
    for_anna = AUTHORITY.sign_member(anna.public_key, "anna")
    with pytest.raises(ProtocolError, match="another authority"):
        anna.certify(for_anna, OTHER_AUTHORITY.certificate)
    assert anna.certificate == anna.authority == b""


def test_a_member_cannot_vouch_for_others():
    with pytest.raises(ProtocolError):
        signed_key(enrolled().certificate, authority=enrolled().certificate)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0), st.integers(1, 255))
def test_any_bytes_are_a_protocol_error_or_the_key_that_was_signed(garbage, position, flip):
    identity = enrolled()
    damaged = bytearray(identity.certificate)
    damaged[position % len(damaged)] ^= flip
    with pytest.raises(ProtocolError):
        public_key_of(garbage)
    with suppress(ProtocolError):
        key = signed_key(bytes(damaged), authority=AUTHORITY.certificate)
        assert key == identity.public_key
