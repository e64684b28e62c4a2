"""Runs to begin with: values that go together, by size of the model and length of the run."""

from typing import Final, NamedTuple

from atoll.config import (
    DataConfig,
    EvaluationConfig,
    InnerConfig,
    OuterConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)
from atoll.model.presets import PRESETS

LONG_RUN_ROUNDS: Final = 200
MEDIUM_RUN_ROUNDS: Final = 50


class Recipe(NamedTuple):
    sequence_length: int
    batch_sequences: int
    lr: float
    rounds: int
    inner_steps: int
    validation_share: float
    z_loss: float = 0.0


RECIPES: Final = {
    "tiny": Recipe(128, 8, 2e-3, 20, 20, 0.05),
    "small": Recipe(512, 16, 1e-3, 100, 50, 0.01),
    "150m": Recipe(1024, 128, 4e-4, 250, 100, 0.001),
    "1b": Recipe(2048, 256, 4e-4, 500, 100, 0.0005, 2e-4),
    "8b": Recipe(8192, 128, 3e-4, 900, 100, 0.0001, 2e-4),
    "intellect-1": Recipe(8192, 128, 7.5e-5, 904, 100, 0.0001, 2e-4),
}


class Peers(NamedTuple):
    """How many there will be."""

    least: int = 1  # that a round waits for
    expected: int = 0  # in most rounds; 0: nobody knows


def run_config(
    *,
    name: str,
    model: str,
    source: SourceConfig,
    rounds: int,
    inner_steps: int,
    peers: Peers,
) -> RunConfig:
    """Return a run of this model preset; 0 rounds or inner steps: as many as its recipe says."""
    recipe = RECIPES[model]
    vocab_size = PRESETS[model].vocab_size
    rounds, inner_steps = rounds or recipe.rounds, inner_steps or recipe.inner_steps
    return RunConfig(
        name=name,
        model=PRESETS[model],
        data=DataConfig(
            sources=(source,),
            tokenizer=TokenizerConfig(vocab_size=vocab_size),
            sequence_length=recipe.sequence_length,
            validation_share=recipe.validation_share,
        ),
        inner=inner_config(recipe, num_steps=rounds * inner_steps),
        evaluation=EvaluationConfig(every_rounds=max(1, rounds // 10)),
        outer=outer_config(rounds, inner_steps=inner_steps, peers_expected=peers.expected),
        sync=sync_config(rounds=rounds, inner_steps=inner_steps, min_peers=peers.least),
    )


def inner_config(recipe: Recipe, *, num_steps: int) -> InnerConfig:
    """Return AdamW with an eighth of the run as warm-up, 1000 steps at most, and cool-down."""
    return InnerConfig(
        lr=recipe.lr,
        batch_sequences=recipe.batch_sequences,
        warmup_steps=min(1000, num_steps // 8),
        cooldown_steps=num_steps // 5,
        z_loss=recipe.z_loss,
    )


def outer_config(rounds: int, *, inner_steps: int, peers_expected: int) -> OuterConfig:
    """Return DiLoCo's own settings for a long run; for a shorter one less momentum, warmed up.

    Measured at 16 and 48 rounds, where 0.9 overshoots; in between interpolated
    (docs/experiments.md, 2026-11-22). The lr follows from the number of peers, where it is known;
    rounds with fewer contributors then take a smaller one.
    """
    lr = outer_lr(peers_expected, inner_steps=inner_steps) if peers_expected else 0.7
    if rounds >= LONG_RUN_ROUNDS:
        return OuterConfig(lr=lr, contributors=peers_expected, momentum=0.9)
    momentum, warmup_rounds = 0.6, min(rounds // 2, 12)
    if rounds >= MEDIUM_RUN_ROUNDS:
        momentum, warmup_rounds = 0.8, rounds // 4
    return OuterConfig(
        lr=lr,
        contributors=peers_expected,
        momentum=momentum,
        momentum_warmup_rounds=warmup_rounds,
    )


def outer_lr(num_peers: int, *, inner_steps: int) -> float:
    """Return the outer lr for so many peers (arXiv 2503.09799, found at H = 30 and momentum 0.9).

    Many contributions differ in what is noise, so their mean is shorter. The paper found more for
    larger H, without a formula: here it is 0.1 more from H = 100 on, and as much less below 10.
    """
    lr = 0.4 if num_peers == 1 else 0.6 if num_peers <= 4 else 0.8
    return round(lr + 0.1 * ((inner_steps >= 100) - (inner_steps < 10)), 1)


def sync_config(*, rounds: int, inner_steps: int, min_peers: int) -> SyncConfig:
    """Return how peers wait for each other: longer where more is at stake."""
    if rounds >= LONG_RUN_ROUNDS:
        return SyncConfig(
            rounds=rounds,
            inner_steps=inner_steps,
            min_peers=min_peers,
            grace_floor_s=10.0,
            silent_s=30.0,
            reconnect_s=300.0,
        )
    return SyncConfig(rounds=rounds, inner_steps=inner_steps, min_peers=min_peers)
