"""An invite: one line that a volunteer pastes, with all that is needed to find and trust the host.

    atoll1 + base32( 4 bytes checksum | 32 authority | 16 token | 2 port | host name, UTF-8 )

Behind the host's name may stand those of its standbys, a line for each: name, space, port.

Base32 in lower case survives a chat program, a double click and being read aloud. The checksum
tells a typing error or a cut paste (copy it again) from a wrong invite (ask the host for another).
"""

import base64
import binascii
import secrets

from blake3 import blake3
from msgspec import Struct

from atoll.errors import ConfigError
from atoll.ids import Digest, digest_of

_PREFIX = "atoll1"
_CHECKSUM, _AUTHORITY, _TOKEN, _PORT = 4, 32, 16, 2  # bytes
_COPY_AGAIN = "copy the whole line that the host printed: it starts with atoll1 and has no spaces"


class Invite(Struct, frozen=True, kw_only=True):
    """Where the host is, the digest of its authority's certificate, and what it will ask for."""

    host: str
    port: int
    authority: Digest
    token: str  # 32 hex digits
    others: tuple[tuple[str, int], ...] = ()  # where standbys of that host are

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Where to ask, one after the other."""
        return ((self.host, self.port), *self.others)

    def format(self) -> str:
        """Return the line that `parse` reads."""
        body = (
            bytes.fromhex(self.authority)
            + bytes.fromhex(self.token)
            + self.port.to_bytes(_PORT, "big")
            + "\n".join([self.host, *(f"{name} {port}" for name, port in self.others)]).encode()
        )
        return encode_line(_PREFIX, body)

    @classmethod
    def parse(cls, line: str) -> "Invite":
        """Return the invite in a line that a person pasted, which may be anything.

        Raises:
            ConfigError: it is no invite, or not a whole one.
        """
        text = "".join(line.split()).lower()  # some programs wrap long lines
        if not text.startswith(_PREFIX):
            raise ConfigError(f"not an invite: {line.strip()[:20]!r}", hint=_COPY_AGAIN)
        try:
            return cls._of_bytes(decode_line(text.removeprefix(_PREFIX)))
        except ValueError as error:
            raise ConfigError("the invite is damaged or cut off", hint=_COPY_AGAIN) from error

    @classmethod
    def _of_bytes(cls, body: bytes) -> "Invite":
        token_at, port_at = _AUTHORITY, _AUTHORITY + _TOKEN
        host, *lines = body[port_at + _PORT :].decode().split("\n")
        others = [(name, int(port)) for name, _, port in (line.rpartition(" ") for line in lines)]
        if not all(name and name.isprintable() for name in (host, *(name for name, _ in others))):
            raise ValueError("no host name")
        if not all(0 <= port < 2**16 for _, port in others):
            raise ValueError("no port")
        return cls(
            host=host,
            port=int.from_bytes(body[port_at : port_at + _PORT], "big"),
            authority=Digest(body[:token_at].hex()),
            token=body[token_at:port_at].hex(),
            others=tuple(others),
        )


def new_token() -> str:
    """Return 128 random bits as 32 hex digits."""
    return secrets.token_hex(_TOKEN)


def token_digest(token: str) -> Digest:
    """Return what the host keeps of a token: enough to know it again, useless to a thief."""
    return digest_of(token.encode())


def _checksum(body: bytes) -> bytes:
    return blake3(body).digest(length=_CHECKSUM)


def encode_line(prefix: str, body: bytes) -> str:
    """Return the prefix, and the body with a checksum as base32 in lower case."""
    return prefix + base64.b32encode(_checksum(body) + body).decode().rstrip("=").lower()


def decode_line(text: str) -> bytes:
    """Return the body of such a line, without its prefix; ValueError if it is damaged."""
    padded = text.upper() + "=" * (-len(text) % 8)
    try:
        raw = base64.b32decode(padded)
    except binascii.Error as error:
        raise ValueError("not base32") from error
    checksum, body = raw[:_CHECKSUM], raw[_CHECKSUM:]
    if checksum != _checksum(body):
        raise ValueError("wrong checksum")
    return body
