"""The run of the demo: a small model and real text, over in minutes on two cores.

`configs/demo.toml` is what `demo_config(peers=3, rounds=ROUNDS)` gives, written by `template`.
"""

from typing import Final

from msgspec.structs import replace

from atoll.cli.recipes import Peers, run_config
from atoll.config import EvaluationConfig, RunConfig, SourceConfig

ROUNDS: Final = 32
INNER_STEPS: Final = 10
INNER_LR: Final = 4e-3  # better than 2e-3 for three peers and for one (docs/experiments.md)

EVALUATIONS: Final = 8  # of committed states in the run, by the peers
PROMPT: Final = "The state of the Union is"


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
        peers=Peers(least=max(1, peers - 1)),
    )
    # Nobody is further away than the loopback: who is silent for seconds is gone.
    sync = replace(config.sync, grace_floor_s=1.0, heartbeat_s=0.5, silent_s=5.0, reconnect_s=15.0)
    inner = replace(config.inner, lr=INNER_LR, fresh_warmup_steps=5)
    # Little enough that the round of the peer that does it need not go on without it.
    evaluation = EvaluationConfig(
        every_rounds=max(1, rounds // EVALUATIONS), samples=32, prompt=PROMPT, sample_tokens=24
    )
    return replace(config, inner=inner, sync=sync, evaluation=evaluation)
