"""All peers of a run in one process: every real part of a round but the network.

    inner steps -> snapshot -> contributions -> updates -> outer step -> merge
                      '--> with mode = "overlap": some steps of the next round before the merge

The same samples, codecs and settings give the same losses as real peers that are always on time.

Shapes: N values of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.config import RunConfig
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors, encode_slice
from atoll.exchange.plan import shares
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.step import apply_updates_, slices_of
from atoll.ids import PeerId, RoundId
from atoll.model.initial import fill_initial_
from atoll.model.layout import Fragment, layout_of
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
    replicas = [Replica(config, batches, place=k, num_peers=num_peers) for k in range(num_peers)]
    overlaps = config.sync.mode == "overlap"
    steps_late = ceil(arrival * config.steps_per_round) if overlaps else 0
    for round_id in map(RoundId, range(1, config.sync.rounds + 1)):
        num_steps = round_id * config.steps_per_round
        fragment = layout.fragment_of(round_id)
        for replica in replicas:
            replica.train(upto=num_steps)
            replica.snapshot(fragment)
            replica.train(upto=num_steps + steps_late)
        contributions = [replica.contribution(state) for replica in replicas]
        updates = reduce(contributions, config, round_id)
        apply_updates_(
            state,
            updates,
            codec=CODECS[config.sync.update_codec],
            outer=config.outer,
            layout=layout,
        )
        for replica in replicas:
            replica.take_over(state, fragment)
        yield Round(
            id=round_id,
            state=state,
            norm=norm_of(updates, config.sync.update_codec, sizes_of(config, round_id)),
            num_bytes=sum(map(len, [*contributions[0], *updates])),
        )


class Replica:
    """One peer, number `place` of all: its inner loop, shared vectors and residual."""

    def __init__(self, config: RunConfig, batches: Batches, *, place: int, num_peers: int) -> None:
        self.config = config
        self.layout = layout_of(config)
        self.loop = InnerLoop(initial_model(config, device=CPU), batches, config)
        with TemporaryDirectory() as directory:  # what is mapped stays, without a name
            self.vectors = SharedVectors.create(Path(directory) / "v", self.layout.num_values)
        self.kept_N: NDArray[np.float32] | None = None
        self.pending_N: NDArray[np.float32] | None = None
        if CODECS[config.sync.codec].FEEDBACK is not None:
            self.kept_N, self.pending_N = np.zeros((2, self.layout.num_values), np.float32)
        self._steps = steps_of(config, place=place, num_peers=num_peers)
        self._num_steps = 0

    def train(self, *, upto: int) -> None:
        """Take inner steps until so many are done, or all of the run."""
        for step, spans in islice(self._steps, upto - self._num_steps):
            self.loop.step(spans, step=step)
            self._num_steps = step + 1

    def snapshot(self, fragment: Fragment) -> None:
        part = Snapshot(start=fragment.start, stop=fragment.stop)
        start_snapshot(self.loop.model, self.layout, vectors=self.vectors, snapshot=part)

    def contribution(self, state: PeerState) -> list[bytes]:
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


def steps_of(
    config: RunConfig, *, place: int, num_peers: int
) -> Iterator[tuple[int, tuple[Span, ...]]]:
    """Yield number and samples of each inner step of a peer, in the whole run."""
    for index in range(config.sync.rounds):
        first = (index * num_peers + place) * config.samples_per_round
        spans = [(first, first + config.samples_per_round)]
        steps = cut_into_steps(spans, batch_sequences=config.inner.batch_sequences)
        yield from enumerate(steps, start=index * config.steps_per_round)


def reduce(
    contributions: Sequence[Sequence[bytes]], config: RunConfig, round_id: RoundId
) -> list[bytes]:
    """Return the updates of a round in which everybody contributes."""
    codec, update_codec = CODECS[config.sync.codec], CODECS[config.sync.update_codec]
    sizes = sizes_of(config, round_id)
    encoded = {PeerId(f"{place:032x}"): payloads for place, payloads in enumerate(contributions)}
    norms = {peer: norm_of(encoded[peer], config.sync.codec, sizes) for peer in encoded}
    tokens = dict.fromkeys(encoded, config.samples_per_round * config.data.sequence_length)
    share = shares(tokens, norms, clip_to_median=config.sync.clip_to_median)
    return [
        reduce_slice(
            [(encoded[peer][index], share[peer]) for peer in share],
            codec=codec,
            update_codec=update_codec,
            num_values=size,
        )
        for index, size in enumerate(sizes)
    ]


def norm_of(payloads: Sequence[bytes], codec: str, sizes: Sequence[int]) -> float:
    """Return the norm of what these slices decode to, which are checked as others' are."""
    squares = (CODECS[codec].check(*each) for each in zip(payloads, sizes, strict=True))
    return float(sum(squares) ** 0.5)


def sizes_of(config: RunConfig, round_id: RoundId) -> list[int]:
    return [stop - start for start, stop in slices_of(layout_of(config), round_id)]
