"""A newcomer and a host, over real sockets; the host's side is written out here."""

import asyncio

import pytest
from msgspec.structs import replace

from atoll.clock import wall_s
from atoll.errors import AtollError, ConfigError, ConnectionLost, ProtocolError
from atoll.ids import Digest
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.enrol import MOST_PLACES, Greeting, enrol, greet, introduction
from atoll.net.identity import Identity, verify
from atoll.net.invite import Invite, new_token
from atoll.net.transport import TcpTransport

TOKEN = new_token()


class Host:
    """Answers a newcomer as it should; a test replaces the answer that it is about."""

    def __init__(self, authority: Authority, identity: Identity):
        self.authority = authority
        self.identity = identity
        self.tokens = []
        self.answers = {wire.GetAuthority: self.vouch, wire.Enrol: self.sign}

    def vouch(self, request):
        assert request.protocol == wire.PROTOCOL
        return introduction(self.authority.certificate, seen="198.51.100.7")

    def sign(self, request):
        return wire.Enrolled(
            certificate=self.authority.sign_member(request.public_key, request.name),
            run_config=b"{}",
            host=self.identity.peer_id,
            built_in=self.identity.peer_id,
        )

    async def serve(self, connection):
        assert connection.peer is None
        while True:
            request = await connection.receive()
            if isinstance(request, wire.Enrol):
                self.tokens.append(request.token)
            await connection.send(self.answers[type(request)](request))


@pytest.fixture
def host(authority, anna):
    return Host(authority, anna)


def enrol_with(host, newcomer, *, invited_by=None, timeout_s=5.0):
    """Return what `enrol` returns; the invite names the authority `invited_by`."""

    async def scenario():
        listener = await TcpTransport(host.identity).listen(host.serve, host="127.0.0.1", port=0)
        invite = Invite(
            host="127.0.0.1",
            port=listener.port,
            authority=(invited_by or host.authority).digest,
            token=TOKEN,
        )
        try:
            return await enrol(invite, newcomer, "zoe", timeout_s=timeout_s)
        finally:
            await listener.close()

    return asyncio.run(scenario())


def test_a_newcomer_becomes_a_member(host, anna, authority):
    newcomer = Identity.create()
    enrolled = enrol_with(host, newcomer)
    assert host.tokens == [TOKEN]
    assert enrolled.host == anna.peer_id
    assert newcomer.certificate == enrolled.certificate
    assert newcomer.authority == authority.certificate

    async def scenario():
        seen = []

        async def serve(connection):
            seen.append(connection.peer)
            await connection.receive()

        listener = await TcpTransport(anna).listen(serve, host="127.0.0.1", port=0)
        connection = await TcpTransport(newcomer).dial(
            "127.0.0.1", listener.port, expect=enrolled.host, timeout_s=5
        )
        await connection.send(wire.Missing())
        await connection.close()
        await listener.close()
        assert seen == [newcomer.peer_id]

    asyncio.run(scenario())


def greeting_of(host, *, invited_by=None) -> Greeting:
    async def scenario():
        listener = await TcpTransport(host.identity).listen(host.serve, host="127.0.0.1", port=0)
        authority = (invited_by or host.authority).digest
        invite = Invite(host="127.0.0.1", port=listener.port, authority=authority, token=TOKEN)
        try:
            return await greet(invite, timeout_s=5.0)
        finally:
            await listener.close()

    return asyncio.run(scenario())


def test_a_greeting_tells_the_clock_and_our_address_and_uses_no_invite(host):
    greeting = greeting_of(host)
    assert greeting.where.startswith("127.0.0.1:")
    assert abs(greeting.now_s - wall_s()) < 300
    assert greeting.seen_host == "198.51.100.7"
    assert host.tokens == []


def test_a_stranger_in_the_place_of_the_host_is_not_greeted(host):
    with pytest.raises(ConfigError, match="is not the host of this invite"):
        greeting_of(host, invited_by=Authority.create(run=Digest("0" * 64)))


def refused(host, error, **how) -> AtollError:
    """Return the error, after a check that the newcomer is still one."""
    newcomer = Identity.create()
    with pytest.raises(error) as caught:
        enrol_with(host, newcomer, **how)
    assert newcomer.certificate == newcomer.authority == b""
    return caught.value


def test_the_host_of_another_run_learns_no_token(host, other_authority):
    error = refused(host, ConfigError, invited_by=other_authority)
    assert "not the host of this invite" in str(error)
    assert error.hint
    assert host.tokens == []


def test_one_who_shows_the_right_authority_but_has_no_key_of_it_learns_no_token(authority, eve):
    impostor = Host(authority, eve)  # the authority's certificate is public
    error = refused(impostor, ConfigError)
    assert "another authority" in str(error)
    assert impostor.tokens == []


