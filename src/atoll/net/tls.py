"""TLS 1.3 for members: both sides prove their key, and the key is the identity.

Host names play no part (a volunteer's address changes): whoever dials compares the peer id that was
proved with the one it expects. A stranger has no certificate yet, and may connect only to enrol.
"""

import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from atoll.ids import Buffer, PeerId, peer_id_of
from atoll.net.identity import Identity, public_key_of


def server_context(identity: Identity) -> ssl.SSLContext:
    """Return the context of a member that others dial: certificates of its run, or none at all."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # nobody resumes: every connection proves its key anew
    _load(context, identity)
    return context


def client_context(identity: Identity | None) -> ssl.SSLContext:
    """Return the context of a member that dials; None: a stranger, who trusts nobody yet.

    Also a stranger's server proves that it holds the key of the certificate that it shows.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if identity is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        _load(context, identity)
    return context


class Tls:
    """The TLS of one connection, without any I/O: ciphertext goes in, ciphertext comes out.

        link --arrived--> | read_into --> plain bytes, where they stay
        link <--departing-- | <-- write

    What asyncio's own TLS does, with fewer buffers: nothing is decrypted before there is a place
    for it, and nothing waits encrypted. Each byte is copied once here, between link and OpenSSL.
    """

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.ended = False  # the other side has said goodbye
        self._arriving = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        # No name goes over the wire: whoever dials compares the key.
        self._tls = context.wrap_bio(self._arriving, self._leaving, server_side=server_side)
        # Into a buffer, and so it returns how many bytes.
        self._read_into = cast(Callable[[int, memoryview], int], self._tls.read)

    @property
    def certificate(self) -> bytes:
        """The other side's certificate (DER); empty: it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def vouched(self) -> bool:
        """Whether our run's authority has signed that certificate."""
        return self._tls.context.verify_mode is not ssl.CERT_NONE and bool(self.certificate)

    @property
    def num_held(self) -> int:
        """Bytes that arrived and nobody has read."""
        return self._arriving.pending

    @property
    def has_more(self) -> bool:
        """Whether there is anything to read. To try, and find nothing, takes ten times as long."""
        return self._arriving.pending > 0 or self._tls.pending() > 0

    @property
    def num_departing(self) -> int:
        """Bytes that `departing` would return."""
        return self._leaving.pending

    def arrived(self, ciphertext: memoryview) -> None:
        self._arriving.write(ciphertext)

    def discard(self) -> None:
        """Throw away what arrived and nobody has read."""
        self._arriving.read()

    def departing(self) -> bytes:
        """Return what is to be sent now; it is not returned again."""
        return self._leaving.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake, and return whether it is complete.

        Raises:
            ssl.SSLError: the other side is no member, or does not speak TLS 1.3.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read_into(self, room: memoryview, *, num_records: int) -> int:
        """Decrypt so many records at most, as far as there is room, and return their bytes.

        0: none is whole, or the other side has said goodbye.

        Raises:
            ssl.SSLError: what arrived was damaged on its way, or the other side refuses us.
        """
        filled, whole, arriving = 0, len(room), self._arriving
        try:
            # As `has_more`, but this is asked for each record.
            while filled < whole and num_records and (arriving.pending or self._tls.pending()):
                num_bytes = self._read_into(whole - filled, room[filled:])
                if not num_bytes:
                    self.ended = True
                    break
                filled += num_bytes
                num_records -= 1
        except ssl.SSLWantReadError:
            pass
        return filled

    def write(self, plain: Buffer) -> None:
        num_bytes = self._tls.write(plain)
        assert num_bytes == len(plain), "memory takes everything"

    def say_goodbye(self) -> None:
        """Say that nothing more will come from here; the other side's answer is not awaited."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()


def proven_peer(certificate: bytes) -> PeerId:
    """Return who the other side is, by the certificate (DER) whose key it proved to hold.

    Raises:
        ProtocolError: the certificate is not for an Ed25519 key.
    """
    return peer_id_of(public_key_of(certificate))


def _context(side: int) -> ssl.SSLContext:
    # Not `create_default_context`: that one trusts every authority of the web.
    context = ssl.SSLContext(side)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    return context


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    """Use our key and certificate, and trust our run's authority."""
    assert identity.certificate, "a member has a certificate; a stranger has no identity"
    context.load_verify_locations(cadata=identity.authority)
    # The ssl module takes keys from files only; this one lives for a millisecond, for us alone.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(identity.pem())
        context.load_cert_chain(path)
