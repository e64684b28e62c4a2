"""The connection to the host, which comes and goes, in virtual time."""

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace
from tests.unit.memory import Network, until
from tests.unit.peer.cast import HOST_PORT
from tests.unit.virtual import now, run

from atoll.errors import ConfigError
from atoll.events import Disconnected
from atoll.exchange.tasks import together
from atoll.ids import RoundId, digest_of, peer_id_of
from atoll.net import wire
from atoll.peer.hosts import Hosts
from atoll.peer.link import LONGEST_S, SHORTEST_S, HostLink, Manners, retry_s

HELLO = wire.Hello(
    protocol=wire.PROTOCOL,
    run=digest_of(b"run"),
    name="anna",
    trains=True,
    listen_host="",
    listen_port=0,
    codecs=(),
    round=RoundId(0),
    state=digest_of(b"state"),
)
WELCOME = wire.Welcome(
    committed=RoundId(0),
    base_round=RoundId(0),
    base_state=digest_of(b"state"),
    dataset=digest_of(b"dataset"),
    held=(),
    reset=False,
    sources=(),
)
PLAN = wire.Plan(
    round=RoundId(1),
    version=1,
    fragment=0,
    first_step=0,
    codec="fp32",
    update_codec="fp32",
    reductions=(),
    leases=(),
    sources=(wire.Address(peer="b" * 32, host="h", port=1),),
)
CLOSED = wire.Closed(round=RoundId(1), roster_version=1)
STOP = wire.Stop(reason="the run is complete", complete=True)
SILENT_S = 10.0


class Linked:
    """A link, and a host from a script: it greets with a welcome, and keeps what it hears."""

    def __init__(self, enrolled, *, welcome=WELCOME):
        self.enrolled = enrolled
        self.network = Network()
        self.leader = enrolled.leader(epoch=1)
        self.welcome = welcome
        self.heard = []
        self.hellos_at = []
        self.handled = []
        self.reported = []
        self.connections = []
        self.listener = None
        self.link = HostLink(
            peer=enrolled.peer,
            transport=self.network.transport(enrolled.peer),
            hosts=Hosts(
                peer=enrolled.host,
                public_key=enrolled.authority.public_key,
                first=("reef", HOST_PORT),
            ),
            emit=self.reported.append,
        )
        self.board = self.link.board

    @property
    def cuts(self):
        return [event for event in self.reported if isinstance(event, Disconnected)]

    async def host_comes(self):
        self.listener = await self.network.transport(self.enrolled.host).listen(
            self.serve, host="h", port=HOST_PORT
        )

    async def host_goes(self):
        await self.listener.close()

    async def serve(self, connection):
        self.connections.append(connection)
        assert isinstance(await connection.receive(), wire.Hello)
        self.hellos_at.append(now())
        await connection.send(self.leader)
        await connection.send(self.welcome)
        while True:
            self.heard.append(await connection.receive())

    async def host_says(self, message):
        await self.connections[-1].send(message)
        for _ in range(5):
            await asyncio.sleep(0)

    def start(self):
        running = self.link.run(
            Manners(
                hello=lambda: HELLO,
                heartbeat=lambda: wire.Heartbeat(step=3),
                goodbye=lambda: wire.Leaving(reason="it left"),
                every_s=1.0,
                silent_s=SILENT_S,
                hear=self.handled.append,
            )
        )
        self.running = asyncio.create_task(together(running))

    async def stop(self):
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        if self.listener is not None:
            await self.listener.close()


def linked(enrolled, story, **options):
    async def main():
        link = Linked(enrolled, **options)
        await link.host_comes()
        link.start()
        await until(lambda: link.board.session)
        try:
            return await story(link)
        finally:
            await link.stop()

    return run(main())


def test_what_the_host_says_is_on_the_board(enrolled):
    async def story(link):
        board = link.board
        assert (board.session, board.dataset) == (1, WELCOME.dataset)
        assert board.base == (0, WELCOME.base_state)
        await link.host_says(PLAN)
        await link.host_says(CLOSED)
        assert (board.plans, board.closed) == ({PLAN.round: PLAN}, {CLOSED.round: CLOSED})
        assert board.sources == PLAN.sources
        commit = enrolled.commit(1, b"update")
        await link.host_says(commit)
        assert board.commits[RoundId(1)].updates[0].digest == digest_of(b"update")
        await link.host_says(wire.Resync(round=RoundId(5), state=digest_of(b"five")))
        assert board.base == (5, digest_of(b"five"))
        await link.host_says(wire.Heartbeat())
        assert link.handled[:5] == [link.leader, WELCOME, PLAN, CLOSED, commit]

    linked(enrolled, story)


def test_what_we_say_reaches_the_host_and_so_do_signs_of_life(enrolled):
    async def story(link):
        message = wire.Unreachable(round=RoundId(1), reducer="b" * 32)
        link.link.send(message)
        await asyncio.sleep(2.5)
        assert link.heard == [message, wire.Heartbeat(step=3), wire.Heartbeat(step=3)]

    linked(enrolled, story)


def test_who_is_waiting_is_woken_by_a_message(enrolled):
    async def story(link):
        waiting = asyncio.create_task(link.board.wait_for(lambda: link.board.plans.get(PLAN.round)))
        await asyncio.sleep(1)
        assert not waiting.done()
        await link.host_says(PLAN)
        assert await waiting == PLAN

    linked(enrolled, story)


