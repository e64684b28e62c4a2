"""All peers of a run in one process: every real part of a round but the network.

    inner steps -> snapshot -> contributions -> updates -> outer step -> merge
                      '--> with mode = "overlap": some steps of the next round before the merge

The same samples, codecs and settings give the same losses as real peers that are always on time.

`Fleet` is for peers that come, go, miss rounds, and make steps of different numbers; blocking, and
with the model whole. What becomes of the work of a round:

    in     contributed, and in the roster
    late   not in the roster: carried, and in the next contribution
    lost   its peer is gone: the samples are leased again

Shapes: N values of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from atoll.config import RunConfig
from atoll.data.batches import Batches
from atoll.data.leases import LeaseBook
from atoll.data.shards import Dataset
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors, encode_slice
from atoll.exchange.plan import shares
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.sizes import slices_of
from atoll.exchange.step import apply_updates_
from atoll.ids import Buffer, Lease, PeerId, RoundId
from atoll.model.flat import load_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import Fragment, layout_of
from atoll.outer.nesterov import momentum_at, outer_step_
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model
from atoll.train.channel import Merge, Snapshot
from atoll.train.exchanged import merge_, start_snapshot
from atoll.train.inner import InnerLoop
from atoll.train.shared import SharedVectors
from atoll.train.work import Span, cut_into_steps

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round: `state` is the one after it, and moves on with the next one."""

    id: RoundId
    state: PeerState
    norm: float  # of the mean pseudo-gradient
    num_bytes: int  # of one contribution and of the updates


def diloco(
    config: RunConfig, dataset: Dataset, *, num_peers: int, arrival: float = 0.0
) -> Iterator[Round]:
    """Train, and yield each round once its update is merged.

    With mode = "overlap" that is when the share `arrival` of the next round's inner steps is done.
    """
    layout = layout_of(config)
    state = PeerState.initial(np.empty(layout.num_values, np.float32))
    fill_initial_(state.params_N, layout, seed=config.seed)
    batches = Batches(dataset, seed=config.seed)
    replicas = {
        peer_id(place): Replica(config, batches, steps_of(config, place=place, num_peers=num_peers))
        for place in range(num_peers)
    }
    num_tokens = dict.fromkeys(replicas, config.samples_per_round * config.data.sequence_length)
    overlaps = config.sync.mode == "overlap"
    steps_late = ceil(arrival * config.steps_per_round) if overlaps else 0
    for round_id in map(RoundId, range(1, config.sync.rounds + 1)):
        num_steps = round_id * config.steps_per_round
        fragment = layout.fragment_of(round_id)
        for replica in replicas.values():
            replica.train(upto=num_steps)
            replica.snapshot(fragment)
            replica.train(upto=num_steps + steps_late)
        contributions = {peer: replica.contribution(state) for peer, replica in replicas.items()}
        share = shares_of(contributions, num_tokens, config, round_id)
        updates = reduce(contributions, share, config, round_id)
        apply_updates_(
            state,
            updates,
            codec=CODECS[config.sync.update_codec],
            outer=config.outer,
            layout=layout,
        )
        for replica in replicas.values():
            replica.take_over(state, fragment)
        yield Round(
            id=round_id,
            state=state,
            norm=norm_of(updates, config.sync.update_codec, sizes_of(config, round_id)),
            num_bytes=sum(map(len, [*contributions[peer_id(0)], *updates])),
        )


