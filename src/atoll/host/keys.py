"""The keys of a run, sealed with a passphrase, on their way to the machine of a standby.

    atoll-keys-1 + 16 bytes salt + 12 bytes nonce + ChaCha20-Poly1305( names and contents of files )

The key of the cipher is made from the passphrase with scrypt, which takes 128 MB and a moment for
each guess. Whoever has what is in here can sign for the run, so it goes nowhere unsealed.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import DecodeError, msgpack

from atoll.errors import ConfigError, RunError
from atoll.host.stores import URL_FILE
from atoll.net.identity import write_private

AUTHORITY = "authority.pem"
NEEDED = ("run.toml", AUTHORITY, "host/identity.pem", "built-in/identity.pem")
FILES = (*NEEDED, URL_FILE)
MAGIC = b"atoll-keys-1"
SALT_BYTES, NONCE_BYTES = 16, 12
LEAST_CHARACTERS = 12


def seal(directory: Path, passphrase: str) -> bytes:
    """Return the keys, the config and the journal's address of a run, sealed.

    Raises:
        ConfigError: the passphrase is too short to keep anybody out.
        RunError: the run has not begun, so there are no keys.
    """
    if len(passphrase) < LEAST_CHARACTERS:
        raise ConfigError(
            f"the passphrase has {len(passphrase)} characters, where {LEAST_CHARACTERS} are needed",
            hint="take four or five words that nobody would put together",
        )
    if missing := [name for name in NEEDED if not (directory / name).exists()]:
        raise RunError(
            f"the run in {directory} has no keys yet: {missing[0]} is missing",
            hint=f"begin it with: atoll host {directory}",
        )
    there = [name for name in FILES if (directory / name).exists()]
    content = msgpack.encode({name: (directory / name).read_bytes() for name in there})
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    cipher = ChaCha20Poly1305(_key(passphrase, salt))
    return MAGIC + salt + nonce + cipher.encrypt(nonce, content, MAGIC)


def unseal(sealed: bytes, passphrase: str, directory: Path) -> None:
    """Write what was sealed into a directory that has no keys yet.

    Raises:
        ConfigError: the passphrase is another one, these are no sealed keys, or there are keys.
        RunError: the disk is full.
    """
    if (directory / AUTHORITY).exists():
        raise ConfigError(
            f"{directory} has keys already", hint="name a new directory for the standby"
        )
    salt_at, nonce_at = len(MAGIC), len(MAGIC) + SALT_BYTES
    content_at = nonce_at + NONCE_BYTES
    try:
        if not sealed.startswith(MAGIC):
            raise ValueError("another kind of file")
        cipher = ChaCha20Poly1305(_key(passphrase, sealed[salt_at:nonce_at]))
        content = cipher.decrypt(sealed[nonce_at:content_at], sealed[content_at:], MAGIC)
        files = msgpack.decode(content, type=dict[str, bytes])
    except (InvalidTag, ValueError, DecodeError) as error:
        raise ConfigError(
            "the passphrase is not the one that the keys were sealed with, or the file is damaged",
            hint="copy the file again, and type the passphrase as it was",
        ) from error
    # The authority last: as long as it is not there, this can be done again.
    for name in sorted(files, key=lambda name: name == AUTHORITY):
        if name in FILES:
            write_private(directory / name, files[name])


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(passphrase.encode())
