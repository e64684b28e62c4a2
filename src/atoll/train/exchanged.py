"""Parts of the model to and from the vectors that the agent sees.

    snapshot    model -> one flat tensor -> snapshot_N      on CUDA: copied while training goes on
    merge       global_N, snapshot_N -> the device -> model

Shapes: P the values of a part of the model, V those of a view of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atoll.model.flat import views
from atoll.model.layout import Layout
from atoll.train.channel import Merge, Snapshot
from atoll.train.merge import blend_, carry_
from atoll.train.shared import SharedVectors


def start_snapshot(
    model: nn.Module, layout: Layout, *, vectors: SharedVectors, snapshot: Snapshot
) -> Callable[[], None] | None:
    """Copy a part of the weights, as they are now, to snapshot_N.

    Returns what waits until they are there, for any thread to call; None: they are.
    """
    start, stop = snapshot.start, snapshot.stop
    out_P = torch.from_numpy(vectors.snapshot_N[start:stop])
    parts = list(views(model, layout, start=start, stop=stop))
    if parts and parts[0][0].is_cuda:
        return _start_copy(torch.cat([view_V for view_V, _ in parts]), out_P)
    for view_V, place in parts:
        out_P[place.start - start : place.stop - start].copy_(view_V)
    return None


def _start_copy(gathered_P: Tensor, out_P: Tensor) -> Callable[[], None]:
    """Start to copy a tensor of a GPU on a stream of its own; return what waits for the end."""
    pinned_P = torch.empty(gathered_P.shape, dtype=torch.float32, pin_memory=True)
    copying = torch.cuda.Stream(gathered_P.device)  # type: ignore[no-untyped-call]
    copying.wait_stream(torch.cuda.current_stream(gathered_P.device))
    with torch.cuda.stream(copying):
        pinned_P.copy_(gathered_P, non_blocking=True)
    gathered_P.record_stream(copying)  # its memory is not to be given to others before

    def finish() -> None:
        copying.synchronize()
        out_P.copy_(pinned_P)

    return finish


def merge_(model: nn.Module, layout: Layout, *, vectors: SharedVectors, merge: Merge) -> None:
    """Let a part of the model take over the global weights."""
    start, stop = merge.start, merge.stop
    parts = list(views(model, layout, start=start, stop=stop))
    # Where a device has no doubles, sums are taken on the CPU.
    where = parts[0][0].device if parts and parts[0][0].is_cuda else torch.device("cpu")
    # One copy for the whole part, not one for each parameter.
    global_P = torch.from_numpy(vectors.global_N[start:stop]).to(where)
    snapshot_P = torch.from_numpy(vectors.snapshot_N[start:stop])
    if merge.how == "carry":
        snapshot_P = snapshot_P.to(where)
    for view_V, place in parts:
        local_V = view_V.to(where)
        within = slice(place.start - start, place.stop - start)
        match merge.how:
            case "replace":
                local_V.copy_(global_P[within])
            case "carry":
                carry_(local_V, global_P=global_P[within], snapshot_P=snapshot_P[within])
            case "blend":
                blend_(local_V, global_P=global_P[within], alpha=merge.alpha)
        view_V.copy_(local_V)
