"""The host as the run's certificate authority: it vouches for the keys of the members.

Certificates are valid from 1970 to 9999, because nothing may depend on a peer's clock, which may be
a year off (or at 1970, on a small computer without a battery). Who is *still* a member is the
host's list, not a date.
"""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.ids import Buffer, Digest, digest_of, peer_id_of
from atoll.net.identity import damaged, private_pem, public_key_of, read_pem, write_private

_FILE = "authority.pem"
_NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # "no end" (RFC 5280, 4.1.2.5)


class Authority:
    """The key that signs members and journal records, and its own certificate (DER)."""

    def __init__(self, key: Ed25519PrivateKey, certificate: bytes) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, *, run: Digest, key: Ed25519PrivateKey | None = None) -> "Authority":
        """Return a new authority for the run of this digest, with this key or a new one."""
        key = key or Ed25519PrivateKey.generate()
        name = _name(common=run)
        return cls(key, _certificate(key.public_key(), subject=name, issuer=name, signer=key))

    @classmethod
    def load(cls, directory: Path) -> "Authority":
        """Return the authority that was saved there.

        Raises:
            RunError: there is none, or it is damaged.
        """
        path = directory / _FILE
        key, certificates = read_pem(path)
        matches = len(certificates) == 1 and (
            public_key_of(certificates[0]) == key.public_key().public_bytes_raw()
        )
        if not matches:
            raise damaged(path)
        return cls(key, certificates[0])

    @staticmethod
    def exists(directory: Path) -> bool:
        return (directory / _FILE).exists()

    def save(self, directory: Path) -> None:
        """Write the authority to a file of that directory that only this user can read."""
        write_private(directory / _FILE, private_pem(self._key, self.certificate))

    @property
    def digest(self) -> Digest:
        """The digest of the certificate, by which an invite names this authority."""
        return digest_of(self.certificate)

    @property
    def public_key(self) -> bytes:
        """The raw public key (32 bytes), which verifies journal records."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, payload: Buffer) -> bytes:
        """Return the signature of the payload, 64 bytes."""
        return self._key.sign(payload)

    def sign_member(self, public_key: bytes, name: str) -> bytes:
        """Return a certificate (DER) for the owner of this raw public key (32 bytes).

        The name is only for people who read certificates; the peer is its key.
        """
        return _certificate(
            Ed25519PublicKey.from_public_bytes(public_key),
            subject=_name(common=peer_id_of(public_key), pseudonym=name),
            issuer=x509.load_der_x509_certificate(self.certificate).subject,
            signer=self._key,
        )


def _name(*, common: str, pseudonym: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if pseudonym:
        # At most 128 characters (X.520, ub-pseudonym).
        attributes.append(x509.NameAttribute(NameOID.PSEUDONYM, pseudonym[:128]))
    return x509.Name(attributes)


def _certificate(
    key: Ed25519PublicKey, *, subject: x509.Name, issuer: x509.Name, signer: Ed25519PrivateKey
) -> bytes:
    """Return a certificate (DER) for this key; who signs for itself is an authority."""
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=_serial(key, subject),
        not_valid_before=_NOT_BEFORE,
        not_valid_after=_NOT_AFTER,
    )
    is_authority = key == signer.public_key()
    path_length = 0 if is_authority else None  # members sign no certificates
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=is_authority, path_length=path_length), True),
        (_usage(signs_certificates=is_authority), True),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
        (signer_id, False),
        (x509.ExtendedKeyUsage(uses), False),
    ]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, algorithm=None).public_bytes(Encoding.DER)


def _serial(key: Ed25519PublicKey, subject: x509.Name) -> int:
    """Return a number that no other certificate of this authority has: 19 bytes of a digest."""
    digest = digest_of(key.public_bytes_raw(), subject.public_bytes())
    return int(digest[:38], 16) + 1  # positive, and not above 20 bytes (RFC 5280, 4.1.2.2)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
