"""Parts of the model to and from the vectors that the agent sees.

    snapshot    model -> one flat tensor -> snapshot_N      on CUDA: copied while training goes on
    merge       global_N, snapshot_N -> the device -> model

Of a model that is sharded, each rank moves what it holds, to and from the same places. Where other
machines have copies of it, only the first one has the vectors, and `spread_` brings the rest along.

Shapes: N all values of the model, P the values of a part of it, V those of a view of that.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from atoll.model.flat import views
from atoll.model.layout import Layout
from atoll.train.channel import Merge, Snapshot
from atoll.train.merge import blend_, carry_
from atoll.train.parallel import Ranks
from atoll.train.shared import SharedVectors

View: TypeAlias = tuple[Tensor, slice]  # and its place in the flat vector


def start_snapshot(
    model: nn.Module, layout: Layout, *, vectors: SharedVectors, snapshot: Snapshot
) -> Callable[[], None] | None:
    """Copy a part of the weights, as they are now, to snapshot_N.

    Returns what waits until they are there, for any thread to call; None: they are.
    """
    out_N = torch.from_numpy(vectors.snapshot_N)
    parts = list(views(model, layout, start=snapshot.start, stop=snapshot.stop))
    if parts and parts[0][0].is_cuda:
        return _start_copy(parts, out_N)
    for view_V, place in parts:
        out_N[place].copy_(view_V)
    return None


def _start_copy(parts: list[View], out_N: Tensor) -> Callable[[], None]:
    """Start to copy views of a GPU on a stream of its own; return what waits for the end."""
    gathered_P = torch.cat([view_V for view_V, _ in parts])
    pinned_P = torch.empty(gathered_P.shape, dtype=torch.float32, pin_memory=True)
    copying = torch.cuda.Stream(gathered_P.device)
    copying.wait_stream(torch.cuda.current_stream(gathered_P.device))
    with torch.cuda.stream(copying):
        pinned_P.copy_(gathered_P, non_blocking=True)
    gathered_P.record_stream(copying)  # its memory is not to be given to others before

    def finish() -> None:
        copying.synchronize()
        start = 0
        for run in _runs(parts):
            place = _place_of(run)
            num_values = place.stop - place.start
            out_N[place].copy_(pinned_P[start : start + num_values])
            start += num_values

    return finish


def merge_(model: nn.Module, layout: Layout, *, vectors: SharedVectors, merge: Merge) -> None:
    """Let a part of the model take over the global weights."""
    # One copy for all that lies together, not one for each parameter.
    for run in _runs(views(model, layout, start=merge.start, stop=merge.stop)):
        _merge_run_(run, vectors, merge)


def spread_(
    model: nn.Module, layout: Layout, *, ranks: Ranks, start: int = 0, stop: int | None = None
) -> None:
    """Give the copies on other machines a part of the weights, or all: those of the first one."""
    stop = layout.num_values if stop is None else stop
    ranks.spread_(view for view, _ in views(model, layout, start=start, stop=stop))


def _merge_run_(run: list[View], vectors: SharedVectors, merge: Merge) -> None:
    # Where a device has no doubles, sums are taken on the CPU.
    where = run[0][0].device if run[0][0].is_cuda else torch.device("cpu")
    all_of_it = _place_of(run)
    global_P = torch.from_numpy(vectors.global_N[all_of_it]).to(where)
    snapshot_P = torch.from_numpy(vectors.snapshot_N[all_of_it])
    if merge.how == "carry":
        snapshot_P = snapshot_P.to(where)
    for view_V, place in run:
        local_V = view_V.to(where)
        within = slice(place.start - all_of_it.start, place.stop - all_of_it.start)
        match merge.how:
            case "replace":
                local_V.copy_(global_P[within])
            case "carry":
                carry_(local_V, global_P=global_P[within], snapshot_P=snapshot_P[within])
            case "blend":
                blend_(local_V, global_P=global_P[within], alpha=merge.alpha)
        view_V.copy_(local_V)


def _runs(parts: Iterable[View]) -> Iterator[list[View]]:
    """Yield the views that lie side by side in the flat vector together: all of a whole model's."""
    run: list[View] = []
    for part in parts:
        if run and run[-1][1].stop != part[1].start:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _place_of(run: list[View]) -> slice:
    return slice(run[0][1].start, run[-1][1].stop)
