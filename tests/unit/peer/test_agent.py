"""A host and members without a trainer, on a network in memory, through whole rounds.

The one contributor is a script, but its slices are real, and so is all that becomes of them.
"""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
from msgspec.structs import replace
from tests.unit.host.scene import CONFIG, SYNC
from tests.unit.host.test_service import PORT, Player, Serving
from tests.unit.memory import Network, until
from tests.unit.peer.cast import empty_dataset
from tests.unit.peer.scripted import ScriptedTrainer
from tests.unit.virtual import now, run

from atoll import events
from atoll.config import PeerConfig, run_digest
from atoll.errors import PeerError
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import EncodedContribution, Vectors, deliver_to
from atoll.exchange.links import DIAL_S, Links, fetch_from_any
from atoll.exchange.step import apply_updates_
from atoll.ids import RoundId
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.model.shapes import num_parameters
from atoll.net import records, wire
from atoll.net.identity import Identity
from atoll.outer.layout import slice_bounds
from atoll.outer.manifest import manifest_of
from atoll.outer.saved import read_saved
from atoll.outer.state import PeerState
from atoll.peer.agent import Agent
from atoll.peer.home import KEEP_ROUNDS, Home, RunFile, write_run_file

ROUNDS = 3
SHORT = replace(CONFIG, sync=replace(SYNC, rounds=ROUNDS))
BOUNDS = slice_bounds(num_parameters(CONFIG.model))


class Contributor(Player):
    """A peer that has trained by the time it hears a plan, and computes its states by itself."""

    def __init__(self, serving, identity, label):
        super().__init__(serving, identity, label, listens=False)
        params_N = np.empty(BOUNDS[-1][1], np.float32)
        fill_initial_(params_N, layout_of(CONFIG), seed=CONFIG.seed)
        self.state = PeerState.initial(params_N)
        self.links = Links(self.transport)
        self.plans = 0

    @property
    def digest(self):
        return manifest_of(self.state, run=run_digest(self.serving.config)).digest

    async def take_part_in(self, num_rounds):
        for _ in range(num_rounds):
            await self.say(wire.AtState(round=self.state.round, state=self.digest, device="cpu"))
            while True:
                match await self.connection.receive():
                    case wire.Plan() as plan if plan.round == self.state.round + 1:
                        await self.contribute(plan)
                    case wire.Commit() as message:
                        await self.follow(message, plan)
                        break
                    case _:
                        pass
        await self.say(wire.AtState(round=self.state.round, state=self.digest, device="cpu"))

    async def contribute(self, plan):
        self.plans += 1
        local_N = self.state.params_N * np.float32(1 - 0.01 * plan.round)
        contribution = EncodedContribution(plan.round, BOUNDS, Buffers())
        vectors = Vectors(self.state.params_N, local_N)
        digests = await contribution.encode(CODECS[plan.codec], vectors, order=range(len(BOUNDS)))
        ids = tuple(lease.id for lease in plan.leases)
        await self.say(
            wire.Contribution(
                round=plan.round, leases=ids, num_steps=2, mean_loss=2.0, digests=digests
            )
        )
        for reduction in plan.reductions:
            await self.deliver(reduction, contribution)

    async def deliver(self, reduction, contribution):
        for _ in range(20):
            try:
                async with self.links.to(reduction.reducer) as connection:
                    await deliver_to(
                        connection,
                        range(reduction.start, reduction.stop),
                        contribution=contribution,
                        links=self.links,
                        delivered=lambda _: None,
                    )
                return
            except PeerError:  # its plan may come later than ours, or it is gone
                await asyncio.sleep(0.3)

    async def follow(self, message, plan):
        key = self.serving.directory.authority.public_key
        commit = records.committed(message, public_key=key)
        updates = [
            await fetch_from_any(self.links, plan.sources, u.digest, at_most=u.num_bytes)
            for u in commit.updates
        ]
        codec = CODECS[commit.update_codec]
        config = self.serving.config
        layout = layout_of(config)
        apply_updates_(self.state, updates, codec=codec, outer=config.outer, layout=layout)


class Replica:
    """An agent, by itself without a trainer, and what it reported."""

    def __init__(self, serving, directory, *, trains=False):
        self.directory = directory
        self.trains = trains
        self.serving = serving
        self.reported = []

    async def enrol(self, label):
        player = Player(self.serving, Identity.create(), label)
        enrolled = await player.enrol(await self.serving.token())
        authority = self.serving.directory.authority.certificate
        player.identity.certify(enrolled.certificate, authority)
        player.identity.save(self.directory)

    def start(self):
        directory = self.serving.directory
        write_run_file(
            self.directory,
            RunFile(
                config=self.serving.config,
                host="reef",
                port=PORT,
                host_id=directory.identity.peer_id,
                built_in=directory.built_in.peer_id,
            ),
        )
        home = Home(self.directory, keep_states=2)
        self.peer = home.identity.peer_id
        agent = self.agent = Agent(
            home,
            PeerConfig(directory=str(self.directory), name=self.directory.name),
            transport=self.serving.network.transport(self.peer),
            start_trainer=ScriptedTrainer.start if self.trains else None,
            emit=self.reported.append,
        )
        if self.trains:
            agent.serve_dataset(empty_dataset(self.directory / "nothing"))
        self.task = asyncio.create_task(agent.run())

    async def kill(self):
        self.serving.network.cut(self.peer)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def saved(self, round_id):
        """Return the digest of this state on the disk."""
        config = self.serving.config
        states = self.directory / "states"
        return read_saved(states, RoundId(round_id), run=run_digest(config))[1]

    def reports(self, kind):
        return [event for event in self.reported if isinstance(event, kind)]


