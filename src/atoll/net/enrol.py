"""How a newcomer becomes a member: from an invite to a certificate.

newcomer -- GetAuthority -> host      (no secret yet: this may be anybody)
         <- Authority --              is its digest the invite's? did it sign the key proved by TLS?
         -- Enrol(token, key) ->      only then the token
         <- Enrolled, or Refused --   is the certificate for our key?
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeAlias, TypeVar

from atoll.clock import monotonic_s, wall_s
from atoll.errors import ConfigError, ConnectionLost, ProtocolError
from atoll.ids import digest_of, peer_id_of
from atoll.net import wire
from atoll.net.connection import TcpConnection
from atoll.net.identity import Identity, signed_key
from atoll.net.invite import Invite
from atoll.net.transport import TcpTransport

Place: TypeAlias = tuple[str, int]
MOST_PLACES = 8  # to look for the leader at: a run has one or two hosts, and they may have moved
T = TypeVar("T")


async def enrol(
    invite: Invite, identity: Identity, name: str, *, timeout_s: float = 20.0
) -> wire.Enrolled:
    """Return the host's answer; `identity` then holds its certificate, for the caller to save.

    Raises:
        ConfigError: it is not the host of the invite, or it does not take us.
        PeerError: no host that leads can be reached, or it does not keep to the protocol.
    """
    return await _at_the_first(
        invite, lambda place: _enrol_at(place, invite, identity, name, timeout_s=timeout_s)
    )


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a host says of itself to anybody; `where` it is, and in how many `seconds` it answered.

    `now_s` is its clock, 0 if it does not say; `seen_host` the address that it sees us come from.
    """

    where: str
    seconds: float
    now_s: float
    seen_host: str


def introduction(certificate: bytes, *, seen: str) -> wire.Authority:
    """Return the host's answer to a newcomer that it sees come from this address."""
    return wire.Authority(certificate=certificate, now_s=wall_s(), seen_host=seen)


async def greet(invite: Invite, *, timeout_s: float = 20.0) -> Greeting:
    """Find out whether the host of the invite can be reached, without becoming a member.

    Raises:
        ConfigError: it is not the host of the invite, or of another version.
        PeerError: no host that leads can be reached, or it does not keep to the protocol.
    """
    return await _at_the_first(invite, lambda place: _greet_at(place, invite, timeout_s=timeout_s))


class NotLeading(ConnectionLost):
    """The host does not lead now, or has no time for us; `hosts` may."""

    def __init__(self, refused: wire.Refused) -> None:
        super().__init__(refused.reason, hint=refused.hint)
        self.hosts = tuple((host.host, host.port) for host in refused.hosts)


async def _at_the_first(invite: Invite, ask: Callable[[Place], Awaitable[T]]) -> T:
    """Return what the first host says that leads: of the invite's, and of those that they name."""
    places = list(invite.places)
    lost: list[ConnectionLost] = []
    for place in places:  # it grows meanwhile
        try:
            return await ask(place)
        except ConnectionLost as error:  # it stands by, or is gone: another one leads
            lost.append(error)
            named = error.hosts if isinstance(error, NotLeading) else ()
            places += [host for host in named if host not in places][
                : max(0, MOST_PLACES - len(places))
            ]
    raise lost[-1]


@asynccontextmanager
async def _connected(place: Place, *, timeout_s: float) -> AsyncIterator[tuple[TcpConnection, str]]:
    """Yield a connection to the host there, and its name for messages; it has to answer in time."""
    where = f"{place[0]}:{place[1]}"
    connection = await TcpTransport(None).dial(*place, expect=None, timeout_s=timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            yield connection, where
    except TimeoutError as error:
        hint = "the host may be overloaded: try again"
        raise ConnectionLost(f"{where} does not answer", hint=hint) from error
    finally:
        await connection.close()


async def _greet_at(place: Place, invite: Invite, *, timeout_s: float) -> Greeting:
    began_at = monotonic_s()
    async with _connected(place, timeout_s=timeout_s) as (connection, where):
        said = await _checked_authority(connection, invite, where=where)
    return Greeting(where, monotonic_s() - began_at, said.now_s, said.seen_host)


async def _enrol_at(
    place: Place, invite: Invite, identity: Identity, name: str, *, timeout_s: float
) -> wire.Enrolled:
    async with _connected(place, timeout_s=timeout_s) as (connection, where):
        authority = (await _checked_authority(connection, invite, where=where)).certificate
        request = wire.Enrol(token=invite.token, public_key=identity.public_key, name=name)
        await connection.send(request)
        enrolled = await connection.receive()
    if not isinstance(enrolled, wire.Enrolled):
        _raise_unexpected(enrolled)
    if enrolled.host != peer_id_of(signed_key(connection.certificate, authority=authority)):
        raise ProtocolError(f"{where} names another host than itself")
    identity.certify(enrolled.certificate, authority)
    return enrolled


async def _checked_authority(
    connection: TcpConnection, invite: Invite, *, where: str
) -> wire.Authority:
    """Return the invite's authority, whose certificate vouches for the other side."""
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
    return answer


def _raise_unexpected(answer: wire.Message) -> NoReturn:
    if isinstance(answer, wire.Refused):
        if not answer.final:
            raise NotLeading(answer)
        raise ConfigError(answer.reason, hint=answer.hint)
    raise ProtocolError(f"the host sent {type(answer).__name__}, which is no answer to a newcomer")
