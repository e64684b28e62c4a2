"""Parts of the model to and from the vectors that the agent sees.

    snapshot    model -> one flat tensor -> snapshot_N      on CUDA: copied while training goes on
    merge       global_N, snapshot_N -> the device -> model

A GPU copies to and from the vectors by itself, while others work, once `let_gpu_reach` has pinned
them where they are; else through memory of its driver's, at a third of the speed.

Of a model that is sharded, each rank moves what it holds, to and from the same places. Where other
machines have copies of it, only the first one has the vectors, and `spread_` brings the rest along.

Shapes: N all values of the model, P the values of a part of it, V those of a view of that.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atoll.model.flat import views
from atoll.model.layout import Layout
from atoll.train.channel import Merge, Snapshot
from atoll.train.merge import blend_, carry_
from atoll.train.parallel import Ranks
from atoll.train.shared import SharedVectors
from atoll.units import format_bytes

View: TypeAlias = tuple[Tensor, slice]  # and its place in the flat vector
# That move at once: one copy for many small parameters, but little beside a model.
RUN_VALUES: Final = 2**26

# By its address, which is all that CUDA knows of it: while it is pinned it has to stay mapped, or
# copies would go to memory that is nobody's.
_PINNED: Final[dict[int, NDArray[np.float32]]] = {}


def start_snapshot(
    model: nn.Module, layout: Layout, *, vectors: SharedVectors, snapshot: Snapshot
) -> Callable[[], None] | None:
    """Copy a part of the weights, as they are now, to snapshot_N.

    Returns what waits until they are there, for any thread to call; None: they are.
    """
    parts = list(views(model, layout, start=snapshot.start, stop=snapshot.stop))
    if parts and parts[0][0].device.type == "cuda":
        return _start_copy(parts, vectors)
    for view_V, place in parts:
        torch.from_numpy(vectors.snapshot_N[place]).copy_(view_V)
    return None


def _start_copy(parts: list[View], vectors: SharedVectors) -> Callable[[], None]:
    """Start to copy views of a GPU on a stream of its own; return what waits for the end."""
    device = parts[0][0].device
    copying = torch.cuda.Stream(device)
    for run in _runs(parts):
        gathered_P = torch.cat([view_V for view_V, _ in run])  # as the weights are now
        copying.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(copying):
            snapshot_P = torch.from_numpy(vectors.snapshot_N[_place_of(run)])
            snapshot_P.copy_(gathered_P, non_blocking=True)
        gathered_P.record_stream(copying)  # its memory is not to be given to others before
    return copying.synchronize


def let_gpu_reach(vectors: SharedVectors, device: torch.device) -> Callable[[], None]:
    """Pin the vectors where they are, for a GPU alone; return what ends that.

    It takes a moment for each gigabyte. Where the system does not allow it, copies still work:
    slower, and training waits for them.
    """
    both = () if device.type != "cuda" else (vectors.global_N, vectors.snapshot_N)
    pinned = [values_N for values_N in both if _pin(values_N, device)]

    def let_go() -> None:
        for values_N in pinned:
            torch.cuda.synchronize(device)
            torch.cuda.cudart().cudaHostUnregister(values_N.ctypes.data)
            del _PINNED[values_N.ctypes.data]
        pinned.clear()

    return let_go


def _pin(values_N: NDArray[np.float32], device: torch.device) -> bool:
    address, num_bytes = values_N.ctypes.data, values_N.nbytes
    code = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0))
    if code == 0:
        _PINNED[address] = values_N
        return True
    _forget_error(device)
    sys.stderr.write(
        f"the GPU cannot reach {format_bytes(num_bytes)} of this machine's memory by itself "
        f"(CUDA error {code}): snapshots and merges take longer\n"
    )
    return False


def _forget_error(device: torch.device) -> None:
    """Let CUDA report an error that was dealt with: to whoever launches a kernel next, once."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


def merge_(model: nn.Module, layout: Layout, *, vectors: SharedVectors, merge: Merge) -> None:
    """Let a part of the model take over the global weights; then the vectors may change."""
    for run in _runs(views(model, layout, start=merge.start, stop=merge.stop)):
        _merge_run_(run, vectors, merge)
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def spread_(
    model: nn.Module, layout: Layout, *, ranks: Ranks, start: int = 0, stop: int | None = None
) -> None:
    """Give the copies on other machines a part of the weights, or all: those of the first one."""
    stop = layout.num_values if stop is None else stop
    ranks.spread_(view for view, _ in views(model, layout, start=start, stop=stop))


def _merge_run_(run: list[View], vectors: SharedVectors, merge: Merge) -> None:
    # Where a device has no doubles, sums are taken on the CPU.
    where = run[0][0].device if run[0][0].device.type == "cuda" else torch.device("cpu")
    all_of_it = _place_of(run)
    global_P = torch.from_numpy(vectors.global_N[all_of_it]).to(where, non_blocking=True)
    snapshot_P = torch.from_numpy(vectors.snapshot_N[all_of_it])
    if merge.how == "carry":
        snapshot_P = snapshot_P.to(where, non_blocking=True)
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
    """Yield the views that lie side by side in the flat vector together, `RUN_VALUES` at most."""
    run: list[View] = []
    for view_V, place in _cut(parts):
        if run and (run[-1][1].stop != place.start or place.stop - run[0][1].start > RUN_VALUES):
            yield run
            run = []
        run.append((view_V, place))
    if run:
        yield run


def _cut(parts: Iterable[View]) -> Iterator[View]:
    """Yield the views, those in pieces that are larger than a run."""
    for view_V, place in parts:
        for start in range(0, len(view_V), RUN_VALUES):
            piece_V = view_V[start : start + RUN_VALUES]
            yield piece_V, slice(place.start + start, place.start + start + len(piece_V))


def _place_of(run: list[View]) -> slice:
    return slice(run[0][1].start, run[-1][1].stop)