class Replica:
    """One peer that has these inner steps to take: its inner loop, shared vectors and residual."""

    def __init__(
        self,
        config: RunConfig,
        batches: Batches,
        steps: Iterable[tuple[int, Sequence[Span]]] = (),
    ) -> None:
        self.config = config
        self.layout = layout_of(config)
        self.loop = InnerLoop(initial_model(config, device=CPU), batches, config)
        with TemporaryDirectory() as directory:  # what is mapped stays, without a name
            self.vectors = SharedVectors.create(Path(directory) / "v", self.layout.num_values)
        self.kept_N: NDArray[np.float32] | None = None
        self.pending_N: NDArray[np.float32] | None = None
        if CODECS[config.sync.codec].FEEDBACK is not None:
            self.kept_N, self.pending_N = np.zeros((2, self.layout.num_values), np.float32)
        self._steps = iter(steps)
        self._num_steps = 0

    def train(self, *, upto: int) -> list[float]:
        """Take inner steps until so many are done, or all of the run; return their losses."""
        losses = []
        for step, spans in islice(self._steps, upto - self._num_steps):
            losses.append(self.loop.step(spans, step=step).loss)
            self._num_steps = step + 1
        return losses

    def skip(self, *, upto: int) -> None:
        """Leave out steps of the run: this peer was not there yet."""
        self._steps = islice(self._steps, upto - self._num_steps, None)
        self._num_steps = upto

    def snapshot(self, fragment: Fragment) -> None:
        part = Snapshot(start=fragment.start, stop=fragment.stop)
        start_snapshot(self.loop.model, self.layout, vectors=self.vectors, snapshot=part)

    def contribution(self, state: PeerState) -> list[Buffer]:
        """Return the encoded slices of the snapshot for the round after `state`."""
        codec = CODECS[self.config.sync.codec]
        vectors = Vectors(state.params_N, self.vectors.snapshot_N, self.kept_N, self.pending_N)
        bounds = slices_of(self.layout, RoundId(state.round + 1))
        return [encode_slice(codec, vectors.part(start, stop))[1] for start, stop in bounds]

    def take_over(self, state: PeerState, fragment: Fragment) -> None:
        """Merge the fragment of a committed state, and settle the residual (exchange/residual)."""
        sync, part = self.config.sync, slice(fragment.start, fragment.stop)
        if self.kept_N is not None and self.pending_N is not None:
            self.kept_N[part] = self.pending_N[part]
        self.vectors.global_N[part] = state.params_N[part]
        merge = Merge(
            how=sync.merge if sync.mode == "overlap" else "replace",
            start=fragment.start,
            stop=fragment.stop,
            alpha=sync.blend_alpha,
        )
        merge_(self.loop.model, self.layout, vectors=self.vectors, merge=merge)

    def carry(self, state: PeerState, fragment: Fragment, *, before_N: NDArray[np.float32]) -> None:
        """Take over a state that has nothing of ours: our work since `before_N` stays on top."""
        part = slice(fragment.start, fragment.stop)
        self.vectors.global_N[part] = state.params_N[part]
        self.vectors.snapshot_N[part] = before_N[part]
        merge = Merge(how="carry", start=fragment.start, stop=fragment.stop, alpha=0.0)
        merge_(self.loop.model, self.layout, vectors=self.vectors, merge=merge)


def steps_of(
    config: RunConfig, *, place: int, num_peers: int
) -> Iterator[tuple[int, tuple[Span, ...]]]:
    """Yield number and samples of each inner step of a peer, in the whole run."""
    for index in range(config.sync.rounds):
        first = (index * num_peers + place) * config.samples_per_round
        spans = [(first, first + config.samples_per_round)]
        steps = cut_into_steps(spans, batch_sequences=config.inner.batch_sequences)
        yield from enumerate(steps, start=index * config.steps_per_round)


def peer_id(place: int) -> PeerId:
    return PeerId(f"{place:032x}")


def shares_of(
    contributions: Mapping[PeerId, Sequence[Buffer]],
    num_tokens: Mapping[PeerId, int],
    config: RunConfig,
    round_id: RoundId,
) -> dict[PeerId, float]:
    """Return the share of each contributor of a round, in their order."""
    sizes = sizes_of(config, round_id)
    norms = {
        peer: norm_of(payloads, config.sync.codec, sizes)
        for peer, payloads in contributions.items()
    }
    return shares(num_tokens, norms, clip_to_median=config.sync.clip_to_median)


