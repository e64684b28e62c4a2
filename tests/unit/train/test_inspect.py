"""A saved state is judged between two steps, and training goes on as if it had not been."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from atoll.config import EvaluationConfig, PeerConfig
from atoll.data.batches import Batches
from atoll.errors import RunError
from atoll.ids import RoundId, digest_of
from atoll.model.flat import store_flat_
from atoll.model.layout import layout_of
from atoll.outer.checkpoint import STATE_FILE, StateStore
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model
from atoll.train.channel import Evaluate, Setup
from atoll.train.evaluate import validation_loss
from atoll.train.inner import InnerLoop
from atoll.train.inspect import inspect_state
from atoll.train.ranks import Followers

CPU = torch.device("cpu")


@pytest.fixture
def state_file(config, tmp_path):
    """The file of a state whose weights are those that the run begins with."""
    params_N = np.empty(layout_of(config).num_values, np.float32)
    store_flat_(initial_model(config, device=CPU), params_N, layout_of(config))
    state = PeerState(RoundId(3), params_N, np.ones_like(params_N))
    run = digest_of(b"run")
    StateStore(tmp_path, keep=2).save(state, manifest_of(state, run=run), now=0.0)
    return tmp_path / "000003" / STATE_FILE


@pytest.fixture
def followers(config, tmp_path):
    setup = Setup(config=config, peer=PeerConfig(directory=str(tmp_path)), vectors="", dataset="")
    with Followers(setup, 1, on_end=lambda _: None) as followers:
        yield followers


def test_it_judges_the_saved_state_and_trains_on_bit_for_bit(
    config, dataset, state_file, followers
):
    wanted = EvaluationConfig(every_rounds=1, samples=10, prompt="Two islands", sample_tokens=9)
    config = replace(config, evaluation=wanted)

    def steps(*, judged):
        model = initial_model(config, device=CPU)
        loop = InnerLoop(model, Batches(dataset, seed=config.seed), config)
        for step in range(4):
            loop.step([(4 * step, 4 * step + 4)], step=step)
            if judged and step == 1:
                found = inspect_state(
                    loop, Evaluate(state=str(state_file)), dataset, followers=followers
                )
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        return weights, found if judged else None

    plain, _ = steps(judged=False)
    weights, found = steps(judged=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, weights, strict=True))
    batches = Batches(dataset, seed=config.seed)
    first = initial_model(config, device=CPU)
    num_samples = min(10, dataset.num_validation_samples)
    loss = validation_loss(first, batches, batch_sequences=4, num_samples=num_samples)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.text.startswith("Two islands")
    assert len(found.text) > len("Two islands")


def test_a_file_that_is_gone_is_an_error_that_changes_nothing(config, dataset, followers, tmp_path):
    loop = InnerLoop(initial_model(config, device=CPU), Batches(dataset, seed=0), config)
    before = [parameter.detach().clone() for parameter in loop.model.parameters()]
    with pytest.raises(RunError, match="cannot read"):
        inspect_state(loop, Evaluate(state=str(tmp_path / "x")), dataset, followers=followers)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
