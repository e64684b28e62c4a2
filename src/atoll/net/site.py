"""The key of a site: one line by which the further machines of a peer find the first, and it them.

    atollsite1 + base32( 4 bytes checksum | 32 secret | 2 port | address )

All machines of a site have the same secret, and from it the same identity of a small authority of
their own. So a connection between them is mutual TLS, as everywhere: nobody else can make one.
"""

import secrets
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from atoll.errors import ConfigError, DamagedError
from atoll.ids import digest_of
from atoll.net.authority import Authority
from atoll.net.identity import Identity, write_private
from atoll.net.invite import decode_line, encode_line

KEY_FILE = "site.key"
_PREFIX = "atollsite1"
_SECRET, _PORT = 32, 2  # bytes
_COPY_AGAIN = "copy the whole line that the first machine printed: it starts with atollsite1"


class SiteKey(Struct, frozen=True, kw_only=True):
    """Where the first machine waits, and the secret."""

    address: str
    port: int
    secret: bytes

    @classmethod
    def create(cls, site: str) -> "SiteKey":
        """Return a new key for the site at "address:port".

        Raises:
            ConfigError: that is none.
        """
        address, port = split_site(site)
        return cls(address=address, port=port, secret=secrets.token_bytes(_SECRET))

    def format(self) -> str:
        """Return the line that `parse` reads."""
        body = self.secret + self.port.to_bytes(_PORT, "big") + self.address.encode()
        return encode_line(_PREFIX, body)

    @classmethod
    def parse(cls, line: str) -> "SiteKey":
        """Return the key in a line that a person pasted, which may be anything.

        Raises:
            ConfigError: it is no key of a site, or not a whole one.
        """
        text = "".join(line.split()).lower()
        if not text.startswith(_PREFIX):
            raise ConfigError(f"not the key of a site: {line.strip()[:20]!r}", hint=_COPY_AGAIN)
        try:
            body = decode_line(text.removeprefix(_PREFIX))
            address = body[_SECRET + _PORT :].decode()
            if not (address and address.isprintable()):
                raise ValueError("no address")
        except ValueError as error:
            raise ConfigError("the key is damaged or cut off", hint=_COPY_AGAIN) from error
        port = int.from_bytes(body[_SECRET : _SECRET + _PORT], "big")
        return cls(address=address, port=port, secret=body[:_SECRET])

    @classmethod
    def of_peer(cls, directory: Path, site: str) -> "SiteKey":
        """Return the key of the peer that lives there, with a secret that it keeps.

        Raises:
            ConfigError: `site` is no "address:port".
            RunError: the directory cannot be written to.
        """
        path = directory / KEY_FILE
        key = cls.create(site)
        if path.exists():
            try:
                secret = cls.parse(path.read_text(encoding="utf-8")).secret
            except (ConfigError, UnicodeDecodeError) as error:
                hint = "delete that file; the other machines then need the new line"
                raise DamagedError(f"{path} is damaged", hint=hint) from error
            key = cls(address=key.address, port=key.port, secret=secret)
        # Also for machines that see the same file system: they take the line from there.
        write_private(path, f"{key.format()}\n".encode())
        return key

    def identity(self) -> Identity:
        """Return the one that all machines of the site have."""
        authority = Authority.create(run=digest_of(b"site"), key=self._derived("authority"))
        identity = Identity(self._derived("member"))
        certificate = authority.sign_member(identity.public_key, "a machine of the site")
        identity.certify(certificate, authority.certificate)
        return identity

    def _derived(self, purpose: str) -> Ed25519PrivateKey:
        context = f"atoll 2026-11 site key: {purpose}"
        seed = blake3(self.secret, derive_key_context=context).digest()
        return Ed25519PrivateKey.from_private_bytes(seed)


def split_site(site: str) -> tuple[str, int]:
    """Return address and port of "address:port".

    Raises:
        ConfigError: it is not that.
    """
    address, _, port = site.rpartition(":")
    if address.startswith("[") and address.endswith("]"):  # IPv6, as a URL has it
        address = address[1:-1]
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"not an address and a port: {site!r}" if site else "several machines need a --site",
            hint="where the other machines of the site reach this one, for example 10.0.0.1:7779",
        )
    return address, int(port)