def reduce(
    contributions: Mapping[PeerId, Sequence[Buffer]],
    share: Mapping[PeerId, float],
    config: RunConfig,
    round_id: RoundId,
) -> list[Buffer]:
    """Return the updates of a round with this roster."""
    codec, update_codec = CODECS[config.sync.codec], CODECS[config.sync.update_codec]
    return [
        reduce_slice(
            [(contributions[peer][index], share[peer]) for peer in share],
            codec=codec,
            update_codec=update_codec,
            num_values=size,
        )
        for index, size in enumerate(sizes_of(config, round_id))
    ]


def norm_of(payloads: Sequence[Buffer], codec: str, sizes: Sequence[int]) -> float:
    """Return the norm of what these slices decode to, which are checked as others' are."""
    squares = (CODECS[codec].check(*each) for each in zip(payloads, sizes, strict=True))
    return float(sum(squares) ** 0.5)


def sizes_of(config: RunConfig, round_id: RoundId) -> list[int]:
    return [stop - start for start, stop in slices_of(layout_of(config), round_id)]


# --- peers that come and go ----------------------------------------------------------------------

Fate = Literal["in", "late", "lost"]


@dataclass(frozen=True, slots=True)
class Part:
    """What a peer does in a round."""

    num_steps: int
    fate: Fate = "in"


Parts = Mapping[int, Part]  # of one round: the peers, by number


@dataclass(frozen=True, slots=True)
class Seen:
    """A round as a rule for the outer step may see it: from the journal, but for the norm."""

    share: Mapping[PeerId, float]
    num_tokens: int  # of all contributors
    norm: float  # of the mean pseudo-gradient


@dataclass(frozen=True, slots=True)
class Damping:
    """Factors on what goes into an outer step; all 1: the step as the config has it."""

    lr: float = 1.0
    momentum: float = 1.0
    mean: float = 1.0


Rule = Callable[[Sequence[Seen]], Damping]  # of all rounds so far, the present one last


def as_configured(_: Sequence[Seen]) -> Damping:
    return Damping()


