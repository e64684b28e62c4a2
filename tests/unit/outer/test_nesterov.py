import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace

from atoll.config import OuterConfig
from atoll.ids import RoundId
from atoll.outer.nesterov import momentum_at, outer_step_, suited_to

sizes = st.integers(1, 40)
fp32 = st.floats(-(2.0**100), 2.0**100, width=32)


def step_in_numpy(params_N, momentum_N, mean_N, *, lr, momentum):
    velocity_N = momentum * momentum_N.astype(np.float64) + mean_N
    return (
        (params_N - lr * (mean_N + momentum * velocity_N)).astype(np.float32),
        velocity_N.astype(np.float32),
    )


@settings(deadline=None)
@given(sizes, st.integers(0, 2**32), st.floats(0.01, 2), st.floats(0, 0.99))
def test_equals_the_formula_bit_for_bit(num_values, seed, lr, momentum):
    # Full mantissas: a fused multiply-add would show.
    rng = np.random.default_rng(seed)
    params_N = rng.standard_normal(num_values).astype(np.float32)
    momentum_N = rng.standard_normal(num_values).astype(np.float32)
    mean_N = rng.standard_normal(num_values)
    expected = step_in_numpy(params_N, momentum_N, mean_N, lr=lr, momentum=momentum)
    outer_step_(params_N, momentum_N, mean_N, lr=lr, momentum=momentum)
    assert params_N.tobytes() == expected[0].tobytes()
    assert momentum_N.tobytes() == expected[1].tobytes()


def test_no_multiplication_is_fused_with_an_addition():
    # (1 + e)(1 - e) rounds to 1 in double; fused with the subtraction, e * e would be left.
    e = 2.0**-30
    params_N = np.array([1.0], np.float32)
    outer_step_(params_N, np.zeros(1, np.float32), np.array([1 - e]), lr=1 + e, momentum=0.0)
    assert params_N[0] == 0.0


@settings(deadline=None)
@given(fp32, fp32)
@example(1.0, 2.0**-28)
@example(1.9999999, -(2.0**-28))
@example(0.1, 0.0)
def test_with_lr_1_and_no_momentum_an_exact_difference_leads_exactly_to_the_local_value(g, l):  # noqa: E741
    params_N, local_N = np.array([g], np.float32), np.array([l], np.float32)
    mean_N = params_N.astype(np.float64) - local_N
    assume(abs(l) >= 2.0**-28 * abs(g) or l == 0)
    outer_step_(params_N, np.zeros(1, np.float32), mean_N, lr=1.0, momentum=0.0)
    assert params_N[0] == local_N[0]


@settings(deadline=None)
@given(arrays(np.float32, 7, elements=st.floats(-10, 10, width=32)))
def test_takes_views_of_shared_memory_and_read_only_means(values_N):
    memory = bytearray(3 + 2 * values_N.nbytes)
    params_N = np.frombuffer(memory, np.float32, count=7, offset=3)  # not aligned
    momentum_N = np.frombuffer(memory, np.float32, count=7, offset=3 + values_N.nbytes)
    mean_N = np.frombuffer(values_N.astype(np.float64).tobytes(), np.float64)
    outer_step_(params_N, momentum_N, mean_N, lr=0.5, momentum=0.0)
    assert np.array_equal(params_N, -0.5 * values_N)
    assert np.array_equal(momentum_N, values_N)


@pytest.mark.parametrize(
    ("warmup_rounds", "expected"), [(0, [0.8, 0.8, 0.8]), (3, [0.2, 0.4, 0.6, 0.8, 0.8])]
)
def test_momentum_warms_up(warmup_rounds, expected):
    config = OuterConfig(momentum=0.8, momentum_warmup_rounds=warmup_rounds)
    momenta = [momentum_at(config, RoundId(round)) for round in range(1, len(expected) + 1)]
    assert momenta == pytest.approx(expected)


def test_lr_falls_by_the_cube_root_of_the_contributors_that_are_left():
    config = OuterConfig(lr=0.8, contributors=8)
    lrs = [suited_to(config, num_contributors=n).lr for n in (1, 2, 4, 7, 8, 9, 1000)]
    assert lrs == pytest.approx([0.4, 0.504, 0.635, 0.765, 0.8, 0.8, 0.8], abs=1e-3)


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_only_lr_follows_the_contributors_and_never_beyond_what_is_set(present, expected):
    config = OuterConfig(lr=0.7, contributors=expected)
    suited = suited_to(config, num_contributors=present)
    if present >= expected:
        assert suited is config
    else:
        assert 0 < suited.lr < config.lr
        assert suited.lr == pytest.approx(config.lr * (present / expected) ** (1 / 3), rel=0.02)
        assert replace(suited, lr=config.lr) == config
