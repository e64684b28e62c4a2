"""A model's parameters as one flat fp32 vector in canonical order, as which they are exchanged.

Shapes: N all values of the model, P those of one parameter.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@torch.no_grad()
def load_flat_(model: nn.Module, params_N: NDArray[np.float32]) -> None:
    """Give the model these parameters, on whatever device and in whatever dtype its own are."""
    for parameter, values_P in _pairs(model, params_N):
        # torch warns of memory that it may only read; such a part, and no other, is copied.
        writable_P = np.require(values_P, requirements="W")
        parameter.copy_(torch.from_numpy(writable_P).view(parameter.shape))


@torch.no_grad()
def store_flat_(model: nn.Module, out_N: NDArray[np.float32]) -> None:
    """Copy the model's parameters into `out_N`; returns when they are there."""
    for parameter, values_P in _pairs(model, out_N):
        torch.from_numpy(values_P).view(parameter.shape).copy_(parameter)


def _pairs(
    model: nn.Module, flat_N: NDArray[np.float32]
) -> Iterator[tuple[Tensor, NDArray[np.float32]]]:
    """Yield each parameter and the part of the vector that stands for it."""
    assert flat_N.dtype == np.float32, "a flat vector is fp32"
    start = 0
    for parameter in model.parameters():
        yield parameter, flat_N[start : start + parameter.numel()]
        start += parameter.numel()
    assert flat_N.shape == (start,), "not a flat vector of this model"
