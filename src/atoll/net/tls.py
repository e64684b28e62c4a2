"""TLS 1.3 for members: both sides prove their key, and the key is the identity.

Host names play no part (a volunteer's address changes): whoever dials compares the peer id that was
proved with the one it expects. A stranger has no certificate yet, and may connect only to enrol.
"""

import ssl
import tempfile
from pathlib import Path

from atoll.ids import PeerId, peer_id_of
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
