import numpy as np
import pytest

from atoll.config import OuterConfig
from atoll.errors import BadBlobError
from atoll.exchange import fp64
from atoll.exchange.step import apply_updates_
from atoll.ids import RoundId
from atoll.model.layout import Fragment, Layout
from atoll.outer.layout import slice_bounds
from atoll.outer.state import PeerState

SIZE = 150_000
OUTER = OuterConfig(lr=0.5, momentum=0.0)


def whole(num_values: int) -> Layout:
    return Layout(entries=(), fragments=(Fragment(0, 0, num_values),))


def test_every_value_takes_the_step_of_its_slice():
    mean_N = np.random.default_rng(0).normal(size=SIZE)
    state = PeerState.initial(np.ones(SIZE, np.float32))
    updates = [fp64.encode(mean_N[start:stop]) for start, stop in slice_bounds(SIZE)]
    assert len(updates) > 2

    apply_updates_(state, updates, codec=fp64, outer=OUTER, layout=whole(SIZE))

    assert state.round == 1
    assert np.array_equal(state.params_N, (1 - 0.5 * mean_N).astype(np.float32))


def test_the_momentum_is_that_of_the_round():
    outer = OuterConfig(lr=1.0, momentum=0.5, momentum_warmup_rounds=1)
    state = PeerState(RoundId(3), np.zeros(2, np.float32), np.ones(2, np.float32))
    apply_updates_(state, [fp64.encode(np.ones(2))], codec=fp64, outer=outer, layout=whole(2))
    # Round 4 is after the warm-up: velocity 0.5 * 1 + 1, and a step of 1 + 0.5 * velocity.
    assert state.round == 4
    assert state.momentum_N.tolist() == [1.5, 1.5]
    assert state.params_N.tolist() == [-1.75, -1.75]


def test_a_round_steps_its_fragment_alone_with_the_momentum_of_that_fragment():
    layout = Layout(entries=(), fragments=(Fragment(0, 0, 2), Fragment(1, 2, 5)))
    outer = OuterConfig(lr=1.0, momentum=0.5, momentum_warmup_rounds=1)
    state = PeerState(RoundId(1), np.zeros(5, np.float32), np.zeros(5, np.float32))
    # Round 2 is the first outer step of fragment 1: the momentum is half of 0.5.
    apply_updates_(state, [fp64.encode(np.ones(3))], codec=fp64, outer=outer, layout=layout)
    assert state.momentum_N.tolist() == [0, 0, 1, 1, 1]
    assert state.params_N.tolist() == [0, 0, -1.25, -1.25, -1.25]


def test_an_update_of_the_wrong_size_is_refused():
    state = PeerState.initial(np.zeros(4, np.float32))
    with pytest.raises(BadBlobError):
        apply_updates_(state, [fp64.encode(np.ones(3))], codec=fp64, outer=OUTER, layout=whole(4))
