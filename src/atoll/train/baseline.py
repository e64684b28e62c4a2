"""Training without a network: what a run is compared with.

The same model, first weights, samples and steps as those of a run's only peer, in one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atoll.config import RunConfig
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.model.flat import load_flat_
from atoll.model.initial import initial_of
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train.inner import Computing, InnerLoop, StepResult

OnStep: TypeAlias = Callable[[int, StepResult], None]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    model: Llama
    losses: list[float]  # of each step, in nats per token


def train_alone(
    config: RunConfig,
    dataset: Dataset,
    *,
    model: Llama,
    num_steps: int,
    micro_batch: int = 0,
    on_step: OnStep,
) -> Trained:
    """Train a model that has the run's first weights on its samples 0, 1, 2, ... in order.

    `config.total_steps` still shapes the learning rate where `num_steps` is less.

    Raises:
        NotFinite: training has diverged.
    """
    how = Computing(micro_batch=micro_batch)
    loop = InnerLoop(model, Batches(dataset, seed=config.seed), config, how=how)
    batch_sequences = config.inner.batch_sequences
    span = (0, batch_sequences)
    losses = []
    for step in range(num_steps):
        following = (span[1], span[1] + batch_sequences)
        result = loop.step([span], step=step, then=[following])
        span = following
        losses.append(result.loss)
        on_step(step, result)
    return Trained(model, losses)


def initial_model(
    config: RunConfig, *, device: torch.device, params_N: NDArray[np.float32] | None = None
) -> Llama:
    """Return the model with these weights; None: those that follow from the seed of the run."""
    layout = layout_of(config)
    if params_N is None:
        params_N = initial_of(layout, seed=config.seed)
    model = Llama(config.model).to(device)
    load_flat_(model, params_N, layout)
    return model


def with_batch_factor(config: RunConfig, factor: int) -> RunConfig:
    """Return the run with batches `factor` times as large: what so many peers see in one step."""
    batch_sequences = factor * config.inner.batch_sequences
    inner = msgspec.structs.replace(config.inner, batch_sequences=batch_sequences)
    return msgspec.structs.replace(config, inner=inner)
