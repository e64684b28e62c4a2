"""What a member that trains has of its own: the trainer, its work, and what encodings dropped.

    leases -> inner steps -> snapshot -> (the exchange) -> merge with the new global weights

Overlapped, training goes on while the exchange is under way, and the merge comes between two inner
steps. The host's built-in member has none of this.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from atoll.errors import BadUpdateError
from atoll.events import PhaseTimed
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors
from atoll.exchange.residual import Residual
from atoll.exchange.tasks import comes_first, in_thread
from atoll.ids import INITIAL, Digest, LeaseId, RoundId
from atoll.model.layout import layout_of
from atoll.net import wire
from atoll.outer.state import PeerState
from atoll.peer.accounts import Accounts
from atoll.peer.home import Home
from atoll.peer.training import Training
from atoll.train.channel import How

Over = Callable[[], Awaitable[Any]]  # returns when the round is over, or our state is no good


@dataclass(frozen=True, slots=True)
class Offered:
    """The work that is in the snapshot of a round; a trainer of which `life` took it."""

    leases: tuple[LeaseId, ...]
    num_steps: int
    mean_loss: float
    life: int | None


class Local:
    """`training` runs the trainer; `offers` is the work of contributions that are under way."""

    def __init__(
        self, home: Home, *, training: Training, state: PeerState, accounts: Accounts
    ) -> None:
        self.training = training
        self.offers: dict[RoundId, Offered] = {}
        self.leave_by: RoundId | None = None  # after it at the latest: its owner wants it gone
        self._home = home
        self._config = home.config
        self._layout = layout_of(home.config)
        self._overlaps = home.config.sync.mode == "overlap"
        self._accounts = accounts
        self._state = state
        self._inner_round = INITIAL  # the newest round whose inner optimizer we saved
        self._residual: Residual | None = None
        if CODECS[home.config.sync.codec].FEEDBACK is not None:
            self._residual = Residual(home.directory / "residual", self._layout)
            self._residual.load(state.round)

    # --- leases ---------------------------------------------------------------------------------

    def settle(self, round_id: RoundId, leases: Collection[LeaseId] | None) -> bool:
        """Note which leases of ours a round has committed; None: we are not in its roster.

        Returns whether the local weights are still good.
        """
        if leases is None:
            self.training.withdraw(round_id)
            return True
        if not any(lease.id in leases for lease in self.training.work.leases):
            return True  # we have heard of it before
        # A trainer may have died with what was offered, and its heir does it again.
        return self.training.settle(round_id, leases)

    # --- training -------------------------------------------------------------------------------

    async def train(self, plan: wire.Plan, *, over: Over) -> bool:
        """Do the inner steps of a round; return whether they are done, and in the snapshot."""
        if self._overlaps:
            return await self._train_on(plan, over=over)
        while await self.training.train(plan, until=over):
            if self._offer(plan.round):
                return True
        return False

    async def _train_on(self, plan: wire.Plan, *, over: Over) -> bool:
        """Reach the end of a round's work; then go on with the next, beside the exchange."""
        training, work = self.training, self.training.work
        if plan.round in work.offers and plan.round not in work.lost:
            return True  # the contribution is under way already
        training.withdraw(plan.round)
        ending = asyncio.ensure_future(over())
        try:
            while not ending.done():
                if not (target := work.round_target(plan.num_samples)):
                    await comes_first(training.change(), ending)  # all is offered already
                    continue
                at = work.settled + work.num_offered
                training.go_on(plan.first_step, at=at, upto=target)
                if not await comes_first(training.reach(target), ending):
                    return False
                fragment = self._layout.fragment_of(plan.round)
                seconds = await training.snapshot(fragment.start, fragment.stop)
                # If the trainer has died, the work has died with it.
                if seconds is not None and self._offer(plan.round):
                    self._accounts.emit(
                        PhaseTimed(round=plan.round, phase="snapshot", seconds=seconds)
                    )
                    if self.leave_by is None:
                        training.go_on(plan.first_step, at=at, upto=work.num_samples)
                    return True
        finally:
            ending.cancel()
        return False

    def _offer(self, round_id: RoundId) -> bool:
        """Offer the work that is in the snapshot; return whether there is any.

        Raises:
            BadUpdateError: the model that has learned it is astray, whatever its weights are.
        """
        training = self.training
        leases, mean_loss = training.offer(round_id)
        if not leases:
            training.withdraw(round_id)
            return False
        if not isfinite(mean_loss):
            raise BadUpdateError(f"their mean loss is {mean_loss}")
        sizes = {lease.id: lease.num_samples for lease in training.work.leases}
        num_samples = sum(sizes[lease_id] for lease_id in leases)
        num_steps = num_samples // self._config.inner.batch_sequences
        self.offers[round_id] = Offered(leases, num_steps, mean_loss, training.life)
        return True

    def _is_ours(self, round_id: RoundId) -> bool:
        """Return whether the snapshot of the round is of the trainer that we have now."""
        offered = self.offers.get(round_id)
        return offered is not None and offered.life == self.training.life

    def vectors(self) -> Vectors:
        """Return what our pseudo-gradient is made of."""
        global_N, local_N = self._state.params_N, self.training.vectors.snapshot_N
        if self._residual is None:
            return Vectors(global_N, local_N)
        return Vectors(global_N, local_N, self._residual.kept_N, self._residual.pending_N)

    # --- leaving --------------------------------------------------------------------------------

    @property
    def begins_no_more(self) -> bool:
        """Whether it is to leave, and all that it has begun is offered to an open round."""
        return self.leave_by is not None and self.training.work.is_all_offered

    @property
    def may_leave(self) -> bool:
        """Whether it is to leave, and none of its work is lost by that; or it has been too long."""
        if self.leave_by is None:
            return False
        is_overdue = self._state.round >= self.leave_by
        return is_overdue or self.training.is_paused or not self.training.work.touched()

    # --- the outer step -------------------------------------------------------------------------

    async def settle_residual(self, round_id: RoundId, contribution: Digest | None) -> None:
        """Take over what the encoding dropped of the contribution that the round has, if any."""
        if self._residual is not None:
            await in_thread(self._residual.settle, round_id, contribution)

    def prepare_merge(self, round_id: RoundId, *, committed: bool) -> How:
        """Say how the trainer takes over the new global weights, before they are there.

        The local weights keep what they have beyond the snapshot, if that is what was committed;
        else what they have beyond the old global weights (design, idea 3).
        """
        training, is_ours = self.training, self._is_ours(round_id)
        self.offers.pop(round_id, None)
        if committed and is_ours:
            return self._config.sync.merge if self._overlaps else "replace"
        if not committed:
            training.withdraw(round_id)
        fragment = self._layout.fragment_of(round_id)
        part = slice(fragment.start, fragment.stop)
        np.copyto(training.vectors.snapshot_N[part], self._state.params_N[part])
        return "carry"

    async def merge(self, how: How, round_id: RoundId) -> None:
        """Let the trainer go on from the new global weights of the round's fragment."""
        with self._accounts.timed("merge", round_id):
            if how == "replace" and not self._overlaps and len(self._layout.fragments) == 1:
                await self.training.merge("replace")
            else:
                fragment, alpha = self._layout.fragment_of(round_id), self._config.sync.blend_alpha
                await self.training.merge_part(how, fragment.start, fragment.stop, alpha=alpha)
        self.training.speed.close_round()
        seconds = self.training.take_steps_s()
        self._accounts.emit(PhaseTimed(round=round_id, phase="steps", seconds=seconds))

    async def drop(self) -> None:
        """Let the trainer start over from the global weights."""
        self._inner_round = INITIAL
        self.offers.clear()
        await self.training.merge("replace")

    async def forget_residual(self) -> None:
        """Forget what encodings have dropped: our state is another one now."""
        if self._residual is not None:
            await in_thread(self._residual.clear)

    # --- what stays on disk ---------------------------------------------------------------------

    async def save(self, round_id: RoundId, contribution: Digest, *, inner: bool) -> bool:
        """Put on disk what goes with our contribution to a round, before that can be committed.

        That is the residual, and with `inner` the inner optimizer as it is after that work. Returns
        whether the work is still there: the trainer may have died.

        Raises:
            RunError: the disk is full.
        """
        if self._residual is not None:
            await in_thread(self._residual.save, round_id, contribution)
        if not inner or self._inner_round == round_id:
            return True
        if not self._is_ours(round_id):
            return False  # its heir has other moments
        with self._accounts.timed("save_inner", round_id):
            await self.training.save(self._home.inner_path(round_id))
        if not self._is_ours(round_id):
            return False
        self._inner_round = round_id
        return True

    async def take_inner(self, round_id: RoundId) -> None:
        """Let a trainer that starts from now on go on from the moments of this round, if saved."""
        path = self._home.inner_path(round_id)
        if not await asyncio.to_thread(path.exists):
            return
        if self._inner_round != round_id:
            # We trained for this round before we were started anew, so its moments are ours.
            await self.training.load(path)
        self.training.inner = path
        self._home.forget_inner_before(round_id)
