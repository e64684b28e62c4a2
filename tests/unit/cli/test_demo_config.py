"""The run of the demo: valid for any size, and the one that `configs/` shows."""

from pathlib import Path

import pytest

from atoll.cli.demo_config import ROUNDS, demo_config
from atoll.config import check, template

CONFIG = Path(__file__).parents[3] / "configs" / "demo.toml"


def test_the_shipped_config_is_that_of_the_demo():
    shipped = CONFIG.read_text(encoding="utf-8")
    assert shipped == template(demo_config(peers=3, rounds=ROUNDS)), "rewrite it with `template`"


@pytest.mark.parametrize("rounds", [1, 2, 5, 16, 20, 99, 100, 400])
def test_warm_up_and_cool_down_fit_any_number_of_rounds(rounds: int):
    config = demo_config(peers=3, rounds=rounds)
    check(config)
    assert config.total_steps == 10 * rounds
    assert config.inner.warmup_steps + config.inner.cooldown_steps <= config.total_steps // 2
    assert config.outer.momentum_warmup_rounds <= rounds


@pytest.mark.parametrize(("peers", "needed"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_a_round_can_do_without_any_one_peer(peers: int, needed: int):
    assert demo_config(peers=peers, rounds=16).sync.min_peers == needed
