"""Who a member is: an Ed25519 key. Its id is a digest of the public key, so it can be proved.

    create --enrolment--> certify --save--> identity.pem: key, certificate, authority's certificate

One file holds all three, so that a crash leaves the old identity or the new one, never a mixture.
"""

import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from atoll.durable import publish
from atoll.errors import DamagedError, ProtocolError, RunError
from atoll.ids import Buffer, PeerId, peer_id_of

_FILE = "identity.pem"


class Identity:
    """The key of a member and, once it is enrolled, what the run's authority says about it.

    `certificate` (ours) and `authority` (the run's) are DER, and empty before enrolment.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.certificate = b""
        self.authority = b""

    @classmethod
    def create(cls) -> "Identity":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, directory: Path) -> "Identity":
        """Return the identity that was saved there.

        Raises:
            RunError: there is none, or it is damaged.
        """
        path = directory / _FILE
        key, certificates = read_pem(path)
        identity = cls(key)
        try:
            match certificates:
                case []:
                    pass
                case [certificate, authority]:
                    identity.certify(certificate, authority)
                case _:
                    raise damaged(path)
        except ProtocolError as error:
            raise damaged(path) from error
        return identity

    @staticmethod
    def exists(directory: Path) -> bool:
        return (directory / _FILE).exists()

    def save(self, directory: Path) -> None:
        """Write the identity to a file of that directory that only this user can read."""
        write_private(directory / _FILE, self.pem())

    def certify(self, certificate: bytes, authority: bytes) -> None:
        """Take over our certificate and that of the authority that signed it (DER).

        Raises:
            ProtocolError: the certificate is not for our key, or not signed by that authority.
        """
        if signed_key(certificate, authority=authority) != self.public_key:
            raise ProtocolError("the certificate is for another key than ours")
        self.certificate, self.authority = certificate, authority

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    @property
    def peer_id(self) -> PeerId:
        return peer_id_of(self.public_key)

    def sign(self, payload: Buffer) -> bytes:
        """Return the signature of the payload, 64 bytes."""
        return self._key.sign(payload)

    def pem(self) -> bytes:
        """Return key and certificates as text, as OpenSSL reads them."""
        ders = [der for der in (self.certificate, self.authority) if der]
        return private_pem(self._key, *ders)


def verify(public_key: bytes, payload: Buffer, signature: bytes) -> bool:
    """Return whether the owner of this raw public key signed the payload."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, payload)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key_of(certificate: bytes) -> bytes:
    """Return the raw public key (32 bytes) in a DER certificate, which may be any bytes.

    Raises:
        ProtocolError: it is not a certificate of an Ed25519 key.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except Exception as error:  # of any kind: these are any bytes, in a parser that is not ours
        raise ProtocolError("not a certificate") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError("not a certificate of an Ed25519 key")
    return key.public_bytes_raw()


def signed_key(certificate: bytes, *, authority: bytes) -> bytes:
    """Return the raw public key in a DER certificate, if the authority (DER) signed it.

    Raises:
        ProtocolError: one is not a certificate of an Ed25519 key, or the signature is another's.
    """
    public_key = public_key_of(certificate)
    public_key_of(authority)
    issuer = x509.load_der_x509_certificate(authority)
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ProtocolError("the certificate was signed by another authority") from error
    return public_key


# --- files with a private key --------------------------------------------------------------------


def private_pem(key: Ed25519PrivateKey, *certificates: bytes) -> bytes:
    """Return the key and DER certificates, in this order, as one PEM text."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for der in certificates:
        pem += x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    return pem


def read_pem(path: Path) -> tuple[Ed25519PrivateKey, list[bytes]]:
    """Return the key and the DER certificates in a file that `write_private` wrote.

    Raises:
        RunError: the file is missing, unreadable or damaged.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        hint = "check the directory: this one was never set up, or belongs to another user"
        raise RunError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    begin = b"-----BEGIN CERTIFICATE-----"
    key_pem, *certificate_pems = pem.split(begin)
    try:
        key = load_pem_private_key(key_pem, password=None)
        certificates = [x509.load_pem_x509_certificate(begin + part) for part in certificate_pems]
    except (ValueError, TypeError) as error:
        raise damaged(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise damaged(path)
    return key, [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def damaged(path: Path) -> DamagedError:
    hint = "restore it from a backup; a peer may instead delete it and join with a new invite"
    return DamagedError(f"{path} is not the key file that was written", hint=hint)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read: beside, then renamed, so never half of it.

    Raises:
        RunError: it cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # what a crash may have left
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(beside, path)
    except OSError as error:
        hint = "free some space, or check who may write there"
        raise RunError(f"cannot write {path}: {error.strerror}", hint=hint) from error
