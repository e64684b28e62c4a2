"""A member of a run as it stands between two messages: state, stores, local work, trainer.

`agent.py` starts and ends it, `round.py` is what it does with it. The host's built-in member is one
without a trainer: it reduces, keeps every state, and serves joiners.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.errors import AtollError, BadBlobError, DamagedError, RunError
from atoll.events import Emit, MomentsFetched, StateSynced
from atoll.exchange.codec import CODECS
from atoll.exchange.initial import NO_RUN, begin_anew_
from atoll.exchange.links import Links
from atoll.exchange.reduce import Means, Reducers
from atoll.exchange.sizes import slices_of
from atoll.exchange.statesync import Fetched, fetch_inner, fetch_state
from atoll.exchange.step import apply_updates_
from atoll.exchange.tasks import together
from atoll.ids import INITIAL, Digest, Lease, PeerId, RoundId
from atoll.model.layout import layout_of
from atoll.model.shapes import num_parameters
from atoll.net import wire
from atoll.net.records import Heard, contribution_digest
from atoll.outer.manifest import manifest_of
from atoll.outer.nesterov import suited_to
from atoll.outer.state import PeerState
from atoll.peer.accounts import Accounts, taken
from atoll.peer.home import KEEP_ROUNDS, Home
from atoll.peer.link import HostLink
from atoll.peer.local import Local
from atoll.peer.training import Training
from atoll.traffic import Traffic
from atoll.train.moments import check_moments
from atoll.units import MIB

MOMENTS_HEADER_BYTES = MIB  # names and shapes of all tensors


class StateDiffers(AtollError):
    """The host says that our state, or our local work, is not what the run goes on with."""


class Member:
    def __init__(
        self,
        home: Home,
        *,
        training: Training | None,
        link: HostLink,
        links: Links,
        emit: Emit,
    ) -> None:
        self.home = home
        self.config = home.config
        self.peer_id: PeerId = home.identity.peer_id
        self.layout = layout_of(home.config)
        params_N = (
            np.zeros(num_parameters(home.config.model), np.float32)
            if training is None
            else training.vectors.global_N
        )
        self.state = state = _newest_state(home, params_N)
        self.accounts = Accounts(home.config, links, emit=emit)
        self.local: Local | None = None
        if training is not None:
            self.local = Local(home, training=training, state=state, accounts=self.accounts)
        self.board = link.board
        self.blobs = home.blobs
        self.links = links
        means = Means(home.blobs, link.send, links.buffers)
        self.reducers = Reducers(means, in_flight=home.config.sync.in_flight)
        self.commits = home.commits()
        self.is_prepared = training is None
        self.has_begun = home.can_begin  # the state is one; if not, the weights of state 0 lack
        self._link = link
        self._manifest = manifest_of(state, run=home.run)
        self.said: tuple[RoundId, Digest] | None = None  # the state that our newest Hello named
        self._saving: asyncio.Task[None] | None = None
        self.traffic = links.traffic

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
                self._hold(self._unsettled(message))
                self.links.round_trips.tell_again()
                self.report_state()
            case wire.Plan():
                self._hold(message.leases)
                own = [r for r in message.reductions if r.reducer.peer == self.peer_id]
                sizes = self.slice_sizes(message.round)
                self.reducers.follow(message, own=[*own, *message.also], sizes=sizes)
                self.links.keep_only(self.board.reducers())
            case wire.Commit():
                self._settle(self.home.keep_commit(message))

    def _hold(self, leases: tuple[Lease, ...]) -> None:
        if self.local is not None and not self.local.training.hold(leases):
            self.board.reset = True

    def _unsettled(self, welcome: wire.Welcome) -> tuple[Lease, ...]:
        """Return the leases that are ours after all commits that we have heard of.

        The host knows which state we hold, but not of which commits after it we have heard.
        """
        heard = {**self.commits, **self.board.commits}
        later = [c.counted for r, c in heard.items() if r > welcome.base_round]
        settled = {lease_id for ours in later if ours is not None for lease_id in ours.leases}
        return tuple(lease for lease in welcome.held if lease.id not in settled)

    def _settle(self, commit: Heard) -> None:
        mine = commit.counted
        leases = None if mine is None else mine.leases
        if self.local is not None and not self.local.settle(commit.round, leases):
            self.board.reset = True

    def report_state(self) -> None:
        """Tell the host which state we hold, once we can do what it then asks."""
        if self.board.base == self.held_state:
            self.board.base = None
        if self.has_begun and self.is_prepared and self.board.base is None:
            self.links.end_round()
            round_id, digest = self.held_state
            training = None if self.local is None else self.local.training
            report = wire.AtState(
                round=round_id,
                state=digest,
                device="" if training is None else training.started.device,
                traffic=self.accounts.untold,
                up_bytes_per_s=self.links.up.estimate or 0.0,
                down_bytes_per_s=self.links.down.estimate or 0.0,
                samples_per_s=0.0 if training is None else training.speed.samples_per_s,
                round_trips=self.links.round_trips.news(),
                peak_flops=0.0 if training is None else training.started.peak_flops,
            )
            if self._link.send(report):
                self.accounts.untold = Traffic()

    def differs(self) -> bool:
        """Return whether the host wants another state of us, or our local work dropped."""
        return self.board.base is not None or self.board.reset

    async def commit_of(self, round_id: RoundId) -> Heard:
        """Wait for the commit of a round.

        Raises:
            StateDiffers: the host has another state for us instead.
        """

        def look() -> Heard | bool | None:
            return True if self.differs() else self.board.commits.get(round_id)

        found = await self.board.wait_for(look)
        if isinstance(found, Heard):
            return found
        raise StateDiffers("the host has another state for us")

    def plan_of(self, round_id: RoundId) -> wire.Plan | None:
        return self.board.plans.get(round_id)

    def may_begin(self, round_id: RoundId) -> bool:
        """Return whether the round is open for us, though others before it may not be over.

        Then our state contains the round before which its fragment had its last turn.
        """
        is_near = round_id - self.config.sync.in_flight <= self.state.round
        return is_near and self.plan_of(round_id) is not None and not self._is_over(round_id)

    def goes_on_with(self, round_id: RoundId) -> bool:
        """Return whether it is to begin this round while the one before it is not over."""
        is_done = self.local is not None and self.local.begins_no_more
        return self.may_begin(round_id) and not is_done

    def plan_key(self, round_id: RoundId) -> tuple[int, wire.Plan] | None:
        """Return the plan that holds now, and the connection that it came on."""
        plan = self.plan_of(round_id)
        return None if plan is None else (self.board.session, plan)

    def closed_key(self, round_id: RoundId) -> tuple[int, wire.Plan, wire.Closed] | None:
        """Return the plan and the roster that hold now."""
        key, closed = self.plan_key(round_id), self.board.closed.get(round_id)
        return None if key is None or closed is None else (*key, closed)

    def sources(self) -> list[wire.Address]:
        """Return who may have blobs, other than we."""
        return [source for source in self.board.sources if source.peer != self.peer_id]

    def slices(self, round_id: RoundId) -> tuple[tuple[int, int], ...]:
        """Return (start, stop) of each slice of the round's fragment, in the flat vector."""
        return slices_of(self.layout, round_id)

    def slice_sizes(self, round_id: RoundId) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.slices(round_id))

    # --- what we tell the host ------------------------------------------------------------------

    def announce(self, round_id: RoundId, digests: tuple[Digest, ...]) -> None:
        assert self.local is not None
        offered = self.local.offers[round_id]
        self._link.send(
            wire.Contribution(
                round=round_id,
                leases=offered.leases,
                num_steps=offered.num_steps,
                mean_loss=offered.mean_loss,
                digests=digests,
            )
        )

    def tell_held(self, round_id: RoundId, version: int, digests: dict[int, Digest]) -> None:
        num_slices = len(self.slices(round_id))
        if len(digests) == num_slices:
            in_order = tuple(digests[k] for k in range(num_slices))
            self._link.send(wire.Held(round=round_id, roster_version=version, digests=in_order))

    def tell_fetched(self, round_id: RoundId, version: int, run: wire.Reduction) -> None:
        fetched = wire.Fetched(
            round=round_id, roster_version=version, start=run.start, stop=run.stop
        )
        self._link.send(fetched)

    def complain(self, round_id: RoundId, reducer: PeerId) -> None:
        self._link.send(wire.Unreachable(round=round_id, reducer=reducer))

    # --- what we do -----------------------------------------------------------------------------

    async def train(self, *, until: RoundId) -> bool:
        """Do the inner steps of a round; return whether all are done before the round ends.

        The local weights are then in the snapshot. Overlapped, training goes on meanwhile.

        Raises:
            StateDiffers: the host has another state for us; what we did so far stays local.
        """
        if self.local is None:
            return False
        plan = await self.board.wait_for(
            lambda: self.plan_of(until) or (self._is_over(until) or None)
        )
        if not isinstance(plan, wire.Plan):
            return False

        def over() -> Awaitable[Any]:
            return self.board.wait_for(lambda: self._is_over(until) or None)

        with self.accounts.timed("train", until):
            return await self.local.train(plan, over=over)

    def _is_over(self, round_id: RoundId) -> bool:
        return round_id in self.board.commits or self.differs()

    async def take_outer_step(self, commit: Heard) -> None:
        """Move our state to that of the commit, whose updates are on our disk, and merge.

        No trainer starts meanwhile, so it is clear what the local weights of the present one are.
        """
        await self.saved()
        local, mine = self.local, commit.counted
        if local is None:
            await self._step(commit)
        else:
            await local.settle_residual(commit.round, None if mine is None else mine.contribution)
            async with local.training.writing:
                how = local.prepare_merge(commit.round, committed=mine is not None)
                await self._step(commit, then=partial(local.merge, how, commit.round))
            await local.take_inner(commit.round)
        self.accounts.close_round(commit.round)
        self.commits[commit.round] = commit
        self.blobs.turn()
        self.accounts.emit(taken(commit))
        self.board.forget(through=commit.round)
        if self.is_kept(commit.round):
            self._saving = asyncio.create_task(self._save())
        self.report_state()

    async def _step(
        self, commit: Heard, then: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Take the step; then hash the state, while `then` is done."""
        with self.accounts.timed("outer_step", commit.round):
            await asyncio.to_thread(self._apply, commit)
        await together(self._hash(commit), *([] if then is None else [then()]))

    async def _hash(self, commit: Heard) -> None:
        with self.accounts.timed("hash", commit.round):
            self._manifest = await asyncio.to_thread(manifest_of, self.state, run=self.home.run)

    def is_kept(self, round_id: RoundId) -> bool:
        """Return whether the state after this round goes to disk: when all fragments had a turn."""
        return round_id % len(self.layout.fragments) == 0 or round_id == self.config.sync.rounds

    def _apply(self, commit: Heard) -> None:
        codec = CODECS[commit.update_codec]
        # All are looked at before the first one changes anything: a reducer may be hostile.
        sizes = self.slice_sizes(commit.round)
        for payload, num_values in zip(self._payloads(commit), sizes, strict=True):
            try:
                codec.check(payload, num_values)
            except BadBlobError as error:
                raise RunError(
                    f"the run has committed an update that is not sound: {error}",
                    hint="tell its operator; no member can go on from here",
                ) from error
        apply_updates_(
            self.state,
            self._payloads(commit),
            codec=codec,
            outer=suited_to(self.config.outer, num_contributors=commit.num_contributors),
            layout=self.layout,
        )

    def _payloads(self, commit: Heard) -> Iterator[bytes]:
        """Yield the updates one by one, so that a slice at a time is in memory."""
        for update in commit.updates:
            payload = self.blobs.get(update.digest)
            if payload is None:
                raise DamagedError(
                    f"the update {update.digest[:12]} was damaged on our disk just now",
                    hint="start again: the last state is on disk, and the update is fetched anew",
                )
            yield payload

    async def save_local(self, round_id: RoundId, digests: tuple[Digest, ...]) -> None:
        """Put on disk what goes with our contribution, before that can be committed.

        Raises:
            RunError: the disk is full.
            StateDiffers: the trainer died, and the work with it: it is to be done again.
        """
        assert self.local is not None
        contribution = contribution_digest(digests)
        if not await self.local.save(round_id, contribution, inner=self.is_kept(round_id)):
            self.board.reset = True
            self.board.notify()
            raise StateDiffers("the trainer died with the work of this round")

    async def sync(self) -> None:
        """Fetch the state that the host named, if ours is another, and drop the local work.

        Raises:
            PeerError: nobody has it any more.
        """
        base = self.board.base
        is_other = base is not None and base != self.held_state
        if base is not None and is_other:
            await self.saved()
            await self._fetch(*base)
        if self.board.base == base:
            self.board.base = None
        self.board.reset = False
        if self.local is not None:
            if is_other:
                await self.local.forget_residual()
            if self.is_prepared:
                await self.local.drop()
        self.report_state()

    async def begin(self) -> None:
        """Fetch the weights that the config names, and make state 0 of them.

        Raises:
            PeerError: nobody has them yet.
        """
        await self._fetch(INITIAL)
        self.report_state()

    async def _fetch(self, round_id: RoundId, digest: Digest | None = None) -> None:
        """Make our state this one; without a digest it is what comes of the config."""
        started_at = asyncio.get_running_loop().time()
        # A trainer that is just starting reads no half of it.
        async with nullcontext() if self.local is None else self.local.training.writing:
            if round_id == INITIAL:
                fetched = await self._fetch_initial()
                await asyncio.to_thread(begin_anew_, self.state, self.config, self.home.initial)
            else:
                assert digest is not None, "the host names it"
                self.accounts.begin_download(f"the model as of round {round_id}")
                fetched = await fetch_state(
                    self.state,
                    digest,
                    sources=self.sources(),
                    links=self.links,
                    store=self.home.states,
                    run=self.home.run,
                )
        self._manifest = await asyncio.to_thread(manifest_of, self.state, run=self.home.run)
        self.has_begun = True
        if digest is not None and self._manifest.digest != digest:
            raise RunError(
                f"state {round_id} computed here is not the one of the other members",
                hint="is this the same version of atoll as theirs?",
            )
        self.accounts.emit(
            StateSynced(
                round=round_id,
                how="fetched",
                num_bytes=fetched.num_bytes,
                kept_bytes=fetched.kept_bytes,
                seconds=asyncio.get_running_loop().time() - started_at,
            )
        )

    async def _fetch_initial(self) -> Fetched:
        """Have the weights that state 0 is made of, if it is not a function of the config alone."""
        store = self.home.initial
        if store is None or store.rounds():
            return Fetched(num_bytes=0, kept_bytes=0)
        self.accounts.begin_download("the weights that the run begins with")
        return await fetch_state(
            self.state,
            Digest(self.config.initial),
            sources=self.sources(),
            links=self.links,
            store=store,
            run=NO_RUN,
        )

    async def fetch_moments(self) -> Path | None:
        """Take over the moments of an inner optimizer that goes with our state, or is newer.

        Return where they are; None: there are none to be had, and ours starts afresh.
        """
        if self.state.round == INITIAL:
            return None
        path = self.home.inner_path(self.state.round)
        started_at = asyncio.get_running_loop().time()
        donor = await fetch_inner(
            path,
            partial(check_moments, config=self.config),
            sources=self.sources(),
            links=self.links,
            at_most=8 * self.state.num_values + MOMENTS_HEADER_BYTES,
        )
        if donor is None:
            self.accounts.warn("no member has moments of an inner optimizer: ours starts afresh")
            return None
        seconds = asyncio.get_running_loop().time() - started_at
        num_bytes = path.stat().st_size
        self.accounts.emit(MomentsFetched(peer=donor, num_bytes=num_bytes, seconds=seconds))
        return path

    # --- what stays on disk ---------------------------------------------------------------------

    async def saved(self) -> None:
        """Wait until the newest state is on disk.

        Raises:
            RunError: the disk is full.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            await saving

    async def has_saved(self) -> None:
        """Return when the newest state is on disk, or cannot be: `saved` says so."""
        if self._saving is not None:
            await asyncio.wait([self._saving])

    async def _save(self) -> None:
        round_id = self.state.round
        now = asyncio.get_running_loop().time()
        with self.accounts.timed("checkpoint", round_id):
            await asyncio.to_thread(self.home.states.save, self.state, self._manifest, now=now)
            await asyncio.to_thread(self.home.forget_initial)
        oldest = min(self.home.states.rounds(), default=round_id)
        keep_from = RoundId(min(oldest, round_id - KEEP_ROUNDS * len(self.layout.fragments)))
        await asyncio.to_thread(self.home.forget_before, keep_from, self.commits)


def _newest_state(home: Home, params_N: NDArray[np.float32]) -> PeerState:
    """Return the newest state on disk, or state 0, in these parameters.

    It is none, where the weights for it are still to come.

    Raises:
        DamagedError: the newest state is not what was saved.
    """
    state = PeerState.initial(params_N)
    if rounds := home.states.rounds():
        home.states.load_(state, round=rounds[-1], run=home.run)
    elif home.can_begin:
        begin_anew_(state, home.config, home.initial)
    return state