class Fleet:
    """All peers of a run, and the state that they agree on."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        *,
        rule: Rule = as_configured,
        donates_moments: bool = False,
    ) -> None:
        self.config = config
        self.rule = rule
        self.seen: list[Seen] = []
        self.book = LeaseBook()
        self._layout = layout_of(config)
        self.state = PeerState.initial(np.empty(self._layout.num_values, np.float32))
        fill_initial_(self.state.params_N, self._layout, seed=config.seed)
        self._dataset = dataset
        self._batches = Batches(dataset, seed=config.seed)
        self._donates_moments = donates_moments
        self._replicas: dict[PeerId, Replica] = {}

    def round(self, parts: Parts) -> None:
        """Do one round, and take its outer step."""
        work = {peer_id(place): part for place, part in parts.items()}
        for peer in self._replicas.keys() - work.keys():
            self._remove(peer)
        for peer in sorted(work.keys() - self._replicas.keys()):
            self._replicas[peer] = self._newcomer()
        for peer, part in work.items():
            self._train(peer, part.num_steps)
        contributors = [peer for peer, part in work.items() if part.fate == "in"]
        self._step(contributors)
        for peer, part in work.items():
            if part.fate == "lost":
                self._remove(peer)

    def _newcomer(self) -> Replica:
        """Return a peer with the global weights, and fresh moments or those of another peer."""
        replica = Replica(self.config, self._batches)
        load_flat_(replica.loop.model, self.state.params_N, self._layout)
        if self._donates_moments and self._replicas:
            copy_moments_(replica, min(self._replicas.items())[1])
        return replica

    def _remove(self, peer: PeerId) -> None:
        del self._replicas[peer]
        self.book.release(peer, [lease.id for lease in self.book.held_by(peer)])

    def _train(self, peer: PeerId, num_steps: int) -> None:
        batch = self.config.inner.batch_sequences
        granted = self.book.grant(peer, num_samples=num_steps * batch)
        first_step = self.state.round * self.config.steps_per_round
        spans = [(lease.start, lease.stop) for lease in granted]
        for step, of_step in enumerate(cut_into_steps(spans, batch_sequences=batch), first_step):
            self._replicas[peer].loop.step(of_step, step=step)

    def _step(self, contributors: Sequence[PeerId]) -> None:
        """Form the mean of these peers' work, take the outer step, and let all go on from there."""
        round_id, fragment = RoundId(self.state.round + 1), self._layout.fragments[0]
        held = {peer: self.book.held_by(peer) for peer in contributors}
        contributions = {}
        for peer in contributors:
            self._replicas[peer].snapshot(fragment)
            contributions[peer] = self._replicas[peer].contribution(self.state)
        num_tokens = {
            peer: num_samples(held[peer]) * self.config.data.sequence_length for peer in held
        }
        share = shares_of(contributions, num_tokens, self.config, round_id)
        updates = reduce(contributions, share, self.config, round_id)
        norm = norm_of(updates, self.config.sync.update_codec, sizes_of(self.config, round_id))
        self.seen.append(Seen(share, sum(num_tokens.values()), norm))
        before_N = self.state.params_N.copy()
        self._apply_(updates)
        self.book.commit({peer: [lease.id for lease in mine] for peer, mine in held.items()})
        for peer, replica in self._replicas.items():
            if peer in share:
                replica.take_over(self.state, fragment)
            else:
                replica.carry(self.state, fragment, before_N=before_N)

    def _apply_(self, updates: Sequence[Buffer]) -> None:
        """Do what `apply_updates_` does, with the factors of the rule."""
        round_id = RoundId(self.state.round + 1)
        outer, damping = self.config.outer, self.rule(self.seen)
        codec = CODECS[self.config.sync.update_codec]
        bounds = slices_of(self._layout, round_id)
        for (start, stop), update in zip(bounds, updates, strict=True):
            outer_step_(
                self.state.params_N[start:stop],
                self.state.momentum_N[start:stop],
                codec.decode(update, stop - start) * damping.mean,
                lr=outer.lr * damping.lr,
                momentum=momentum_at(outer, round_id) * damping.momentum,
            )
        self.state.round = round_id

    def fork(self, rule: Rule) -> "Fleet":
        """Return the same fleet, to go on with another rule; nobody may be late."""
        twin = Fleet(self.config, self._dataset, rule=rule)
        twin.seen, twin.book, twin.state = deepcopy((self.seen, self.book, self.state))
        for peer, replica in self._replicas.items():
            twin._replicas[peer] = twin._newcomer()
            copy_moments_(twin._replicas[peer], replica)
        return twin

    @property
    def num_committed(self) -> int:
        """The samples that are committed."""
        return sum(stop - start for start, stop in self.book.committed)


def copy_moments_(to: Replica, donor: Replica) -> None:
    ours, theirs = to.loop.optimizer, donor.loop.optimizer
    assert isinstance(ours, Optimizer), "no fleet trains with Muon"
    assert isinstance(theirs, Optimizer), "no fleet trains with Muon"
    ours.load_state_dict(deepcopy(theirs.state_dict()))
    to.loop.steps_since_fresh = donor.loop.steps_since_fresh


def num_samples(held: Iterable[Lease]) -> int:
    return sum(lease.stop - lease.start for lease in held)


def committed_steps(script: Iterable[Parts]) -> Iterator[int]:
    """Yield after each round how many inner steps of all peers are committed by then."""
    waiting: dict[int, int] = {}
    total = 0
    for parts in script:
        waiting = {place: waiting.get(place, 0) + part.num_steps for place, part in parts.items()}
        for place, part in parts.items():
            if part.fate != "late":
                total += waiting.pop(place) if part.fate == "in" else 0
                waiting.pop(place, None)
        yield total
