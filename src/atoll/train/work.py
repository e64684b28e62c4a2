"""The work of a peer: spans of samples, cut into inner steps.

    spans    |-------|     |---------------|  |---|      leased samples, in order
    steps    |====|==       ==|====|====|==    ==|=|      `batch_sequences` each, maybe fewer last

A step may begin in one span and end in the next: the host leases what is free.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""The samples `start` to `stop - 1` of the run's sample order."""


def cut_into_steps(spans: Sequence[Span], *, batch_sequences: int) -> Iterator[tuple[Span, ...]]:
    """Yield the spans of each inner step; every sample is in one step, and in the given order."""
    step: list[Span] = []
    room = batch_sequences
    for start, stop in spans:
        while start < stop:
            end = min(start + room, stop)
            step.append((start, end))
            room -= end - start
            start = end
            if room == 0:
                yield tuple(step)
                step, room = [], batch_sequences
    if step:
        yield tuple(step)


def num_samples(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)