def test_a_lost_connection_is_made_anew_and_the_plan_asked_for_again(enrolled):
    async def story(link):
        await link.host_says(PLAN)
        link.network.cut(enrolled.host)
        await asyncio.sleep(0)
        link.link.send(wire.Heartbeat())  # nobody hears it
        await until(lambda: link.board.session == 2)
        assert link.board.plans == {}
        assert now() == pytest.approx(retry_s(enrolled.peer, 0), abs=0.05)
        (cut,) = link.cuts
        assert "the connection broke" in cut.reason

    linked(enrolled, story)


def test_a_host_that_is_away_is_tried_less_and_less_often(enrolled):
    async def main():
        link = Linked(enrolled)
        link.start()
        expected_at = sum(retry_s(enrolled.peer, failures) for failures in range(8))
        await asyncio.sleep(expected_at - 0.1)
        assert len(link.cuts) == 1, "said once"
        await link.host_comes()
        await until(lambda: link.board.session)
        assert now() == pytest.approx(expected_at, abs=0.05)
        await link.stop()

    run(main())


@pytest.mark.parametrize(("failures", "longest_s"), [(0, 1.0), (1, 2.0), (3, 8.0), (1000, 8.0)])
def test_peers_that_lost_their_host_in_one_moment_come_back_spread_over_time(failures, longest_s):
    """Two thousand of them: of ten equal parts of the time, each has its tenth."""
    waits = [retry_s(peer_id_of(b"%d" % k), failures) for k in range(2000)]
    assert min(waits) >= SHORTEST_S
    assert max(waits) <= longest_s <= LONGEST_S
    tenths = Counter(int(10 * (s - SHORTEST_S) / (longest_s - SHORTEST_S)) for s in waits)
    assert set(tenths) == set(range(10))
    assert max(tenths.values()) < 300


def test_who_fails_with_another_fails_not_with_the_same_one_again():
    one, *others = (peer_id_of(b"%d" % k) for k in range(500))
    near = [
        other for other in others if abs(retry_s(one, 3) - retry_s(other, 3)) < (LONGEST_S / 100)
    ]
    assert near
    assert any(abs(retry_s(one, 4) - retry_s(other, 4)) > LONGEST_S / 100 for other in near)


def test_a_host_that_is_frozen_counts_as_lost(enrolled):
    async def story(link):
        await until(lambda: len(link.hellos_at) == 2)
        assert link.hellos_at[1] == pytest.approx(SILENT_S + retry_s(enrolled.peer, 0), abs=0.1)
        assert "it does not answer" in link.cuts[0].reason

    linked(enrolled, story)


def test_a_new_hello_can_be_asked_for(enrolled):
    async def story(link):
        await link.link.reconnect()
        await until(lambda: link.board.session == 2)
        assert len(link.hellos_at) == 2

    linked(enrolled, story)


def test_without_a_connection_nothing_is_sent_and_reconnecting_waits_for_one(enrolled):
    async def main():
        link = Linked(enrolled)
        link.link.send(wire.Heartbeat())
        reconnecting = asyncio.create_task(link.link.reconnect())
        await asyncio.sleep(0)
        assert not reconnecting.done()
        link.board.session += 1
        link.board.notify()
        await reconnecting

    run(main())


def test_local_work_that_was_void_once_is_void_until_it_is_dropped(enrolled):
    async def story(link):
        assert link.board.reset
        link.welcome = WELCOME
        await link.link.reconnect()
        await until(lambda: link.board.session == 2)
        assert link.board.reset

    linked(enrolled, story, welcome=replace(WELCOME, reset=True))


@pytest.mark.parametrize("stop", [STOP, wire.Stop(reason="back soon", complete=False)])
def test_a_host_that_stops_is_waited_for(enrolled, stop):
    """For good, too: we may lack the end of the run, and the host may just have been restarted."""

    async def story(link):
        await link.host_says(stop)
        assert link.board.stop == stop
        await link.host_goes()
        await asyncio.sleep(30)
        assert not link.running.done()
        await link.host_comes()
        await until(lambda: link.board.session == 2)

    linked(enrolled, story)


def test_a_refusal_for_good_ends_the_peer(enrolled):
    async def story(link):
        await link.host_says(wire.Refused(reason="other run", hint="join again"))
        with pytest.raises(ConfigError, match="turned us away: other run") as caught:
            await link.running
        assert caught.value.hint == "join again"

    linked(enrolled, story)


@pytest.mark.parametrize(
    "message", [wire.Refused(reason="not now", final=False), wire.Missing(), wire.Taken(slice=0)]
)
def test_a_refusal_for_now_or_nonsense_costs_the_connection_only(enrolled, message):
    async def story(link):
        await link.host_says(message)
        await until(lambda: link.board.session == 2)
        assert not link.running.done()

    linked(enrolled, story)


def test_a_commit_that_the_host_did_not_sign_is_not_believed(enrolled):
    async def story(link):
        await link.host_says(replace(enrolled.commit(1, b"update"), signature=bytes(64)))
        assert link.board.commits == {}
        await until(lambda: link.board.session == 2)
        assert "did not sign" in link.cuts[0].reason

    linked(enrolled, story)


def test_whoever_leaves_says_so(enrolled):
    async def story(link):
        link.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await link.running
        assert link.heard == [wire.Leaving(reason="it left")]

    linked(enrolled, story)
