from math import cos, pi, sqrt

import msgspec
import pytest
from hypothesis import given, strategies as st

from atoll.config import InnerConfig, SyncConfig, check
from atoll.errors import ConfigError
from atoll.train.schedule import learning_rate


@pytest.fixture
def shaped(config):
    inner = InnerConfig(
        lr=1.0, batch_sequences=1, warmup_steps=4, cooldown_steps=10, fresh_warmup_steps=5
    )
    sync = SyncConfig(rounds=10, inner_steps=10)
    return msgspec.structs.replace(config, inner=inner, sync=sync)


def test_warms_up_stays_and_cools_down(shaped):
    lr = [learning_rate(shaped, step, steps_since_fresh=step) for step in range(100)]
    assert lr[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(lr[4:91]) == {1.0}
    assert lr[91] == 1 - sqrt(0.1)
    assert lr[99] == 1 - sqrt(0.9)


def test_is_zero_beyond_the_end_of_the_run(shaped):
    assert learning_rate(shaped, 100, steps_since_fresh=100) == 0.0
    assert learning_rate(shaped, 5000, steps_since_fresh=5000) == 0.0


def test_a_state_that_began_late_warms_up_once_more(shaped):
    lr = [learning_rate(shaped, 50 + k, steps_since_fresh=k) for k in range(7)]
    assert lr == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]


def test_a_state_as_old_as_the_run_has_one_warm_up_only(shaped):
    assert learning_rate(shaped, 0, steps_since_fresh=0) == 0.25


def test_no_warm_up_no_cool_down_and_no_ramp_is_constant(config):
    inner = InnerConfig(lr=3e-4, batch_sequences=1, fresh_warmup_steps=0)
    constant = msgspec.structs.replace(config, inner=inner)
    assert {learning_rate(constant, s, steps_since_fresh=0) for s in range(25)} == {3e-4}


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_never_leaves_its_bounds(config, step, steps_since_fresh):
    lr = learning_rate(config, step, steps_since_fresh=steps_since_fresh)
    assert 0 <= lr <= config.inner.lr


def with_inner(config, **changes):
    return msgspec.structs.replace(config, inner=msgspec.structs.replace(config.inner, **changes))


@pytest.mark.parametrize("final_share", [0.0, 0.1])
def test_cosine_falls_from_the_warm_up_to_the_end(shaped, final_share):
    falling = with_inner(shaped, schedule="cosine", cooldown_steps=0, final_share=final_share)
    for step in range(4, 100):
        expected = final_share + (1 - final_share) * (1 + cos(pi * (step - 4) / 96)) / 2
        assert learning_rate(falling, step, steps_since_fresh=step) == pytest.approx(expected)
    assert learning_rate(falling, 1, steps_since_fresh=1) == 0.5
    assert learning_rate(falling, 500, steps_since_fresh=500) == pytest.approx(final_share)


def test_constant_is_constant_after_the_warm_up(shaped):
    constant = with_inner(shaped, schedule="constant", cooldown_steps=0)
    assert {learning_rate(constant, s, steps_since_fresh=s) for s in range(3, 500)} == {1.0}
    assert learning_rate(constant, 0, steps_since_fresh=0) == 0.25


def test_a_cool_down_ends_at_the_final_share(shaped):
    lr = learning_rate(with_inner(shaped, final_share=0.2), 99, steps_since_fresh=99)
    assert lr == pytest.approx(0.2 + 0.8 * (1 - sqrt(0.9)))


@pytest.mark.parametrize("changes", [{"cooldown_steps": 1}, {"final_share": 0.1}])
def test_what_a_constant_lr_would_ignore_is_refused(config, changes):
    constant = with_inner(config, schedule="constant", **changes)
    with pytest.raises(ConfigError, match=f"inner.{next(iter(changes))}: has no use with schedule"):
        check(constant)
