"""The canonical flat vector: where each parameter lies in it, and how fragments cut it.

    fragment 0                                  fragment 1
    | embedding | blocks 0, 2, .. | norm | head | embedding | blocks 1, 3, .. | norm | head |
      first rows                                  the others

A fragment is synchronised together, so it is contiguous. Transformer blocks are dealt out whole;
embedding, final norm and head are cut by rows, so that all fragments are of nearly one size
(Streaming DiLoCo, arXiv 2501.18512, section 2). With one fragment, the parameters lie one after the
other in the order of `parameter_specs`.

Needs no torch, and is a function of the config alone: all members find the same one.

Shapes: N all values of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.config import ModelConfig, RunConfig
from atoll.ids import RoundId
from atoll.model.shapes import ParameterSpec, parameter_specs

Pattern: TypeAlias = Literal["strided", "sequential"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Rows `row_start` to `row_stop - 1` of a parameter: the values `start` to `stop - 1`."""

    spec: ParameterSpec
    index: int  # of the parameter, in the order of the model
    row_start: int
    row_stop: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + (self.row_stop - self.row_start) * self.spec.row_values


@dataclass(frozen=True, slots=True)
class Fragment:
    """The values `start` to `stop - 1` of the flat vector."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`entries` in the order of the flat vector; those of one parameter by rows."""

    entries: tuple[Entry, ...]
    fragments: tuple[Fragment, ...]

    @property
    def num_values(self) -> int:
        return self.fragments[-1].stop

    def fragment_of(self, round_id: RoundId) -> Fragment:
        """Return which fragment the round synchronises: one after the other, over and over."""
        return self.fragments[(round_id - 1) % len(self.fragments)]

    def step_of(self, round_id: RoundId) -> RoundId:
        """Return which outer step of its fragment the round is: 1, 2, 3, ..."""
        return RoundId((round_id - 1) // len(self.fragments) + 1)


def layout_of(config: RunConfig) -> Layout:
    """Return the layout of every flat vector of the run."""
    return lay_out(config.model, config.sync.fragments, config.sync.fragment_pattern)


@lru_cache(maxsize=8)
def lay_out(config: ModelConfig, num_fragments: int = 1, pattern: Pattern = "strided") -> Layout:
    """Return the layout of a model in so many fragments, at most one for each layer."""
    assert 1 <= num_fragments <= config.num_layers, "a fragment has a layer at least"
    specs = parameter_specs(config)
    owners = [_owner(spec.layer, config.num_layers, num_fragments, pattern) for spec in specs]
    cuts = _cuts(specs, owners, num_fragments)
    entries: list[Entry] = []
    fragments: list[Fragment] = []
    stop = 0
    for index in range(num_fragments):
        start = stop
        for place, (spec, owner) in enumerate(zip(specs, owners, strict=True)):
            row_start, row_stop = 0, spec.num_rows
            if owner is None:
                row_start = spec.num_rows * cuts[index] // cuts[-1]
                row_stop = spec.num_rows * cuts[index + 1] // cuts[-1]
            if owner in (None, index) and row_start < row_stop:
                entries.append(Entry(spec, place, row_start, row_stop, start=stop))
                stop = entries[-1].stop
        fragments.append(Fragment(index, start, stop))
    return Layout(tuple(entries), tuple(fragments))


def _owner(layer: int | None, num_layers: int, num_fragments: int, pattern: Pattern) -> int | None:
    """Return which fragment has the parameters of a layer; None: each has some rows of them."""
    if layer is None:
        return None
    return layer % num_fragments if pattern == "strided" else layer * num_fragments // num_layers


def _cuts(
    specs: Sequence[ParameterSpec], owners: Sequence[int | None], num_fragments: int
) -> list[int]:
    """Return where to cut what all fragments share, from 0 to the last one, which stands for all.

    A fragment gets of it in proportion to what its blocks lack of an even part of the model.
    """
    sizes = [0] * num_fragments
    for spec, owner in zip(specs, owners, strict=True):
        if owner is not None:
            sizes[owner] += spec.num_values
    total = sum(spec.num_values for spec in specs)
    return [0, *accumulate(max(0, total - num_fragments * size) for size in sizes)]


def in_layout_(params_N: NDArray[np.float32], layout: Layout) -> None:
    """Bring a vector in the order of the model into that of the layout."""
    if len(layout.fragments) == 1:
        return
    entries = sorted(layout.entries, key=lambda entry: (entry.index, entry.row_start))
    in_order_N, start = params_N.copy(), 0
    for entry in entries:
        stop = start + entry.stop - entry.start
        params_N[entry.start : entry.stop] = in_order_N[start:stop]
        start = stop


def in_model_order(params_N: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Return the vector as it were with one fragment; with one, itself."""
    if len(layout.fragments) == 1:
        return params_N
    entries = sorted(layout.entries, key=lambda entry: (entry.index, entry.row_start))
    return np.concatenate([params_N[entry.start : entry.stop] for entry in entries])
