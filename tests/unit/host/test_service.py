"""The host on a network in memory, with real journals on the disk and members from a script."""

import asyncio
import resource
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, CONFIG, SYNC, name, state
from tests.unit.memory import Network, until
from tests.unit.virtual import now, run

from atoll import events
from atoll.config import canonical, run_digest
from atoll.errors import ConnectionLost, DeposedError, RunError
from atoll.host import session
from atoll.host.lead import Alone
from atoll.host.service import FAREWELL_S, HELLO_S, PROBE_S, Host
from atoll.host.setup import open_run
from atoll.ids import RoundId, digest_of
from atoll.net import records, wire
from atoll.net.identity import Identity, signed_key
from atoll.net.invite import Invite

PORT = 7
ONE_ROUND = replace(CONFIG, sync=replace(SYNC, rounds=1))


class Serving:
    """A host at work, and what it reported."""

    def __init__(self, path, network, config):
        self.config = config
        self.network = network
        self.directory = open_run(path, config, dataset=digest_of(b"dataset"))
        self.reported = []
        self.host = Host(
            self.directory.journal,
            authority=self.directory.authority,
            transport=network.transport(self.directory.identity.peer_id),
            identity=self.directory.identity,
            advertise="reef",
            emit=self.reported.append,
        )

    async def start(self):
        started = asyncio.Event()
        self.task = asyncio.create_task(self.host.serve(host="h", port=PORT, started=started))
        await started.wait()

    async def end(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.directory.close()

    async def token(self, *, uses=10, valid_s=3600.0):
        return Invite.parse(await self.host.make_invite(uses=uses, valid_s=valid_s)).token

    def recorded(self, kind):
        history = [entry.record for entry in self.directory.journal.entries]
        return [record for record in history if isinstance(record, kind)]

    async def admitted(self, label="anna", **listens):
        """Return a member that has enrolled, and may say hello."""
        member = Player(self, Identity.create(), label, **listens)
        assert isinstance(await member.enrol(await self.token()), wire.Enrolled)
        return member


class Player:
    """A member from a script: it says what the test says."""

    def __init__(self, serving, identity, label, *, listens=True, trains=True):
        self.serving = serving
        self.trains = trains
        self.identity = identity
        self.peer = identity.peer_id
        self.label = label
        self.listen_port = 0
        self.listens = listens

    @property
    def transport(self):
        return self.serving.network.transport(self.peer)

    async def enrol(self, token):
        """Return the answer of the host to a stranger with our key."""
        connection = await self.serving.network.transport(None).dial(
            "reef", PORT, expect=None, timeout_s=1
        )
        await connection.send(wire.GetAuthority(protocol=wire.PROTOCOL))
        authority = await connection.receive()
        assert authority.certificate == self.serving.directory.authority.certificate
        key = self.identity.public_key
        await connection.send(wire.Enrol(token=token, public_key=key, name=self.label))
        answer = await connection.receive()
        await connection.close()
        return answer

    def hello(self, **changes):
        return replace(
            wire.Hello(
                protocol=wire.PROTOCOL,
                run=run_digest(self.serving.config),
                name=self.label,
                trains=self.trains,
                listen_host="",
                listen_port=self.listen_port,
                codecs=("int8",),
                round=RoundId(0),
                state=state(0),
            ),
            **changes,
        )

    async def connect(self):
        if self.listens and not self.listen_port:

            async def answer(connection):
                await connection.receive()

            self.listen_port = (await self.transport.listen(answer, host="h", port=0)).port
        self.connection = await self.transport.dial("reef", PORT, expect=None, timeout_s=1)

    async def come(self, **changes):
        """Say hello and return the welcome."""
        await self.connect()
        await self.say(self.hello(**changes))
        return await self.hears(wire.Welcome)

    async def say(self, message):
        await self.connection.send(message)

    async def hears(self, kind):
        """Return the next message of this kind; the others are nothing to us."""
        while not isinstance(message := await self.connection.receive(), kind):
            pass
        return message

    async def take_part(self, *, round_id=1):
        """Contribute to the open round as the only one, and reduce it; return the commit."""
        plan = await self.hears(wire.Plan)
        num_slices = plan.reductions[-1].stop
        digests = tuple(name("slice", k) for k in range(num_slices))
        await self.say(
            wire.Contribution(
                round=plan.round,
                leases=tuple(lease.id for lease in plan.leases),
                num_steps=2,
                mean_loss=2.0,
                digests=digests,
            )
        )
        for k, digest in enumerate(digests):
            await self.say(
                wire.Delivered(
                    round=plan.round,
                    contributor=self.peer,
                    slice=k,
                    digest=digest,
                    squared_norm=1.0,
                )
            )
        version = (await self.hears(wire.Closed)).roster_version
        updates = tuple(name("update", k) for k in range(num_slices))
        for k, digest in enumerate(updates):
            await self.say(
                wire.Reduced(round=plan.round, roster_version=version, slice=k, digest=digest)
            )
        await self.say(wire.Held(round=plan.round, roster_version=version, digests=updates))
        return await self.hears(wire.Commit)

    async def at_state(self, round_id=0):
        await self.say(wire.AtState(round=RoundId(round_id), state=state(round_id), device="cpu"))


@asynccontextmanager
async def serving(path, *, config=CONFIG, network=None):
    host = Serving(path, network or Network(), config)
    await host.start()
    try:
        yield host
    finally:
        await host.end()


async def read_on(connection):
    while True:
        await connection.receive()


def built_in_has_lapsed(host):
    """Let the host wait no more for its built-in member, which never came."""
    host.host.run.started_at -= SYNC.reconnect_s


@contextmanager
def full_disk():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- coming in -----------------------------------------------------------------------------------


def test_a_newcomer_with_a_good_invite_becomes_a_member(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = Player(host, Identity.create(), "anna")
            token = await host.token(uses=1)
            enrolled = await member.enrol(token)
            authority = host.directory.authority.certificate
            key = signed_key(enrolled.certificate, authority=authority)
            assert key == member.identity.public_key
            assert enrolled.run_config == canonical(CONFIG)
            assert enrolled.host == host.directory.identity.peer_id
            assert enrolled.built_in == host.directory.built_in.peer_id
            (admitted,) = host.recorded(records.Admitted)
            assert (admitted.peer, admitted.name) == (member.peer, "anna")
            # The same key needs no new invite; another one finds this one used up.
            assert isinstance(await member.enrol("gone"), wire.Enrolled)
            assert len(host.recorded(records.Admitted)) == 1
            refused = await Player(host, Identity.create(), "ben").enrol(token)
            assert refused.reason == "this invite has been used up"

    run(main())


@pytest.mark.parametrize(("valid_s", "reason"), [(-1.0, "has expired"), (None, "does not know")])
def test_a_newcomer_with_a_bad_invite_is_refused(tmp_path, valid_s, reason):
    async def main():
        async with serving(tmp_path) as host:
            token = "0" * 32 if valid_s is None else await host.token(valid_s=valid_s)
            refused = await Player(host, Identity.create(), "anna").enrol(token)
            assert reason in refused.reason
            assert host.recorded(records.Admitted) == []

    run(main())


def test_an_invite_names_the_host_and_who_signs_there(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            invite = Invite.parse(await host.host.make_invite(uses=1, valid_s=1.0))
            assert (invite.host, invite.port) == ("reef", PORT)
            assert invite.authority == host.directory.authority.digest
            (made,) = host.recorded(records.InviteMade)
            assert invite.token not in str(made)

    run(main())


def test_a_stranger_of_another_protocol_is_told_before_it_shows_its_token(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            stranger = await host.network.transport(None).dial("h", PORT, expect=None, timeout_s=1)
            await stranger.send(wire.GetAuthority(protocol=99))
            assert "you speak protocol 99" in (await stranger.receive()).reason
            with pytest.raises(ConnectionLost):
                await stranger.receive()

    run(main())


def test_a_stranger_that_sends_what_is_for_members_is_cut_off(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            stranger = await host.network.transport(None).dial("h", PORT, expect=None, timeout_s=1)
            await stranger.send(wire.Heartbeat())
            with pytest.raises(ConnectionLost):
                await stranger.receive()
            assert not host.task.done()

    run(main())


# --- hello ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": 99}, "you speak protocol 99"),
        ({"run": digest_of(b"other")}, "your run is"),
        ({"codecs": ()}, "codecs that you lack"),
        ({"round": RoundId(5)}, "your state is of round 5"),
    ],
)
def test_a_member_that_cannot_take_part_is_told_why(tmp_path, change, reason):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            await member.say(member.hello(**change))
            assert reason in (await member.hears(wire.Refused)).reason
            with pytest.raises(ConnectionLost):
                await member.hears(wire.Welcome)
            assert member.peer not in host.host.run.membership

    run(main())


def test_one_with_a_certificate_that_the_host_has_not_admitted_is_no_member(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = Player(host, Identity.create(), "eve")
            await member.connect()
            await member.say(member.hello())
            assert "you are no member" in (await member.hears(wire.Refused)).reason

    run(main())


@pytest.mark.parametrize("silent", [True, False])
def test_a_member_that_does_not_begin_with_hello_is_cut_off(tmp_path, silent):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            if not silent:
                await member.say(wire.Heartbeat())
            with pytest.raises(ConnectionLost):
                await member.connection.receive()
            assert now() == pytest.approx(HELLO_S if silent else 0)

    run(main())


@pytest.mark.parametrize("reachable", [True, False])
def test_the_host_finds_out_who_can_be_reached(tmp_path, reachable):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            if not reachable:
                host.network.unreachable.add(member.listen_port)
            await member.say(member.hello())
            await member.hears(wire.Welcome)
            membership = host.host.run.membership
            await until(lambda: membership.get(member.peer).probed)
            address = wire.Address(peer=member.peer, host="reef", port=member.listen_port)
            assert membership.get(member.peer).address == (address if reachable else None)

    run(main())


def test_one_that_listens_nowhere_or_somewhere_else_is_taken_at_its_word_and_tried(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            nowhere = await host.admitted(listens=False)
            await nowhere.come()
            member = await host.admitted("ben")
            await member.come(listen_host="atoll.example")
            membership = host.host.run.membership
            await until(lambda: membership.get(member.peer).probed)
            assert membership.get(nowhere.peer).address is None
            assert membership.get(member.peer).address.host == "atoll.example"

    run(main())


def test_the_built_in_member_is_known_by_its_key_and_needs_no_probe(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = Player(host, host.directory.built_in, "built-in", listens=False)
            member.listen_port = 99
            await member.come(trains=False)
            membership = host.host.run.membership
            await until(lambda: membership.get(member.peer).probed)
            found = membership.get(member.peer)
            assert (found.peer == host.host.run.built_in, found.address.port) == (True, 99)
            assert member.peer != BUILT_IN

    run(main())


# --- sessions ------------------------------------------------------------------------------------


ANNAS, ANOTHER = "a process", "another process"


async def beats(member):
    """Say now and then that we are alive, until the host has had enough of us."""
    with suppress(ConnectionLost):
        while True:
            await member.say(wire.Heartbeat())
            await asyncio.sleep(SYNC.heartbeat_s)


def test_a_second_process_with_a_members_key_is_turned_away_and_the_first_stays(tmp_path):
    """Somebody has copied a peer's directory; both would cut each other off for ever."""

    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted(listens=False)
            await member.come(instance=ANNAS)
            beating = asyncio.create_task(beats(member))
            await asyncio.sleep(200)
            copy = Player(host, member.identity, "anna", listens=False)
            await copy.connect()
            await copy.say(copy.hello(instance=ANOTHER))
            refused = await copy.hears(wire.Refused)
            assert refused.final
            assert "in use already, by a peer at 127.0.0.1 that came 3 min 2" in refused.reason
            assert "a directory of its own" in refused.hint
            assert "10.0 s later this one is let in" in refused.hint
            (warned,) = [e for e in host.reported if isinstance(e, events.Warned)]
            assert warned.text == f"a second anna was turned away: {refused.reason}"
            assert not [e for e in host.reported if isinstance(e, events.PeerLeft)]
            # The first one's line breaks: it is known when it comes back, and comes in at once.
            await member.connection.close()
            was_at = now()
            await member.come(instance=ANNAS)
            assert now() - was_at < SYNC.heartbeat_s
            beating.cancel()

    run(main())


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_process_takes_the_place_of_one_that_is_gone_without_a_word(tmp_path, is_cut):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted(listens=False)
            await member.come(instance=ANNAS)
            await member.say(wire.Heartbeat())  # its last one may be on its way
            heir = Player(host, member.identity, "anna", listens=False)
            was_at = now()
            coming = asyncio.create_task(heir.come(instance=ANOTHER))
            await asyncio.sleep(0.1)
            await member.say(wire.Heartbeat())
            if is_cut:
                await asyncio.sleep(SYNC.heartbeat_s)
                await member.connection.close()
            await coming
            assert now() - was_at <= 3 * SYNC.heartbeat_s

    run(main())


def test_a_second_connection_of_a_member_replaces_the_first(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.come()
            first = member.connection
            await member.come()
            with pytest.raises(ConnectionLost):
                await read_on(first)
            assert host.host.run.membership.is_connected(member.peer)
            await member.at_state()
            assert await member.hears(wire.Plan)
            reasons = [e.reason for e in host.reported if isinstance(e, events.PeerLeft)]
            assert reasons == ["it connected anew"]

    run(main())


def test_a_member_that_breaks_off_is_away_and_its_reason_reported(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.come()
            member.connection.cut()
            await until(lambda: not host.host.run.membership.is_connected(member.peer))
            left = host.reported[-1]
            assert (left.peer, left.name, left.reason) == (
                member.peer,
                "anna",
                "the connection broke",
            )

    run(main())


def test_heartbeats_come_and_a_member_that_sends_none_is_dropped(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.come()
            for second in range(5):
                await member.hears(wire.Heartbeat)
                assert now() == pytest.approx(second * SYNC.heartbeat_s, abs=1.2)
            with pytest.raises(ConnectionLost):
                await read_on(member.connection)
            assert now() == pytest.approx(SYNC.silent_s, abs=0.5)
            assert host.reported[-1].reason == "silent for more than 10 s"

    run(main())


def test_a_member_that_reads_nothing_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "MAX_QUEUED", 20)

    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.come()
            beating = asyncio.create_task(beats(member))
            await until(lambda: not host.host.run.membership.is_connected(member.peer))
            beating.cancel()
            assert host.reported[-1].reason == "it does not read what we send"

    async def beats(member):
        while True:
            await member.say(wire.Heartbeat())
            await asyncio.sleep(1)

    run(main())


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_from_the_first_member_to_its_end(tmp_path):
    async def main():
        async with serving(tmp_path, config=ONE_ROUND) as host:
            member = await host.admitted()
            built_in_has_lapsed(host)
            welcome = await member.come()
            assert (welcome.committed, welcome.held) == (0, ())
            await member.at_state()
            commit = await member.take_part()
            key = host.directory.authority.public_key
            assert records.committed(commit, public_key=key).round == 1
            (entry,) = [e for e in host.directory.journal.entries if e.seq == commit.seq]
            assert entry.to_commit() == replace(commit, counted=None)
            (lease,) = host.recorded(records.Leased)[0].leases
            assert commit.counted.leases == (lease.id,)
            await member.at_state(1)
            stop = await member.hears(wire.Stop)
            assert stop.complete
            await asyncio.sleep(3)
            assert not host.task.done()  # the member may still lack something
            await member.connection.close()
            await host.task
            assert now() < FAREWELL_S
            assert host.reported[-2] == events.Stopped(reason="the run is complete")

    run(main())


@pytest.mark.parametrize(
    ("beats", "lasts_s"), [(True, FAREWELL_S), (False, SYNC.silent_s + SYNC.reconnect_s)]
)
def test_a_member_that_does_not_go_does_not_keep_the_host_for_ever(tmp_path, beats, lasts_s):
    async def main():
        async with serving(tmp_path, config=ONE_ROUND) as host:
            member = await host.admitted()
            built_in_has_lapsed(host)
            await member.come()
            await member.at_state()
            await member.take_part()
            await member.at_state(1)
            await member.hears(wire.Stop)
            while beats and not host.task.done():
                await member.hears(wire.Heartbeat)  # it may still be fetching
                with suppress(ConnectionLost):
                    await member.say(wire.Heartbeat())
                await asyncio.sleep(1)
                if now() > FAREWELL_S:
                    break
            await host.task
            assert now() == pytest.approx(lasts_s, abs=1.5)

    run(main())


def test_a_host_goes_with_the_last_member_unless_somebody_may_still_have_to_find_it(tmp_path):
    """Whoever it has let in itself knows where it is; of whoever came before, it cannot know."""

    async def train_to_the_end(host, member):
        built_in = Player(host, host.directory.built_in, "built-in", trains=False)
        await member.come()
        await member.at_state()
        await member.take_part()
        await built_in.come()
        for one in (member, built_in):
            await one.at_state(1)
        assert (await member.hears(wire.Stop)).complete
        await member.say(wire.Leaving(reason="it is done"))
        while not isinstance(message := await built_in.connection.receive(), wire.Stop):
            if isinstance(message, wire.Heartbeat):
                await built_in.say(wire.Heartbeat())
        await built_in.connection.close()
        await host.task

    async def main():
        network = Network()
        async with serving(tmp_path / "new", config=ONE_ROUND, network=network) as host:
            await train_to_the_end(host, await host.admitted())
            assert now() < SYNC.reconnect_s
        async with serving(tmp_path / "again", config=ONE_ROUND, network=network) as host:
            anna, _ = await host.admitted("anna"), await host.admitted("ben")
        async with serving(tmp_path / "again", config=ONE_ROUND, network=network) as host:
            anna.serving, started_at = host, now()
            await train_to_the_end(host, anna)
            assert now() - started_at == pytest.approx(SYNC.reconnect_s, abs=1)

    run(main())


def test_a_host_that_is_stopped_says_so_and_goes_on_when_started_again(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.come()
            await member.at_state()
            commit = await member.take_part()
            host.task.cancel()
            stop = await member.hears(wire.Stop)
            assert not stop.complete
            with pytest.raises(asyncio.CancelledError):
                await host.task
        async with serving(tmp_path, network=host.network) as again:
            (started,) = again.reported
            assert started == events.HostStarted(
                run="scene", address=f"reef:{PORT}", committed=RoundId(1), epoch=1
            )
            member.serving = again
            welcome = await member.come()
            assert (welcome.committed, welcome.base_round) == (1, 0)
            assert await member.hears(wire.Commit) == commit

    run(main())


# --- what must end the host ----------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error(tmp_path):
    async def main():
        for folder in ("one", "other"):
            (tmp_path / folder).mkdir()
        async with serving(tmp_path / "one") as host:
            other = Serving(tmp_path / "other", host.network, CONFIG)
            with pytest.raises(RunError, match="taken"):
                await other.host.serve(host="h", port=PORT, started=asyncio.Event())
            other.directory.close()

    run(main())


def test_a_journal_that_cannot_admit_a_member_ends_the_host(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            newcomer, token = Player(host, Identity.create(), "anna"), await host.token()
            with full_disk():
                with pytest.raises(ConnectionLost):
                    await newcomer.enrol(token)
                with pytest.raises(RunError, match="cannot append to the journal"):
                    await host.task
            assert host.recorded(records.Admitted) == []

    run(main())


@pytest.mark.parametrize("last", ["message", "probe", "tick"])
def test_a_journal_that_cannot_be_written_ends_the_host_whatever_is_to_be_noted(tmp_path, last):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            if last == "probe":  # nobody can reduce until it is over
                host.network.delays[member.listen_port] = 3.0
            await member.say(member.hello())
            await member.hears(wire.Welcome)
            if last != "message":
                await member.at_state()
                await until(lambda: host.recorded(records.Agreed))
            if last == "tick":  # the leases of one that stays away are released
                await member.hears(wire.Plan)
                member.connection.cut()
            num_entries = len(host.directory.journal.entries)
            with full_disk():
                if last == "message":
                    await member.at_state()
                with pytest.raises(RunError, match="cannot append to the journal"):
                    await host.task
            assert len(host.directory.journal.entries) == num_entries
            expected_at = {"message": 0.0, "probe": 3.0, "tick": SYNC.reconnect_s}[last]
            assert now() == pytest.approx(expected_at, abs=0.3)

    run(main())


def test_a_member_that_is_slow_to_dial_is_not_reachable(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            host.network.delays[member.listen_port] = PROBE_S + 1
            await member.say(member.hello())
            await member.hears(wire.Welcome)
            membership = host.host.run.membership
            await until(lambda: membership.get(member.peer).probed)
            assert now() == pytest.approx(PROBE_S, abs=0.1)
            assert membership.get(member.peer).address is None

    run(main())


# --- who leads -----------------------------------------------------------------------------------


def led_by(host, *, epoch, address="lagoon:8"):
    """Return the record of another host's lead, signed with the keys of the run."""
    journal = host.directory.journal
    (entry,) = journal.signed([records.Led(epoch=epoch, address=address, at=0.0)])
    return entry.to_commit()


def test_a_member_hears_first_who_leads_and_in_which_epoch(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            await member.say(member.hello())
            leader = await member.connection.receive()
            assert leader == wire.Leader(
                led=host.directory.journal.led.to_commit(),
                hosts=(wire.HostAddress(host="reef", port=PORT),),
            )
            assert isinstance(await member.connection.receive(), wire.Welcome)

    run(main())


def test_a_host_that_a_member_knows_to_be_deposed_ends(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            await member.say(member.hello(led=led_by(host, epoch=2)))
            with pytest.raises(DeposedError, match="lagoon:8 leads this run by now, in epoch 2"):
                await host.task

    run(main())


def test_a_second_leader_of_the_same_epoch_gets_no_members_and_says_so(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            await member.say(member.hello(led=led_by(host, epoch=1)))
            refused = await member.hears(wire.Refused)
            assert not refused.final
            assert "two hosts lead this run in epoch 1" in refused.reason
            assert any(
                isinstance(event, events.Warned) and "two hosts lead" in event.text
                for event in host.reported
            )
            other = await host.admitted("ben")
            await other.come(led=host.directory.journal.led.to_commit())

    run(main())


def test_a_member_cannot_make_up_a_leader(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
            await member.connect()
            forged = replace(led_by(host, epoch=9), signature=bytes(64))
            await member.say(member.hello(led=forged))
            with pytest.raises(ConnectionLost):
                await member.hears(wire.Refused)
            assert not host.task.done()
            await (await host.admitted("ben")).come()

    run(main())


class StandingBy:
    """Leads when the test says so, and then hears of a standby."""

    def __init__(self, journal):
        self.alone = Alone(journal)
        self.may_lead = asyncio.Event()
        self.ended = []

    async def take(self, address):
        await self.may_lead.wait()
        return await self.alone.take(address)

    async def keep(self, note_standbys):
        self.note_standbys = note_standbys
        await asyncio.Event().wait()

    async def end(self, *, complete):
        self.ended.append(complete)


def test_a_host_that_stands_by_refuses_everybody_until_it_leads(tmp_path):
    async def main():
        async with serving(tmp_path) as host:
            member = await host.admitted()
        network = host.network
        again = Serving(tmp_path, network, CONFIG)
        leading = StandingBy(again.directory.journal)
        started = asyncio.Event()
        again.task = asyncio.create_task(
            again.host.serve(host="h", port=PORT, started=started, leading=leading)
        )
        member.serving = again
        await until(lambda: again.host.port)
        for transport in (member.transport, network.transport(None)):
            connection = await transport.dial("reef", PORT, expect=None, timeout_s=1)
            refused = await connection.receive()
            assert isinstance(refused, wire.Refused)
            assert not refused.final
        leading.may_lead.set()
        await started.wait()
        await member.come()
        leading.note_standbys(("lagoon:8",))
        leader = await member.hears(wire.Leader)
        assert leader.hosts[1] == wire.HostAddress(host="lagoon", port=8)
        invite = Invite.parse(await again.host.make_invite(uses=1, valid_s=60.0))
        assert invite.places == (("reef", PORT), ("lagoon", 8))
        await again.end()
        assert leading.ended == [False]

    run(main())
