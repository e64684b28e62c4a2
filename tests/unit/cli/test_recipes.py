import tomllib

import pytest
from msgspec import convert

from atoll.cli.recipes import LONG_RUN_ROUNDS, RECIPES, Peers, outer_config, run_config
from atoll.config import RunConfig, SourceConfig, check, template
from atoll.model.presets import PRESETS

SOURCE = SourceConfig(kind="preset", name="sotu")


def config_of(model: str, *, rounds: int = 0, inner_steps: int = 0) -> RunConfig:
    return run_config(
        name="x",
        model=model,
        source=SOURCE,
        rounds=rounds,
        inner_steps=inner_steps,
        peers=Peers(least=2),
    )


def test_there_is_a_recipe_for_every_model():
    assert RECIPES.keys() == PRESETS.keys()


@pytest.mark.parametrize("model", RECIPES)
@pytest.mark.parametrize(("rounds", "inner_steps"), [(0, 0), (1, 1), (3, 7), (5000, 500)])
def test_a_run_of_any_length_is_possible(model, rounds, inner_steps):
    config = config_of(model, rounds=rounds, inner_steps=inner_steps)
    check(config)
    assert convert(tomllib.loads(template(config)), RunConfig) == config
    assert config.model == PRESETS[model]
    assert config.sync.min_peers == 2
    assert config.sync.rounds == (rounds or RECIPES[model].rounds)
    assert config.sync.inner_steps == (inner_steps or RECIPES[model].inner_steps)


def test_a_long_run_has_the_outer_settings_of_diloco():
    outer = outer_config(LONG_RUN_ROUNDS, inner_steps=100, peers_expected=0)
    assert (outer.lr, outer.momentum, outer.momentum_warmup_rounds) == (0.7, 0.9, 0)


@pytest.mark.parametrize(
    ("rounds", "momentum", "warmup"),
    [(1, 0.6, 0), (16, 0.6, 8), (49, 0.6, 12), (50, 0.8, 12), (LONG_RUN_ROUNDS - 1, 0.8, 49)],
)
def test_a_shorter_run_has_less_momentum_that_warms_up(rounds, momentum, warmup):
    outer = outer_config(rounds, inner_steps=20, peers_expected=0)
    assert (outer.lr, outer.momentum, outer.momentum_warmup_rounds) == (0.7, momentum, warmup)


@pytest.mark.parametrize("rounds", [16, 60, LONG_RUN_ROUNDS])
@pytest.mark.parametrize(
    ("peers", "inner_steps", "lr"),
    [(1, 30, 0.4), (2, 30, 0.6), (4, 30, 0.6), (8, 30, 0.8), (8, 100, 0.9), (4, 1, 0.5)],
)
def test_the_outer_lr_follows_from_the_peers_that_are_expected(rounds, peers, inner_steps, lr):
    outer = outer_config(rounds, inner_steps=inner_steps, peers_expected=peers)
    assert (outer.lr, outer.contributors) == (lr, peers)
    unknown = outer_config(rounds, inner_steps=inner_steps, peers_expected=0)
    assert (unknown.momentum, unknown.contributors) == (outer.momentum, 0)
