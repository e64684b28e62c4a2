import pytest

from atoll.ids import digest_of
from atoll.net.authority import Authority
from atoll.net.identity import Identity


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create(run=digest_of(b"run"))


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    """The authority of another run."""
    return Authority.create(run=digest_of(b"other"))


def member_of(authority: Authority, name: str) -> Identity:
    identity = Identity.create()
    identity.certify(authority.sign_member(identity.public_key, name), authority.certificate)
    return identity


@pytest.fixture(scope="session")
def anna(authority):
    return member_of(authority, "anna")


@pytest.fixture(scope="session")
def ben(authority):
    return member_of(authority, "ben")


@pytest.fixture(scope="session")
def carl(authority):
    return member_of(authority, "carl")


@pytest.fixture(scope="session")
def eve(other_authority):
    """A member of the other run."""
    return member_of(other_authority, "eve")
