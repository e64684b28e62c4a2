"""The state of the inner optimizer as a file, for whoever has no torch: an agent, and its joiners.

    safetensors, fp32: "exp_avg.NAME" and "exp_avg_sq.NAME" for each parameter that is AdamW's,
                       "momentum_buffer.NAME" for each that is Muon's
    metadata: the number of steps, and the digest of all of it

A file from another peer is checked before it is used. Names and shapes are those of our model.
And no history of gradients leads to a mean that is large beside its mean square:

    m = (1 - b1) sum of b1^i g_i,   v = (1 - b2) sum of b2^i g_i^2    =>    |m| <= bound sqrt(v)
    bound^2 = (1 - b1)^2 / ((1 - b2) (1 - b1^2 / b2))                 (Cauchy-Schwarz; b1^2 < b2)

So whoever made these moments up cannot make a step of Adam longer than true ones might. A step of
Muon is as long as lr says, whatever the mean of the gradients is; of gradients that were clipped,
it is no longer than they were, and so it is forgotten at the pace of true ones.
"""

from math import inf, sqrt
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from atoll.config import InnerConfig, RunConfig
from atoll.errors import BadBlobError, DamagedError
from atoll.model.shapes import ParameterSpec, parameter_specs

# torch's names for the means of g and g^2, and for Muon's mean of g
ADAM: Final = ("exp_avg", "exp_avg_sq")
MUON: Final = ("momentum_buffer",)
Tensors = dict[str, NDArray[np.float32]]
_MARGIN: Final = 1.001  # for rounding, over any number of steps
_NOTHING: Final = 1e-18  # so small a mean moves no weight: the square of it is 0 in fp32


def read_moments(path: Path) -> tuple[Tensors, int]:
    """Return what is in the file, and after how many steps it was saved.

    Raises:
        DamagedError: it is not what was saved.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        num_steps = int(metadata["num_steps"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if metadata.get("digest") != digest_of_moments(tensors, num_steps):
        raise damaged(path, "its content has changed")
    return tensors, num_steps


def check_moments(path: Path, config: RunConfig) -> None:
    """Check a file that another peer made.

    Raises:
        BadBlobError: it is no state of an inner optimizer of this run.
    """
    try:
        tensors, num_steps = read_moments(path)
    except DamagedError as error:
        raise BadBlobError(str(error)) from error
    specs = parameter_specs(config.model)
    expected = {
        f"{moment}.{spec.name}": spec.shape
        for spec in specs
        for moment in moments_of(spec, config.inner)
    }
    found = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype == np.float32}
    if num_steps <= 0 or found != expected or len(tensors) != len(expected):
        raise BadBlobError("the inner optimizer of another model")
    for spec in specs:
        if moments_of(spec, config.inner) == MUON:
            _check_muon(tensors, spec, config.inner)
        else:
            _check_adam(tensors, spec, config.inner)


def moments_of(spec: ParameterSpec, inner: InnerConfig) -> tuple[str, ...]:
    """Return what the inner optimizer remembers of a parameter."""
    return MUON if inner.optimizer == "muon" and spec.is_block_matrix else ADAM


def _check_adam(tensors: Tensors, spec: ParameterSpec, inner: InnerConfig) -> None:
    bound = largest_mean(inner)
    mean, square = (tensors[f"{moment}.{spec.name}"] for moment in ADAM)
    # Written so that a NaN fails; what is too large for fp32 is infinite, and fails as well.
    if not (square >= 0).all() or not np.isfinite(square).all():
        raise BadBlobError(f"mean squares of {spec.name} that are none")
    limit = bound * np.sqrt(square) + _NOTHING if bound < inf else np.finfo(np.float32).max
    if not (np.abs(mean) <= limit).all():
        raise BadBlobError(f"means of {spec.name} that no gradients have")


def _check_muon(tensors: Tensors, spec: ParameterSpec, inner: InnerConfig) -> None:
    mean = tensors[f"{MUON[0]}.{spec.name}"]
    # In doubles: the square of no fp32 value is infinite in them.
    if not np.linalg.norm(mean.astype(np.float64)) <= _MARGIN * inner.clip_norm:
        raise BadBlobError(f"means of {spec.name} that no clipped gradients have")


def largest_mean(inner: InnerConfig) -> float:
    """Return how many times the root of its mean square the mean of gradients can be."""
    ratio = inner.beta1**2 / inner.beta2 if inner.beta2 else inf
    if ratio >= 1:
        return inf
    return _MARGIN * (1 - inner.beta1) / sqrt((1 - inner.beta2) * (1 - ratio))


def damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"not a state of the optimizer: {path}: {why}",
        hint="delete the file; the optimizer then starts afresh and warms up",
    )


def digest_of_moments(tensors: Tensors, num_steps: int) -> str:
    hasher = blake3(str(num_steps).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        hasher.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        hasher.update(tensor.data.cast("B"))
    return hasher.hexdigest()
