import shutil
import stat
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from hypothesis import given, settings, strategies as st

from atoll.errors import DamagedError, RunError
from atoll.ids import digest_of
from atoll.net.authority import Authority
from atoll.net.identity import Identity, signed_key, verify

RUN = digest_of(b"run")
AUTHORITY = Authority.create(run=RUN)


def test_what_is_saved_is_loaded(tmp_path):
    assert not Authority.exists(tmp_path)
    AUTHORITY.save(tmp_path)
    assert Authority.exists(tmp_path)
    loaded = Authority.load(tmp_path)
    assert loaded.certificate == AUTHORITY.certificate
    assert loaded.digest == AUTHORITY.digest == digest_of(AUTHORITY.certificate)
    assert verify(AUTHORITY.public_key, b"record", loaded.sign(b"record"))
    assert stat.S_IMODE((tmp_path / "authority.pem").stat().st_mode) == 0o600


def test_a_missing_and_a_damaged_file_are_told(tmp_path):
    with pytest.raises(RunError, match=r"authority\.pem"):
        Authority.load(tmp_path)
    Identity.create().save(tmp_path)
    (tmp_path / "identity.pem").rename(tmp_path / "authority.pem")
    with pytest.raises(DamagedError, match=r"authority\.pem"):
        Authority.load(tmp_path)


def test_the_certificate_names_the_run():
    subject = x509.load_der_x509_certificate(AUTHORITY.certificate).subject
    assert subject.rfc4514_string() == f"CN={RUN}"


@settings(deadline=None)
@given(st.text(max_size=1000))
def test_a_member_may_have_any_name(name):
    identity = Identity.create()
    certificate = AUTHORITY.sign_member(identity.public_key, name)
    assert signed_key(certificate, authority=AUTHORITY.certificate) == identity.public_key


def test_only_the_authority_may_sign_certificates():
    member = AUTHORITY.sign_member(Identity.create().public_key, "anna")
    for der, expected in ((AUTHORITY.certificate, (True, 0)), (member, (False, None))):
        extensions = x509.load_der_x509_certificate(der).extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (constraints.ca, constraints.path_length) == expected
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.key_cert_sign == expected[0]


def test_certificates_hold_whatever_a_clock_says(tmp_path):
    member = AUTHORITY.sign_member(Identity.create().public_key, "anna")
    for certificate in map(x509.load_der_x509_certificate, (AUTHORITY.certificate, member)):
        assert certificate.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
        assert certificate.not_valid_after_utc.year == 9999


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize("clock_s", [0, 10**9, 4 * 10**9, 25 * 10**10])
def test_openssl_accepts_a_member_at_any_time(clock_s, tmp_path):
    AUTHORITY.save(tmp_path)
    member = AUTHORITY.sign_member(Identity.create().public_key, "anna")
    der = tmp_path / "member.der"
    der.write_bytes(member)
    command = ["openssl", "verify", "-attime", str(clock_s), "-x509_strict", "-CAfile"]
    subprocess.run([*command, tmp_path / "authority.pem", der], check=True, capture_output=True)