def test_a_refusal_is_told_with_its_hint(host):
    host.answers[wire.Enrol] = lambda _: wire.Refused(reason="used up", hint="ask for another")
    error = refused(host, ConfigError)
    assert (str(error), error.hint) == ("used up", "ask for another")
    host.answers[wire.GetAuthority] = lambda _: wire.Refused(reason="protocol 2", hint="update")
    error = refused(host, ConfigError)
    assert (str(error), error.hint) == ("protocol 2", "update")


def test_a_certificate_for_another_key_or_by_another_authority_is_refused(
    host, other_authority, ben
):
    def enrolled(certificate):
        peer = host.identity.peer_id
        return wire.Enrolled(certificate=certificate, run_config=b"", host=peer, built_in=peer)

    def for_another_key(request):
        return enrolled(ben.certificate)

    def by_another_authority(request):
        return enrolled(other_authority.sign_member(request.public_key, "zoe"))

    for answer in (for_another_key, by_another_authority):
        host.answers[wire.Enrol] = answer
        refused(host, ProtocolError)


def test_a_host_that_names_another_host_is_refused(host, ben):
    host.answers[wire.Enrol] = lambda request: wire.Enrolled(
        certificate=host.authority.sign_member(request.public_key, "zoe"),
        run_config=b"",
        host=ben.peer_id,
        built_in=ben.peer_id,
    )
    assert "another host" in str(refused(host, ProtocolError))


@pytest.mark.parametrize("kind", [wire.GetAuthority, wire.Enrol])
def test_an_answer_that_is_none_is_a_protocol_error(host, kind):
    host.answers[kind] = lambda _: wire.Missing()
    assert "Missing" in str(refused(host, ProtocolError))


def test_a_host_that_falls_silent_is_given_up(host):
    async def silent(connection):
        await asyncio.Event().wait()

    host.serve = silent
    error = refused(host, ConnectionLost, timeout_s=0.2)
    assert "does not answer" in str(error)
    assert error.hint


def test_the_member_and_the_authority_have_different_keys(host):
    assert not verify(host.identity.public_key, b"x", host.authority.sign(b"x"))


def test_a_newcomer_asks_all_hosts_that_it_hears_of_until_one_leads(host, anna):
    """The first place is gone; one stands by and says who leads; one says that it does not know."""

    async def scenario():
        def standing_by(*leaders):
            hosts = tuple(wire.HostAddress(host="127.0.0.1", port=port) for port in leaders)

            async def serve(connection):
                reason = "it does not lead now"
                await connection.send(wire.Refused(reason=reason, final=False, hosts=hosts))

            return serve

        async def listen(serve):
            return await TcpTransport(anna).listen(serve, host="127.0.0.1", port=0)

        gone = await listen(standing_by())
        await gone.close()
        leader = await listen(host.serve)
        helpful = await listen(standing_by(gone.port, leader.port))
        helpless = await listen(standing_by(gone.port))
        authority = host.authority.digest
        invite = Invite(host="127.0.0.1", port=gone.port, authority=authority, token=TOKEN)

        def by(*listeners):
            return replace(invite, others=tuple(("127.0.0.1", each.port) for each in listeners))

        newcomer = Identity.create()
        try:
            with pytest.raises(ConnectionLost, match="it does not lead now"):
                await enrol(by(helpless), newcomer, "zoe", timeout_s=5.0)
            assert host.tokens == []
            await enrol(by(helpless, leader), newcomer, "zoe", timeout_s=5.0)
            await enrol(by(helpful), newcomer, "zoe", timeout_s=5.0)
        finally:
            for each in (leader, helpful, helpless):
                await each.close()
        assert newcomer.certificate

    asyncio.run(scenario())
    assert host.tokens == [TOKEN, TOKEN]


def test_a_host_that_sends_newcomers_on_and_on_is_given_up(anna, authority):
    async def scenario():
        asked = 0

        async def serve(connection):
            nonlocal asked
            asked += 1
            hosts = (wire.HostAddress(host=f"127.0.0.{asked + 1}", port=listener.port),)
            await connection.send(wire.Refused(reason="not I", final=False, hosts=hosts))

        listener = await TcpTransport(anna).listen(serve, host="0.0.0.0", port=0)
        invite = Invite(
            host="127.0.0.1", port=listener.port, authority=authority.digest, token=TOKEN
        )
        try:
            with pytest.raises(ConnectionLost, match="not I"):
                await enrol(invite, Identity.create(), "zoe", timeout_s=5.0)
        finally:
            await listener.close()
        assert asked == MOST_PLACES

    asyncio.run(scenario())
