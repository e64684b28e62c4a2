"""A whole run in virtual time around the real decisions of the host: peers that train by the clock
alone, a network that delays, and faults from a seed.

The host is `atoll.host.run`, its journal a list; what a `Peer` does here is the protocol of
`atoll.peer.round` without its bytes. Time is a number; nothing waits.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from atoll import events
from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    canonical,
    run_digest,
)
from atoll.data import leases
from atoll.host import run as decisions
from atoll.host.due import advance
from atoll.host.effects import Append, Drop, Effect, Report, Send, SendCommits
from atoll.host.membership import Member
from atoll.host.state import Run
from atoll.ids import Digest, Lease, LeaseId, PeerId, RoundId, digest_of
from atoll.net import records, wire

NUM_SLICES = 4
SLICE_S = 0.1  # on an ordinary line
INNER_STEPS = 20
BUILT_IN = PeerId("f" * 32)
MODEL = ModelConfig(
    vocab_size=4096, num_layers=1, width=8, num_heads=1, num_kv_heads=1, ffn_width=8
)


def config_of(*, rounds: int, min_peers: int, pace: Literal["steps", "time"]) -> RunConfig:
    return RunConfig(
        name="sim",
        model=MODEL,
        data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),)),
        inner=InnerConfig(lr=1e-3, batch_sequences=2),
        sync=SyncConfig(
            rounds=rounds,
            inner_steps=INNER_STEPS,
            min_peers=min_peers,
            pace=pace,
            region_size=0,  # each of these peers knows one reducer of a slice
        ),
    )


def name_of(*parts: object) -> Digest:
    return digest_of(repr(parts).encode())


def state_of(history: tuple[Digest, ...]) -> Digest:
    """A state is a function of the updates that led to it, as in the real thing."""
    return name_of("state", history)


@dataclass
class Peer:
    """One member, as far as the host can tell it from a real one."""

    id: PeerId
    trains: bool
    speed: float  # seconds for the inner steps of a round, as many as the config says
    reachable: bool = True  # by others; who is not may still dial them
    start_s: float = 0.0  # from its start until it reports its state
    alive: bool = False
    frozen: bool = False
    session: int = 0  # of which connection to the host; messages of older ones are lost
    incarnation: int = 0
    history: tuple[Digest, ...] = ()  # the updates taken in: its durable state
    blobs: set[Digest] = field(default_factory=set)  # durable
    plan: wire.Plan | None = None
    closed: wire.Closed | None = None
    leases: tuple[Lease, ...] = ()
    trained: frozenset[LeaseId] = frozenset()  # in the local weights
    has_trained: bool = False  # so it knows how fast it is
    begun_at: float | None = None  # when it began to train on what is not trained yet
    done_s: float = 0.0  # what it had trained on that before
    training: int = 0  # a counter: a timer of an earlier training is void
    busy_with: tuple[RoundId, tuple[Lease, ...], int] | None = None
    contribution: tuple[RoundId, tuple[Digest, ...], tuple[LeaseId, ...]] | None = None
    taken: set[Digest] = field(default_factory=set)  # as a reducer: slices that arrived
    jobs: list[wire.Reduce] = field(default_factory=list)
    updates: dict[tuple[int, int], Digest] = field(default_factory=dict)
    formed_at: dict[tuple[int, int], float] = field(default_factory=dict)
    slowness: float = 1.0  # of its line: how many times longer a slice takes

    @property
    def round(self) -> RoundId:
        return RoundId(len(self.history))


class World:
    def __init__(
        self,
        seed: int,
        *,
        peers: int,
        rounds: int,
        min_peers: int = 1,
        slowest_s: float = 15.0,
        reachable: float = 1.0,
        pace: Literal["steps", "time"] = "steps",
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.config = config_of(rounds=rounds, min_peers=min_peers, pace=pace)
        genesis = records.Genesis(
            run=run_digest(self.config),
            config=canonical(self.config).decode(),
            dataset=name_of("dataset"),
            authority=name_of("authority"),
            public_key="",
            built_in=BUILT_IN,
            built_in_key="",
            at=0.0,
        )
        self.journal: list[records.Record] = [genesis]
        self.commits: dict[RoundId, records.Committed] = {}
        self.host: Run | None = None
        self.peers = {
            peer: Peer(peer, trains=True, speed=self.rng.uniform(5, slowest_s))
            for peer in (PeerId(f"{k:032x}") for k in range(peers))
        }
        for peer in self.peers.values():
            peer.reachable = self.rng.random() < reachable
        self.peers[BUILT_IN] = Peer(
            BUILT_IN, trains=False, speed=0.0, start_s=self.rng.choice([0.0, 3.0])
        )
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.reports: list[tuple[float, events.Event]] = []  # with their time
        self.carried: list[tuple[Digest, PeerId]] = []  # slices, over a line to a reducer
        self.finished_work: dict[LeaseId, PeerId] = {}
        self.start_host()
        for peer in self.peers.values():
            self.start(peer)

    # --- time -----------------------------------------------------------------------------------

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), act))

    def run_until(self, done: Callable[[], bool], *, deadline: float) -> None:
        while not done():
            assert self._queue, f"seed {self.seed}: nothing is left to happen"
            self.now, _, act = heapq.heappop(self._queue)
            assert self.now < deadline, f"seed {self.seed}: not done after {deadline} s: {self}"
            act()

    def slice_s(self, one: Peer, other: Peer) -> float:
        """Return how long a slice takes from one to the other: as the slower line has it."""
        return 0.0 if one is other else SLICE_S * max(one.slowness, other.slowness)

    def delay(self) -> float:
        return self.rng.uniform(0.001, 0.3)

    def __repr__(self) -> str:
        if self.host is None:
            return "the host is down"
        rnd = self.host.round
        where = (rnd.phase, rnd.waited, rnd.completed_at, rnd.assignment) if rnd else "none open"
        members = {
            m.peer[-1]: (m.connected, m.round) for m in self.host.membership.members.values()
        }
        return f"committed {self.host.committed}, round {where}, members {members}"

    # --- the host -------------------------------------------------------------------------------

    def start_host(self) -> None:
        self.host = decisions.replay(self.journal, slice_bytes=((1,) * NUM_SLICES,), now=self.now)
        self.tick(self.host)

    def crash_host(self) -> None:
        self.host = None
        for peer in self.peers.values():
            peer.session += 1
            if peer.alive:
                self.after(self.delay(), lambda p=peer, s=peer.session: self.connect(p, s))

    def tick(self, host: Run) -> None:
        if self.host is host:
            self.do(decisions.on_tick(host, now=self.now))
            self.after(0.25, lambda: self.tick(host))

    def do(self, effects: list[Effect]) -> None:
        """Carry these out, and then what is due, which looks at everybody."""
        host = self.host
        self.carry_out(effects)
        if host is not None and self.host is host:
            self.carry_out(advance(host, now=self.now))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Append(records=new):
                    self.journal += new
                    for record in new:
                        self.check(record)
                        if isinstance(record, records.Committed):
                            self.commits[record.round] = record
                case Send(peer=peer, message=message):
                    self.to_peer(peer, message)
                case SendCommits(peer=peer, after=after, through=through):
                    for round_id in range(after + 1, through + 1):
                        self.to_peer(peer, self.commits[RoundId(round_id)])
                case Drop(peer=peer):
                    self.disconnect(self.peers[peer])
                case Report(event=event):
                    self.reports.append((self.now, event))

    def to_peer(self, peer_id: PeerId, message: wire.Message | records.Committed) -> None:
        peer = self.peers[peer_id]
        session = peer.session

        def arrive() -> None:
            if peer.frozen:
                self.after(0.5, arrive)
            elif peer.alive and peer.session == session:
                self.hear(peer, message)

        # One connection keeps the order of its messages.
        self.after(0.05 + 1e-6 * next(self._order), arrive)

    def to_host(self, peer: Peer, message: wire.Message) -> None:
        session, host = peer.session, self.host

        def arrive() -> None:
            if host is not None and self.host is host and peer.session == session:
                self.do(decisions.on_message(host, peer.id, message, now=self.now))

        self.after(0.05 + 1e-6 * next(self._order), arrive)

    # --- connections ----------------------------------------------------------------------------

    def start(self, peer: Peer) -> None:
        peer.alive, peer.frozen = True, False
        peer.incarnation += 1
        peer.trained, peer.contribution, peer.plan, peer.closed = frozenset(), None, None, None
        peer.taken, peer.jobs, peer.updates, peer.formed_at = set(), [], {}, {}
        peer.has_trained, peer.begun_at, peer.done_s = False, None, 0.0
        peer.training += 1
        peer.session += 1
        self.connect(peer, peer.session)
        self.beat(peer, peer.incarnation)

    def beat(self, peer: Peer, incarnation: int) -> None:
        if peer.alive and peer.incarnation == incarnation:
            if not peer.frozen:
                self.to_host(peer, wire.Heartbeat())
            self.after(1.0, lambda: self.beat(peer, incarnation))

    def kill(self, peer: Peer) -> None:
        if peer.alive:
            peer.alive = False
            self.disconnect(peer)

    def disconnect(self, peer: Peer) -> None:
        peer.session += 1
        if self.host is not None:
            host = self.host
            self.after(0.0, lambda: self._lost(host, peer))
        if peer.alive:
            self.after(self.delay(), lambda s=peer.session: self.connect(peer, s))

    def _lost(self, host: Run, peer: Peer) -> None:
        if self.host is host and not host.membership.is_connected(peer.id):
            return
        if self.host is host:
            self.do(decisions.on_lost(host, peer.id, "lost", now=self.now))

    def connect(self, peer: Peer, session: int) -> None:
        if not peer.alive or peer.session != session:
            return
        if self.host is None or peer.frozen:
            self.after(0.5, lambda: self.connect(peer, session))
            return
        hello = wire.Hello(
            protocol=1,
            run=run_digest(self.config),
            name=peer.id[:4],
            trains=peer.trains,
            listen_host="",
            listen_port=1,
            codecs=("int8",),
            round=peer.round,
            state=state_of(peer.history),
            trained=tuple(sorted(peer.trained)),
        )
        peer.plan = peer.closed = None
        member = Member.of(peer.id, hello)
        host = self.host
        self.do(decisions.on_hello(host, member, hello, now=self.now))
        address = wire.Address(peer=peer.id, host="h", port=1) if peer.reachable else None
        self.after(0.05, lambda: self._probed(host, peer, session, address))

    def _probed(self, host: Run, peer: Peer, session: int, to: wire.Address | None) -> None:
        if self.host is host and peer.session == session:
            self.do(decisions.on_probed(host, peer.id, to, now=self.now))

    # --- what a peer does -----------------------------------------------------------------------

    def hear(self, peer: Peer, message: wire.Message | records.Committed) -> None:
        match message:
            case wire.Welcome():
                peer.leases = message.held
                if message.reset:
                    peer.trained, peer.contribution = frozenset(), None
                    peer.begun_at, peer.done_s = None, 0.0
                    peer.training += 1
                if message.base_round > peer.round:
                    self.fetch_state(peer, message.base_round)
                self.after(peer.start_s, lambda s=peer.session: self.report(peer, s))
            case wire.Resync():
                raise AssertionError(f"seed {self.seed}: no state differs here")
            case wire.Plan():
                self.follow_plan(peer, message)
            case wire.Closed():
                peer.closed = message
                self.gather(peer)
            case wire.Reduce():
                peer.jobs.append(message)
                self.work_on_jobs(peer)
            case records.Committed():
                self.take_commit(peer, message)
            case _:
                pass

    def report(self, peer: Peer, session: int) -> None:
        if not peer.alive or peer.session != session:
            return
        speed = self.config.samples_per_round / peer.speed if peer.has_trained else 0.0
        at_state = wire.AtState(
            round=peer.round, state=state_of(peer.history), device="cpu", samples_per_s=speed
        )
        self.to_host(peer, at_state)

    def fetch_state(self, peer: Peer, round_id: RoundId) -> None:
        commits = [r for r in self.journal if isinstance(r, records.Committed)]
        peer.history = tuple(c.updates[0].digest for c in commits if c.round <= round_id)

    def follow_plan(self, peer: Peer, plan: wire.Plan) -> None:
        if plan.round != peer.round + 1:
            return
        peer.plan = plan
        peer.leases = plan.leases
        if not peer.trains:
            self.gather(peer)
            return
        if peer.contribution is not None and peer.contribution[0] == plan.round:
            self.deliver(peer)
        elif peer.busy_with != (plan.round, peer.leases, peer.training):
            peer.training += 1
            peer.busy_with = (plan.round, peer.leases, peer.training)
            number = peer.training
            todo = sum(le.stop - le.start for le in peer.leases if le.id not in peer.trained)
            todo_s = peer.speed * todo / self.config.samples_per_round
            self.pause(peer)
            peer.begun_at = self.now
            self.after(todo_s - peer.done_s, lambda: self.finish_training(peer, number))
        self.gather(peer)

    def pause(self, peer: Peer) -> None:
        """Keep what is done of a lease."""
        if peer.begun_at is not None:
            peer.done_s += self.now - peer.begun_at
            peer.begun_at = None

    def finish_training(self, peer: Peer, number: int) -> None:
        if not peer.alive or peer.training != number:
            return
        if peer.frozen:
            self.after(1.0, lambda: self.finish_training(peer, number))
            return
        if peer.plan is None or not peer.leases:
            return
        peer.begun_at, peer.done_s = None, 0.0
        peer.trained, peer.has_trained = frozenset(lease.id for lease in peer.leases), True
        digests = tuple(
            name_of(peer.id, peer.incarnation, peer.plan.round, k) for k in range(NUM_SLICES)
        )
        peer.contribution = (peer.plan.round, digests, tuple(sorted(peer.trained)))
        self.deliver(peer)

    def deliver(self, peer: Peer) -> None:
        assert peer.plan is not None
        assert peer.contribution is not None
        round_id, digests, lease_ids = peer.contribution
        contribution = wire.Contribution(
            round=round_id, leases=lease_ids, num_steps=5, mean_loss=1.0, digests=digests
        )
        self.to_host(peer, contribution)
        for reduction in peer.plan.reductions:
            reducer = self.peers[reduction.reducer.peer]
            todo = [(k, digests[k]) for k in range(reduction.start, reduction.stop)]
            self.send_next(peer, peer.plan, reducer, todo)

    def send_next(
        self, peer: Peer, plan: wire.Plan, reducer: Peer, todo: list[tuple[int, Digest]]
    ) -> None:
        """Bring these slices to the reducer, one after the other; those that it has, at once."""
        if todo:
            _, digest = todo[0]
            line_s = 0.0 if digest in reducer.taken else self.slice_s(peer, reducer)
            self.after(
                self.delay() + line_s,
                lambda p=peer, v=plan, r=reducer, t=todo: self.offer(p, v, r, t),
            )

    def offer(
        self, peer: Peer, plan: wire.Plan, reducer: Peer, todo: list[tuple[int, Digest]]
    ) -> None:
        if not peer.alive or peer.plan is not plan:
            return
        ready = reducer.plan is not None and reducer.plan.round == plan.round
        if not reducer.alive or reducer.frozen or peer.frozen or not ready:
            self.after(0.5, lambda: self.offer(peer, plan, reducer, todo))
            return
        k, digest = todo[0]
        self.send_next(peer, plan, reducer, todo[1:])
        if digest not in reducer.taken and reducer is not peer:
            self.carried.append((digest, reducer.id))
        reducer.taken.add(digest)
        self.to_host(
            reducer,
            wire.Delivered(
                round=plan.round, contributor=peer.id, slice=k, digest=digest, squared_norm=1.0
            ),
        )
        self.work_on_jobs(reducer)

    def work_on_jobs(self, peer: Peer) -> None:
        for job in list(peer.jobs):
            if all(one.digest in peer.taken for one in job.inputs):
                peer.jobs.remove(job)
                inputs = tuple((one.peer, one.share, one.digest) for one in job.inputs)
                digest = name_of("update", job.round, job.slice, inputs)
                peer.blobs.add(digest)
                peer.formed_at[job.roster_version, job.slice] = self.now
                peer.updates[job.roster_version, job.slice] = digest
                self.to_host(
                    peer,
                    wire.Reduced(
                        round=job.round,
                        roster_version=job.roster_version,
                        slice=job.slice,
                        digest=digest,
                    ),
                )

    def gather(self, peer: Peer) -> None:
        plan, closed = peer.plan, peer.closed
        if not peer.alive or plan is None or closed is None or closed.round != plan.round:
            return

        told: list[wire.Reduction] = []

        def attempt() -> None:
            if not peer.alive or peer.plan is not plan or peer.closed is not closed:
                return
            found: dict[int, Digest] = {}
            for reduction in plan.reductions:
                reducer = self.peers[reduction.reducer.peer]
                span = range(reduction.start, reduction.stop)
                started_at = max(reducer.formed_at.get((closed.roster_version, k), 0) for k in span)
                there_at = started_at + len(span) * self.slice_s(reducer, peer)
                formed = [reducer.updates.get((closed.roster_version, k)) for k in span]
                is_up = reducer.alive and not reducer.frozen and not peer.frozen
                if is_up and all(formed) and self.now >= there_at:
                    found |= dict(zip(span, formed, strict=True))
                    if reduction not in told:
                        told.append(reduction)
                        self.to_host(
                            peer,
                            wire.Fetched(
                                round=plan.round,
                                roster_version=closed.roster_version,
                                start=reduction.start,
                                stop=reduction.stop,
                            ),
                        )
            if len(found) < NUM_SLICES:
                self.after(0.2, attempt)
                return
            peer.blobs |= set(found.values())
            digests = tuple(found[k] for k in range(NUM_SLICES))
            self.to_host(
                peer,
                wire.Held(round=plan.round, roster_version=closed.roster_version, digests=digests),
            )

        self.after(self.delay(), attempt)

    def take_commit(self, peer: Peer, commit: records.Committed) -> None:
        if commit.round != peer.round + 1:
            return
        wanted = {update.digest for update in commit.updates}
        if not wanted <= peer.blobs:
            # From any member's disk, dead ones excluded; whoever holds them may be just starting.
            for other in self.peers.values():
                if other.alive and not other.frozen:
                    peer.blobs |= wanted & other.blobs
        if not wanted <= peer.blobs:
            self.after(0.5, lambda: peer.alive and self.take_commit(peer, commit))
            return
        if any(entry.peer == peer.id for entry in commit.roster):
            peer.trained = frozenset()
        peer.contribution = None
        peer.plan = peer.closed = None
        self.pause(peer)
        peer.training += 1
        peer.taken, peer.jobs, peer.updates, peer.formed_at = set(), [], {}, {}
        peer.history = (*peer.history, commit.updates[0].digest)
        self.report(peer, peer.session)

    # --- what must hold -------------------------------------------------------------------------

    def check(self, record: records.Record) -> None:
        """Judge each record as it becomes final."""
        if not isinstance(record, records.Committed):
            return
        assert abs(sum(entry.share for entry in record.roster) - 1) < 1e-9
        for entry in record.roster:
            for lease_id in entry.leases:
                assert lease_id not in self.finished_work, f"seed {self.seed}: {lease_id} twice"
                self.finished_work[lease_id] = entry.peer
        wanted = {update.digest for update in record.updates}
        holders = [p.id for p in self.peers.values() if wanted <= p.blobs]
        assert self.host is not None
        before = RoundId(record.round - 1)
        able = [
            member
            for member in self.host.membership.connected()
            if member.probed and member.state is not None and member.round == before
        ]
        assert len(holders) >= min(2, len(able)), f"seed {self.seed}: one disk alone has it"
        is_believed = BUILT_IN in holders or 2 * len(holders) > len(able)
        assert is_believed, f"seed {self.seed}: only {holders} have decoded it"

    def book(self) -> leases.LeaseBook:
        return decisions.replay(self.journal, slice_bytes=((1,) * NUM_SLICES,)).book


def run_of(world: World) -> list[RoundId]:
    return [r.round for r in world.journal if isinstance(r, records.Committed)]
