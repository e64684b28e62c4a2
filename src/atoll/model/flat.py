"""A model's parameters as one flat fp32 vector in canonical order, as which they are exchanged.

Shapes: N all values of the model, P those of one view.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atoll.model.layout import Layout


@torch.no_grad()
def load_flat_(model: nn.Module, params_N: NDArray[np.float32], layout: Layout) -> None:
    """Give the model these parameters, on whatever device and in whatever dtype its own are."""
    _require_flat(params_N, layout)
    for view_P, place in views(model, layout, start=0, stop=layout.num_values):
        # torch warns of memory that it may only read; such a part, and no other, is copied.
        writable_P = np.require(params_N[place], requirements="W")
        view_P.copy_(torch.from_numpy(writable_P))


@torch.no_grad()
def store_flat_(model: nn.Module, out_N: NDArray[np.float32], layout: Layout) -> None:
    """Copy the model's parameters into `out_N`; returns when they are there."""
    _require_flat(out_N, layout)
    for view_P, place in views(model, layout, start=0, stop=layout.num_values):
        torch.from_numpy(out_N[place]).copy_(view_P)


def views(
    model: nn.Module, layout: Layout, *, start: int, stop: int
) -> Iterator[tuple[Tensor, slice]]:
    """Yield views of the parameters that together are the values `start` to `stop - 1`, in order.

    With each comes its place in the flat vector. Whoever writes to it changes the model. Of a model
    that is sharded, they are those values that this rank holds.
    """
    parameters = dict(model.named_parameters())
    for entry in layout.entries:
        held_P, first = _held(parameters[entry.spec.name])
        # Value 0 of what is held stands here in the flat vector.
        at = entry.start + first - entry.row_start * entry.spec.row_values
        place = slice(max(start, entry.start, at), min(stop, entry.stop, at + len(held_P)))
        if place.start < place.stop:
            yield held_P[place.start - at : place.stop - at], place


def is_sharded(tensor: Tensor) -> bool:
    """Return whether it is a DTensor, without the import, for which most need not wait."""
    return hasattr(tensor, "device_mesh")


def _held(parameter: nn.Parameter) -> tuple[Tensor, int]:
    """Return a view of the values that this rank holds, and which one of all is the first."""
    if not is_sharded(parameter):
        return parameter.detach().view(-1), 0
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    num_rows, mesh = parameter.shape[0], parameter.device_mesh
    devices = mesh.ndim - 1  # of a machine: the dimension that shards; one before it only copies
    rows_per_rank = -(
        -num_rows // mesh.size(devices)
    )  # as torch.chunk cuts: the last may hold less
    first_row = min(num_rows, mesh.get_local_rank(devices) * rows_per_rank)
    return parameter.to_local().detach().view(-1), first_row * prod(parameter.shape[1:])


def _require_flat(flat_N: NDArray[np.float32], layout: Layout) -> None:
    assert flat_N.dtype == np.float32, "a flat vector is fp32"
    assert flat_N.shape == (layout.num_values,), "not a flat vector of this model"
