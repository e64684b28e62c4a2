"""A member of a run as it stands between two messages: state, stores, local work, trainer.

`agent.py` starts and ends it, `round.py` is what it does with it. The host's built-in member is one
without a trainer: it reduces, keeps every state, and serves joiners.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from atoll.errors import AtollError, BadBlobError, DamagedError, RunError
from atoll.events import Emit, PhaseTimed, StateSynced, Warned
from atoll.exchange.codec import CODECS
from atoll.exchange.links import Links
from atoll.exchange.reduce import Reducer
from atoll.exchange.statesync import fetch_state
from atoll.exchange.step import apply_updates_
from atoll.ids import INITIAL, Digest, Lease, PeerId, RoundId
from atoll.model.initial import fill_initial_
from atoll.model.shapes import num_parameters
from atoll.net import wire
from atoll.net.records import Committed
from atoll.outer.layout import slice_bounds
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState
from atoll.peer.home import KEEP_ROUNDS, Home
from atoll.peer.link import HostLink
from atoll.peer.training import Training


class StateDiffers(AtollError):
    """The host says that our state, or our local work, is not what the run goes on with."""


class Member:
    def __init__(
        self,
        home: Home,
        *,
        state: PeerState,
        training: Training | None,
        link: HostLink,
        links: Links,
        emit: Emit,
    ) -> None:
        self.home = home
        self.config = home.config
        self.peer_id: PeerId = home.identity.peer_id
        self.slices = slice_bounds(state.num_values)
        self.state = state
        self.training = training
        self.board = link.board
        self.blobs = home.blobs
        self.links = links
        self.reducer = Reducer(slices=self.slices, blobs=home.blobs, tell_host=link.send)
        self.commits = home.commits()
        self.is_prepared = training is None
        self.device = ""  # what the trainer runs on, once it does
        self._link = link
        self._emit = emit
        self._manifest = manifest_of(state, run=home.run)
        self.said: tuple[RoundId, Digest] | None = None  # the state that our newest Hello named
        self._saving: asyncio.Task[None] | None = None
        self._inner_round = INITIAL  # the newest round whose inner optimizer we saved
        self._num_sent = 0
        self._num_received = 0

    # --- what the host said ---------------------------------------------------------------------

    @property
    def held_state(self) -> tuple[RoundId, Digest]:
        """The round and the digest of the newest state that is whole, also during an outer step."""
        return self._manifest.round, self._manifest.digest

    def hear(self, message: wire.Message) -> None:
        """React to what the host said where no task that looks at the board may be waiting."""
        match message:
            case wire.Welcome():
                if self.board.base == self.said:
                    self.board.base = None  # our own, as we said; perhaps we are further by now
                self._hold(message.held)
                self.report_state()
            case wire.Plan():
                self._hold(message.leases)
                own = [r for r in message.reductions if r.reducer.peer == self.peer_id]
                self.reducer.follow(message, own=own)
            case wire.Commit():
                self._settle(self.home.keep_commit(message))

    def _hold(self, leases: tuple[Lease, ...]) -> None:
        if self.training is not None and not self.training.work.hold(leases):
            self.board.reset = True

    def _settle(self, commit: Committed) -> None:
        mine = [entry for entry in commit.roster if entry.peer == self.peer_id]
        if self.training is not None and mine:
            self.training.work.settle(mine[0].leases)
            self.training.note_commit()

    def report_state(self) -> None:
        """Tell the host which state we hold, once we can do what it then asks."""
        if self.board.base == self.held_state:
            self.board.base = None
        if self.is_prepared and self.board.base is None:
            round_id, digest = self.held_state
            self._link.send(wire.AtState(round=round_id, state=digest, device=self.device))

    def differs(self) -> bool:
        """Return whether the host wants another state of us, or our local work dropped."""
        return self.board.base is not None or self.board.reset

    async def commit_of(self, round_id: RoundId) -> Committed:
        """Wait for the commit of a round.

        Raises:
            StateDiffers: the host has another state for us instead.
        """

        def look() -> Committed | bool | None:
            return True if self.differs() else self.board.commits.get(round_id)

        found = await self.board.wait_for(look)
        if isinstance(found, Committed):
            return found
        raise StateDiffers("the host has another state for us")

    def plan_of(self, round_id: RoundId) -> wire.Plan | None:
        plan = self.board.plan
        return plan if plan is not None and plan.round == round_id else None

    def plan_key(self, round_id: RoundId) -> tuple[int, wire.Plan] | None:
        """Return the plan that holds now, and the connection that it came on."""
        plan = self.plan_of(round_id)
        return None if plan is None else (self.board.session, plan)

    def closed_key(self, round_id: RoundId) -> tuple[int, wire.Plan, wire.Closed] | None:
        """Return the plan and the roster that hold now."""
        key, closed = self.plan_key(round_id), self.board.closed
        if key is None or closed is None or closed.round != round_id:
            return None
        return (*key, closed)

    def sources(self) -> list[wire.Address]:
        """Return who may have blobs, other than we."""
        return [source for source in self.board.sources if source.peer != self.peer_id]

    # --- what we tell the host ------------------------------------------------------------------

    def announce(self, round_id: RoundId, digests: tuple[Digest, ...]) -> None:
        assert self.training is not None
        work = self.training.work
        self._link.send(
            wire.Contribution(
                round=round_id,
                leases=work.touched(),
                num_steps=work.consumed // self.config.inner.batch_sequences,
                mean_loss=self.training.mean_loss,
                digests=digests,
            )
        )

    def tell_held(self, round_id: RoundId, version: int, digests: dict[int, Digest]) -> None:
        if len(digests) == len(self.slices):
            in_order = tuple(digests[k] for k in range(len(self.slices)))
            self._link.send(wire.Held(round=round_id, roster_version=version, digests=in_order))

    def complain(self, round_id: RoundId, reducer: PeerId) -> None:
        self._link.send(wire.Unreachable(round=round_id, reducer=reducer))

    # --- what we do -----------------------------------------------------------------------------

    @property
    def snapshot_N(self) -> NDArray[np.float32]:  # noqa: N802 - its shape
        assert self.training is not None
        return self.training.vectors.snapshot_N

    async def train(self, *, until: RoundId) -> bool:
        """Do the inner steps of our leases; return whether all are done before the round ends.

        Raises:
            StateDiffers: the host has another state for us; what we did so far stays local.
        """
        if self.training is None:
            return False
        plan = await self.board.wait_for(
            lambda: self.plan_of(until) or (self._is_over(until) or None)
        )
        if not isinstance(plan, wire.Plan):
            return False
        with self.timed("train", until):
            return await self.training.train(
                plan, until=lambda: self.board.wait_for(lambda: self._is_over(until) or None)
            )

    def _is_over(self, round_id: RoundId) -> bool:
        return round_id in self.board.commits or self.differs()

    async def take_outer_step(self, commit: Committed) -> None:
        """Move our state to that of the commit, whose updates are on our disk."""
        await self.saved()
        if self._is_carried(commit):
            # The trainer adds to the new global weights what it has beyond these (design, idea 3).
            np.copyto(self.snapshot_N, self.state.params_N)
        with self.timed("outer_step", commit.round):
            await asyncio.to_thread(self._apply, commit)
        with self.timed("hash", commit.round):
            self._manifest = await asyncio.to_thread(manifest_of, self.state, run=self.home.run)
        self.commits[commit.round] = commit
        self.blobs.turn()
        self.board.forget_commits(through=commit.round)
        self._saving = asyncio.create_task(self._save())
        self.report_state()
        self._emit_bytes(commit.round)

    def _apply(self, commit: Committed) -> None:
        codec = CODECS[commit.update_codec]
        # All are looked at before the first one changes anything: a reducer may be hostile.
        for payload, (start, stop) in zip(self._payloads(commit), self.slices, strict=True):
            try:
                codec.check(payload, stop - start)
            except BadBlobError as error:
                raise RunError(
                    f"the run has committed an update that is not sound: {error}",
                    hint="tell its operator; no member can go on from here",
                ) from error
        apply_updates_(self.state, self._payloads(commit), codec=codec, outer=self.config.outer)

    def _payloads(self, commit: Committed) -> Iterator[bytes]:
        """Yield the updates one by one, so that a slice at a time is in memory."""
        for update in commit.updates:
            payload = self.blobs.get(update.digest)
            if payload is None:
                raise DamagedError(
                    f"the update {update.digest[:12]} was damaged on our disk just now",
                    hint="start again: the last state is on disk, and the update is fetched anew",
                )
            yield payload

    def _is_carried(self, commit: Committed) -> bool:
        """Return whether the local weights contain work that the commit does not."""
        if self.training is None or not self.training.work.consumed:
            return False
        return all(entry.peer != self.peer_id for entry in commit.roster)

    async def merge(self, commit: Committed) -> None:
        """Let the trainer go on from the new global weights."""
        if self.training is None:
            return
        with self.timed("merge", commit.round):
            await self.training.merge("carry" if self._is_carried(commit) else "replace")
        path = self.home.inner_path(commit.round)
        if self._inner_round != commit.round and await asyncio.to_thread(path.exists):
            # We trained for this round before we were started anew, so its moments are ours.
            await self.training.load(path)
        self.training.inner = path
        self.home.forget_inner_before(commit.round)

    async def save_inner(self, round_id: RoundId) -> None:
        """Keep the inner optimizer as it is after the work for this round, on disk.

        Raises:
            RunError: the disk is full.
            StateDiffers: the trainer died, and the work with it: it is to be done again.
        """
        if self.training is not None and self._inner_round != round_id:
            with self.timed("save_inner", round_id):
                await self.training.save(self.home.inner_path(round_id))
            if not self.training.work.is_whole:
                self.board.reset = True
                raise StateDiffers("the trainer died with the work of this round")
            self._inner_round = round_id

    async def sync(self) -> None:
        """Fetch the state that the host named, if ours is another, and drop the local work.

        Raises:
            PeerError: nobody has it any more.
        """
        base = self.board.base
        if base is not None and base != self.held_state:
            await self.saved()
            started_at = asyncio.get_running_loop().time()
            num_bytes = await fetch_state(
                self.state,
                base[1],
                sources=self.sources(),
                links=self.links,
                store=self.home.states,
                run=self.home.run,
            )
            self._manifest = await asyncio.to_thread(manifest_of, self.state, run=self.home.run)
            seconds = asyncio.get_running_loop().time() - started_at
            self._emit(
                StateSynced(round=base[0], how="fetched", num_bytes=num_bytes, seconds=seconds)
            )
        if self.board.base == base:
            self.board.base = None
        self.board.reset = False
        self._inner_round = INITIAL
        if self.training is not None and self.is_prepared:
            await self.training.merge("replace")
        self.report_state()

    # --- what stays on disk ---------------------------------------------------------------------

    async def saved(self) -> None:
        """Wait until the newest state is on disk.

        Raises:
            RunError: the disk is full.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            await saving

    async def _save(self) -> None:
        round_id = self.state.round
        now = asyncio.get_running_loop().time()
        with self.timed("checkpoint", round_id):
            await asyncio.to_thread(self.home.states.save, self.state, self._manifest, now=now)
        oldest = min(self.home.states.rounds(), default=round_id)
        keep_from = RoundId(min(oldest, round_id - KEEP_ROUNDS))
        await asyncio.to_thread(self.home.forget_before, keep_from, self.commits)

    # --- figures --------------------------------------------------------------------------------

    def count_sent(self, num_bytes: int) -> None:
        self._num_sent += num_bytes

    def count_received(self, num_bytes: int) -> None:
        self._num_received += num_bytes

    def _emit_bytes(self, round_id: RoundId) -> None:
        for phase, num_bytes in (("sent", self._num_sent), ("received", self._num_received)):
            self._emit(PhaseTimed(round=round_id, phase=phase, seconds=0.0, num_bytes=num_bytes))
        self._num_sent = self._num_received = 0

    @contextmanager
    def timed(self, phase: str, round_id: RoundId) -> Iterator[None]:
        started_at = asyncio.get_running_loop().time()
        yield
        seconds = asyncio.get_running_loop().time() - started_at
        self._emit(PhaseTimed(round=round_id, phase=phase, seconds=seconds))

    def warn(self, text: str) -> None:
        self._emit(Warned(text=text))


def initial_state(home: Home, params_N: NDArray[np.float32]) -> PeerState:
    """Return the newest state on disk, or the initial one, in these parameters.

    Raises:
        DamagedError: the newest state is not what was saved.
    """
    state = PeerState.initial(params_N)
    if rounds := home.states.rounds():
        home.states.load_(state, round=rounds[-1], run=home.run)
    else:
        fill_initial_(params_N, home.config.model, seed=home.config.seed)
    return state


def num_values(home: Home) -> int:
    return num_parameters(home.config.model)
