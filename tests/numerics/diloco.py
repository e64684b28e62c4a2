"""A round of a run in one process: the real parts, one after the other, and no network.

Shapes: N values of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from msgspec.structs import replace as changed
from numpy.typing import NDArray

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    OuterConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)
from atoll.data.batches import Batches
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors, encode_slice
from atoll.exchange.plan import shares
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.step import apply_updates_
from atoll.ids import PeerId
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import Fragment, Layout, layout_of
from atoll.model.shapes import num_parameters
from atoll.outer.layout import slice_bounds
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model
from atoll.train.inner import InnerLoop
from atoll.train.work import Span, cut_into_steps, num_samples

ANNA, BEN, CARL = (PeerId(letter * 32) for letter in "abc")

CONFIG = RunConfig(
    name="diloco",
    model=ModelConfig(  # 77,000 values: two slices
        vocab_size=300, num_layers=2, width=64, num_heads=4, num_kv_heads=2, ffn_width=80
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="path", name="text.txt"),),
        tokenizer=TokenizerConfig(vocab_size=300),
        sequence_length=24,
    ),
    inner=InnerConfig(lr=3e-3, batch_sequences=4, warmup_steps=2, cooldown_steps=3, z_loss=2e-4),
    sync=SyncConfig(rounds=4, inner_steps=3, codec="fp64", update_codec="fp64"),
    outer=OuterConfig(lr=1.0, momentum=0.0),
)


def with_codec(config: RunConfig, codec: str) -> RunConfig:
    return changed(config, sync=changed(config.sync, codec=codec, update_codec=codec))


@dataclass(frozen=True)
class Contribution:
    """The encoded slices of a peer, and how many samples went into them."""

    slices: tuple[bytes, ...]
    num_samples: int


def initial_state(config: RunConfig) -> PeerState:
    params_N = np.empty(num_parameters(config.model), np.float32)
    fill_initial_(params_N, layout_of(config), seed=config.seed)
    return PeerState.initial(params_N)


def fresh_loop(config: RunConfig, batches: Batches) -> InnerLoop:
    return InnerLoop(initial_model(config, device=torch.device("cpu")), batches, config)


def flat(loop: InnerLoop) -> NDArray[np.float32]:
    out_N = np.empty(num_parameters(loop.config.model), np.float32)
    store_flat_(loop.model, out_N, layout_of(loop.config))
    return out_N


def train(loop: InnerLoop, spans: Sequence[Span], *, first_step: int) -> list[float]:
    """Take the inner steps on these samples; return the loss of each."""
    steps = cut_into_steps(spans, batch_sequences=loop.config.inner.batch_sequences)
    return [loop.step(step_spans, step=k).loss for k, step_spans in enumerate(steps, first_step)]


def train_round(
    loop: InnerLoop, state: PeerState, spans: Sequence[Span]
) -> tuple[Contribution, list[float]]:
    """Train from the global parameters; return the contribution, and the loss of each step."""
    load_flat_(loop.model, state.params_N, layout_of(loop.config))
    losses = train(loop, spans, first_step=state.round * loop.config.sync.inner_steps)
    encoded = contribution(state, flat(loop), num_samples=num_samples(spans), config=loop.config)
    return encoded, losses


def contribution(
    state: PeerState, local_N: NDArray[np.float32], *, num_samples: int, config: RunConfig
) -> Contribution:
    codec = CODECS[config.sync.codec]
    slices = tuple(
        encode_slice(codec, Vectors(state.params_N, local_N).part(start, stop))[1]
        for start, stop in slice_bounds(state.num_values)
    )
    return Contribution(slices, num_samples)


def commit_(
    state: PeerState, contributions: Mapping[PeerId, Contribution], config: RunConfig
) -> list[bytes]:
    """Make `state`, all of it one fragment, the next one from these; return the updates."""
    codec, update_codec = CODECS[config.sync.codec], CODECS[config.sync.update_codec]
    sizes = [stop - start for start, stop in slice_bounds(state.num_values)]
    squared_norms = {
        peer: sum(codec.check(p, size) for p, size in zip(made.slices, sizes, strict=True))
        for peer, made in contributions.items()
    }
    roster = shares(
        {peer: made.num_samples for peer, made in contributions.items()},
        {peer: squares**0.5 for peer, squares in squared_norms.items()},
        clip_to_median=config.sync.clip_to_median,
    )
    updates = [
        reduce_slice(
            [(contributions[peer].slices[index], share) for peer, share in roster.items()],
            codec=codec,
            update_codec=update_codec,
            num_values=size,
        )
        for index, size in enumerate(sizes)
    ]
    whole = Layout(entries=(), fragments=(Fragment(0, 0, state.num_values),))
    apply_updates_(state, updates, codec=update_codec, outer=config.outer, layout=whole)
    return updates


def copy_of(state: PeerState) -> PeerState:
    return replace(state, params_N=state.params_N.copy(), momentum_N=state.momentum_N.copy())


def decoded(made: Contribution, config: RunConfig) -> NDArray[np.float64]:
    """Return the pseudo-gradient that a contribution stands for, as one vector."""
    codec = CODECS[config.sync.codec]
    bounds = slice_bounds(num_parameters(config.model))
    return np.concatenate(
        [
            codec.decode(payload, stop - start)
            for payload, (start, stop) in zip(made.slices, bounds, strict=True)
        ]
    )
