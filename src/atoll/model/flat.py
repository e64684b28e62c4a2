"""A model's parameters as one flat fp32 vector in canonical order, as which they are exchanged.

Shapes: N all values of the model, P those of one view.
"""

from collections.abc import Iterator

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

    With each comes its place in the flat vector. Whoever writes to it changes the model.
    """
    parameters = dict(model.named_parameters())
    for entry in layout.entries:
        place = slice(max(start, entry.start), min(stop, entry.stop))
        if place.start < place.stop:
            offset = entry.row_start * entry.spec.row_values - entry.start
            flat = parameters[entry.spec.name].detach().view(-1)
            yield flat[place.start + offset : place.stop + offset], place


def _require_flat(flat_N: NDArray[np.float32], layout: Layout) -> None:
    assert flat_N.dtype == np.float32, "a flat vector is fp32"
    assert flat_N.shape == (layout.num_values,), "not a flat vector of this model"
