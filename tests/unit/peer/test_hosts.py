"""Which hosts a peer looks for, and which one it never follows again."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec.structs import replace
from tests.unit.memory import Network, until
from tests.unit.peer.cast import HOST_PORT
from tests.unit.peer.test_link import HELLO, WELCOME
from tests.unit.virtual import run

from atoll.errors import ConnectionLost, DamagedError, ProtocolError
from atoll.exchange.tasks import together
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.peer.home import Home
from atoll.peer.hosts import KNOWN, Hosts
from atoll.peer.link import HostLink, Manners

REEF, LAGOON = ("reef", HOST_PORT), ("lagoon", HOST_PORT + 1)
STANDBY = wire.HostAddress(host="lagoon", port=HOST_PORT + 1)


def hosts_of(enrolled, **options):
    return Hosts(
        peer=enrolled.host,
        public_key=enrolled.authority.public_key,
        first=REEF,
        **options,
    )


def test_places_are_tried_in_turn_and_the_one_that_leads_is_kept(enrolled):
    hosts = hosts_of(enrolled, others=(LAGOON, REEF))
    seen = []
    for _ in range(4):
        seen.append(hosts.place)
        hosts.look_elsewhere()
    assert seen == [REEF, LAGOON, REEF, LAGOON]
    hosts.look_elsewhere()
    hosts.follow(enrolled.leader(epoch=1, hosts=(STANDBY,)))
    assert hosts.place == LAGOON
    hosts.look_elsewhere()
    assert hosts.place == REEF


def test_news_of_the_same_leader_may_name_other_standbys(enrolled):
    hosts = hosts_of(enrolled)
    hosts.follow(enrolled.leader(epoch=1))
    hosts.follow(enrolled.leader(epoch=1, hosts=(STANDBY,)))
    assert hosts.place == REEF
    hosts.look_elsewhere()
    assert hosts.place == LAGOON


def test_a_standby_that_is_away_for_a_while_is_not_forgotten_and_others_are_in_the_end(enrolled):
    hosts = hosts_of(enrolled)
    hosts.follow(enrolled.leader(epoch=1, hosts=(STANDBY,)))
    hosts.follow(enrolled.leader(epoch=1))  # it is being started again
    hosts.look_elsewhere()
    assert hosts.place == LAGOON
    for port in range(20):
        hosts.follow(enrolled.leader(epoch=2, hosts=(wire.HostAddress(host="atoll", port=port),)))
    assert len(hosts.others) == KNOWN
    assert LAGOON in hosts.others, "it is where the leader is"


def test_a_host_that_stands_by_says_who_leads(enrolled):
    hosts = hosts_of(enrolled)
    hosts.hear_of((STANDBY,))
    assert hosts.place == REEF
    hosts.look_elsewhere()
    assert hosts.place == LAGOON
    for port in range(20):
        hosts.hear_of((wire.HostAddress(host="atoll", port=port),))
    assert len(hosts.others) == KNOWN


def test_the_hosts_own_member_stays_with_it(enrolled):
    hosts = hosts_of(enrolled, roams=False)
    hosts.follow(enrolled.leader(epoch=1, hosts=(STANDBY,)))
    hosts.look_elsewhere()
    assert hosts.place == REEF


def test_a_deposed_host_and_a_second_one_of_the_same_epoch_are_not_followed(enrolled):
    remembered = []
    hosts = hosts_of(enrolled, remember=remembered.append)
    newest = enrolled.leader(epoch=2, address="lagoon:8")
    hosts.follow(newest)
    for epoch, address in ((1, "reef:7"), (2, "reef:7")):
        with pytest.raises(ConnectionLost, match=f"leads in epoch {epoch}, .*lagoon:8 in epoch 2"):
            hosts.follow(enrolled.leader(epoch=epoch, address=address))
    here = wire.HostAddress(host=REEF[0], port=REEF[1])
    assert (hosts.led, remembered) == (newest.led, [replace(newest, hosts=(here,))])
    hosts.follow(enrolled.leader(epoch=3))


def test_a_leader_that_no_host_of_this_run_has_signed_is_a_protocol_error(enrolled):
    hosts = hosts_of(enrolled)
    stranger = Authority.create(run="00" * 32)
    leader = enrolled.leader(epoch=9)
    forged = wire.Leader(
        led=wire.Commit(
            seq=leader.led.seq,
            previous=leader.led.previous,
            body=leader.led.body,
            hash=leader.led.hash,
            signature=stranger.sign(bytes.fromhex(leader.led.hash)),
        ),
        hosts=(),
    )
    for message in (forged, wire.Leader(led=enrolled.commit(1), hosts=())):
        with pytest.raises(ProtocolError):
            hosts.follow(message)
    assert hosts.led is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.lists(st.integers(1, 6), max_size=12))
def test_the_epochs_that_a_peer_follows_only_rise(enrolled, epochs):
    followed = []
    hosts = hosts_of(enrolled, remember=followed.append)
    for number, epoch in enumerate(epochs):
        try:
            hosts.follow(enrolled.leader(epoch=epoch, address=f"reef:{number}"))
        except ConnectionLost:
            assert epoch <= max(e for e in epochs[:number])
    rising = [epoch for i, epoch in enumerate(epochs) if epoch > max(epochs[:i], default=0)]
    assert len(followed) == len(rising)


def test_what_a_peer_has_followed_outlives_it(enrolled):
    home = Home(enrolled.directory, keep_states=2)
    assert home.led() is None
    leader = enrolled.leader(epoch=4, hosts=(STANDBY,))
    home.remember_leader(leader)
    home.remember_leader(leader)
    home.close()
    again = Home(enrolled.directory, keep_states=2)
    assert again.led() == leader.led
    assert again.run_file.others == (STANDBY,)
    again.close()


def test_a_damaged_memory_of_it_is_said(enrolled):
    home = Home(enrolled.directory, keep_states=2)
    home.remember_leader(enrolled.leader(epoch=4))
    path = enrolled.directory / "led"
    for content in (path.read_bytes()[:-1], b"", wire.encode(wire.Missing())):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="led is damaged"):
            home.led()
    home.close()


# --- on the network ------------------------------------------------------------------------------


class Answering:
    """A host from a script at one of the places: it sends the same to whoever says hello."""

    def __init__(self, network, enrolled, port, *answers):
        self.network, self.enrolled, self.port = network, enrolled, port
        self.answers = answers
        self.heard = []
        self.connections = []

    async def come(self):
        transport = self.network.transport(self.enrolled.host)
        self.listener = await transport.listen(self.serve, host="h", port=self.port)

    async def go(self):
        await self.listener.close()

    async def serve(self, connection):
        self.connections.append(connection)
        self.heard.append(await connection.receive())
        for answer in self.answers:
            await connection.send(answer)
        while True:
            await connection.receive()


def linked(enrolled, *hosts_at, story):
    """Run the story beside a link that knows both places, and hosts at some of them."""

    async def main():
        network = hosts_at[0].network
        known = hosts_of(enrolled, others=(LAGOON,))
        reported = []
        transport = network.transport(enrolled.peer)
        link = HostLink(peer=enrolled.peer, transport=transport, hosts=known, emit=reported.append)
        for host in hosts_at:
            await host.come()
        task = asyncio.create_task(
            together(
                link.run(
                    Manners(
                        hello=lambda: HELLO,
                        heartbeat=wire.Heartbeat,
                        goodbye=lambda: wire.Leaving(reason="it left"),
                        every_s=1.0,
                        silent_s=10.0,
                        hear=lambda _: None,
                    )
                )
            )
        )
        try:
            await story(link, known, reported)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for host in hosts_at:
                await host.go()

    run(main())


def test_when_the_leader_is_gone_the_standby_is_found(enrolled):
    network = Network()
    old = Answering(network, enrolled, REEF[1], enrolled.leader(epoch=1, hosts=(STANDBY,)), WELCOME)
    new = Answering(network, enrolled, LAGOON[1], enrolled.leader(epoch=2), WELCOME)

    async def story(link, known, reported):
        await until(lambda: link.board.session == 1)
        await old.go()
        await old.connections[0].close()
        await until(lambda: link.board.session == 2)
        assert known.place == LAGOON
        assert known.led == enrolled.leader(epoch=2).led

    linked(enrolled, old, new, story=story)


def test_a_host_that_stands_by_is_passed_over(enrolled):
    network = Network()
    standing_by = wire.Refused(reason="this host does not lead the run now", final=False)
    idle = Answering(network, enrolled, REEF[1], standing_by)
    leader = Answering(network, enrolled, LAGOON[1], enrolled.leader(epoch=1), WELCOME)

    async def story(link, known, reported):
        await until(lambda: link.board.session == 1)
        assert known.place == LAGOON
        assert len(idle.heard) == 1

    linked(enrolled, idle, leader, story=story)


def test_a_deposed_host_that_still_answers_is_left_for_the_new_one(enrolled):
    network = Network()
    deposed = Answering(network, enrolled, REEF[1], enrolled.leader(epoch=1), WELCOME)
    leader = Answering(network, enrolled, LAGOON[1], enrolled.leader(epoch=2), WELCOME)

    async def story(link, known, reported):
        known.led = leader.answers[0].led  # followed before
        await until(lambda: link.board.session == 1)
        assert known.place == LAGOON
        assert "leads in epoch 1" in reported[0].reason

    linked(enrolled, deposed, leader, story=story)


def test_a_host_that_does_not_say_that_it_leads_is_not_listened_to(enrolled):
    network = Network()
    silent = Answering(network, enrolled, REEF[1], WELCOME)
    leader = Answering(network, enrolled, LAGOON[1], enrolled.leader(epoch=1), WELCOME)

    async def story(link, known, reported):
        await until(lambda: link.board.session == 1)
        assert known.place == LAGOON
        assert "does not say in which epoch it leads" in reported[0].reason

    linked(enrolled, silent, leader, story=story)