@asynccontextmanager
async def a_run(path, *, replicas=("coral",), rounds=ROUNDS):
    """A run with its built-in member, replicas, and one contributor that has said hello."""
    async with AsyncExitStack() as stack:
        config = replace(SHORT, sync=replace(SYNC, rounds=rounds))
        serving = Serving(path, Network(), config)
        await serving.start()
        stack.push_async_callback(serving.end)
        members = [Replica(serving, path / "built-in")]
        for label in replicas:
            members.append(Replica(serving, path / label))
            await members[-1].enrol(label)
        for member in members:
            member.start()
            stack.push_async_callback(member.kill)
        membership = serving.host.run.membership
        await until(lambda: len(membership.connected()) == len(members))
        contributor = Contributor(serving, Identity.create(), "anna")
        await contributor.enrol(await serving.token())
        await contributor.come(state=contributor.digest)
        yield serving, members, contributor


def test_rounds_are_reduced_committed_and_applied_by_members_without_a_trainer(tmp_path):
    async def main():
        async with a_run(tmp_path) as (serving, members, contributor):
            beating = asyncio.create_task(beat(contributor))
            await contributor.take_part_in(ROUNDS)
            await contributor.hears(wire.Stop)
            beating.cancel()
            await contributor.connection.close()
            await asyncio.gather(*(member.task for member in members))
            await serving.task
            agreed = {r.round: r.state for r in serving.recorded(records.Agreed)}
            assert agreed[ROUNDS] == contributor.digest
            for member in members:
                assert member.saved(ROUNDS) == contributor.digest
                assert member.reported[-1] == events.Stopped(reason="the run is complete")
            commits = serving.recorded(records.Committed)
            assert [[e.peer for e in c.roster] for c in commits] == [[contributor.peer]] * ROUNDS

    run(main())


async def beat(contributor):
    while True:
        await asyncio.sleep(1)
        await contributor.say(wire.Heartbeat())


def test_a_member_that_was_away_replays_what_was_committed_meanwhile(tmp_path):
    async def main():
        async with a_run(tmp_path, replicas=("coral", "lagoon")) as (serving, members, contributor):
            beating = asyncio.create_task(beat(contributor))
            await contributor.take_part_in(1)
            away = members[2]
            await until(lambda: serving.host.run.membership.get(away.peer).round == 1)
            await away.kill()
            await contributor.take_part_in(1)
            away.start()
            await until(lambda: serving.host.run.membership.get(away.peer).round == 2)
            await contributor.take_part_in(1)
            await contributor.hears(wire.Stop)
            beating.cancel()
            await contributor.connection.close()
            await asyncio.gather(*(member.task for member in members))
            assert {member.saved(ROUNDS) for member in members} == {contributor.digest}

    run(main())


def test_who_finds_an_update_nowhere_any_more_asks_for_a_whole_state_at_once(tmp_path):
    """It waits for members that do not answer; meanwhile the others go on, and drop the update."""

    async def main():
        rounds = KEEP_ROUNDS + 4
        async with a_run(tmp_path, replicas=("coral", "lagoon"), rounds=rounds) as (
            serving,
            members,
            contributor,
        ):
            beating = asyncio.create_task(beat(contributor))
            network, membership = serving.network, serving.host.run.membership
            cut_off = members[2]
            others = [member.peer for member in members[:2]]
            await contributor.take_part_in(1)
            await until(lambda: membership.get(cut_off.peer).round == 1)
            for port in [membership.get(peer).address.port for peer in others]:
                network.delays[port] = 2 * DIAL_S
            for connection in network.connections:
                if connection.owner == cut_off.peer and connection.peer in others:
                    connection.cut()
            began_at = now()
            await contributor.take_part_in(rounds - 2)
            await until(lambda: cut_off.reports(events.Warned))
            assert now() - began_at < 4 * DIAL_S
            network.delays.clear()
            await until(lambda: cut_off.reports(events.StateSynced))
            await contributor.take_part_in(1)
            await contributor.hears(wire.Stop)
            beating.cancel()
            await contributor.connection.close()
            await asyncio.gather(*(member.task for member in members))
            assert {member.saved(rounds) for member in members} == {contributor.digest}

    run(main())


def test_a_member_with_another_state_fetches_the_agreed_one(tmp_path):
    async def main():
        async with a_run(tmp_path, replicas=("coral", "lagoon")) as (serving, members, contributor):
            beating = asyncio.create_task(beat(contributor))
            await contributor.take_part_in(2)
            away = members[2]
            await until(lambda: serving.host.run.membership.get(away.peer).round == 2)
            await away.kill()
            other = PeerState(
                RoundId(2), contributor.state.params_N + 1, contributor.state.momentum_N
            )
            home = Home(away.directory, keep_states=2)
            home.states.save(other, manifest_of(other, run=home.run), now=0.0)
            home.close()
            away.start()
            await until(lambda: away.reports(events.StateSynced))
            await contributor.take_part_in(1)
            await contributor.hears(wire.Stop)
            beating.cancel()
            await contributor.connection.close()
            await asyncio.gather(*(member.task for member in members))
            assert {member.saved(ROUNDS) for member in members} == {contributor.digest}

    run(main())
