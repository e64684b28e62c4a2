"""How a newcomer becomes a member: from an invite to a certificate.

newcomer -- GetAuthority -> host      (no secret yet: this may be anybody)
         <- Authority --              is its digest the invite's? did it sign the key proved by TLS?
         -- Enrol(token, key) ->      only then the token
         <- Enrolled, or Refused --   is the certificate for our key?
"""

import asyncio
from contextlib import suppress
from typing import NoReturn

from atoll.errors import ConfigError, ConnectionLost, ProtocolError
from atoll.ids import digest_of, peer_id_of
from atoll.net import wire
from atoll.net.connection import TcpConnection
from atoll.net.identity import Identity, signed_key
from atoll.net.invite import Invite
from atoll.net.transport import TcpTransport


async def enrol(
    invite: Invite, identity: Identity, name: str, *, timeout_s: float = 20.0
) -> wire.Enrolled:
    """Return the host's answer; `identity` then holds its certificate, for the caller to save.

    Raises:
        ConfigError: it is not the host of the invite, or it does not take us.
        PeerError: none of the invite's hosts can be reached, or keeps to the protocol.
    """
    *first, last = invite.places
    for place in first:
        with suppress(ConnectionLost):  # it stands by, or is gone: another one leads
            return await _enrol_at(place, invite, identity, name, timeout_s=timeout_s)
    return await _enrol_at(last, invite, identity, name, timeout_s=timeout_s)


async def _enrol_at(
    place: tuple[str, int], invite: Invite, identity: Identity, name: str, *, timeout_s: float
) -> wire.Enrolled:
    host, port = place
    where = f"{host}:{port}"
    connection = await TcpTransport(None).dial(host, port, expect=None, timeout_s=timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            authority = await _checked_authority(connection, invite, where=where)
            request = wire.Enrol(token=invite.token, public_key=identity.public_key, name=name)
            await connection.send(request)
            enrolled = await connection.receive()
    except TimeoutError as error:
        hint = "the host may be overloaded: try again"
        raise ConnectionLost(f"{where} does not answer", hint=hint) from error
    finally:
        await connection.close()
    if not isinstance(enrolled, wire.Enrolled):
        _raise_unexpected(enrolled)
    if enrolled.host != peer_id_of(signed_key(connection.certificate, authority=authority)):
        raise ProtocolError(f"{where} names another host than itself")
    identity.certify(enrolled.certificate, authority)
    return enrolled


async def _checked_authority(connection: TcpConnection, invite: Invite, *, where: str) -> bytes:
    """Return the certificate (DER) of the invite's authority, which vouches for the other side."""
    await connection.send(wire.GetAuthority(protocol=wire.PROTOCOL))
    answer = await connection.receive()
    if not isinstance(answer, wire.Authority):
        _raise_unexpected(answer)
    try:
        if digest_of(answer.certificate) != invite.authority:
            raise ProtocolError("the authority is not the one of the invite")
        signed_key(connection.certificate, authority=answer.certificate)
    except ProtocolError as error:
        message = f"{where} is not the host of this invite: {error}"
        raise ConfigError(message, hint="ask the host for a new invite") from error
    return answer.certificate


def _raise_unexpected(answer: wire.Message) -> NoReturn:
    if isinstance(answer, wire.Refused):
        if not answer.final:
            raise ConnectionLost(answer.reason, hint=answer.hint)
        raise ConfigError(answer.reason, hint=answer.hint)
    raise ProtocolError(f"the host sent {type(answer).__name__}, which is no answer to a newcomer")
