import math

import pytest
import torch

from atoll.config import ModelConfig
from atoll.model.generate import Sampling, choose, generate
from atoll.model.llama import Llama

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=50, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=48
    )
    return Llama(config)


def greedy_without_cache(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5]])
def test_greedy_is_what_the_model_says_without_a_cache(model, prompt):
    tokens = list(generate(model, prompt, max_new_tokens=20, sampling=GREEDY))
    assert tokens == greedy_without_cache(model, prompt, 20)
    assert len(set(tokens)) > 2


def test_it_ends_before_the_stop_token(model):
    tokens = greedy_without_cache(model, [3], 20)
    stop = tokens[5]
    stopped = generate(model, [3], max_new_tokens=20, sampling=GREEDY, stop_token=stop)
    assert list(stopped) == tokens[: tokens.index(stop)]


def test_the_seed_decides(model):
    def sample(seed):
        return list(generate(model, [3], max_new_tokens=20, sampling=Sampling(seed=seed)))

    assert sample(0) == sample(0) != sample(1)


def test_no_gradients_are_kept_while_it_is_paused(model):
    tokens = generate(model, [3], max_new_tokens=2, sampling=GREEDY)
    next(tokens)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def draws(logits, sampling, count=4000):
    generator = torch.Generator().manual_seed(0)
    chosen = [choose(torch.tensor(logits), sampling, generator=generator) for _ in range(count)]
    return [chosen.count(token) / count for token in range(len(logits))]


def test_probabilities_are_the_softmax_over_the_temperature():
    expected = torch.softmax(torch.tensor([1.0, 0.0, 2.0]) / 0.5, dim=0).tolist()
    drawn = draws([1.0, 0.0, 2.0], Sampling(temperature=0.5, top_k=0))
    assert drawn == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 2e-6])
def test_however_cold_it_is_a_token_is_drawn(temperature):
    assert draws([50.0, 60.0, -60.0], Sampling(temperature=temperature), count=3) == [0, 1, 0]


def test_only_the_best_are_drawn():
    drawn = draws([1.0, 0.0, 1.0, 0.9], Sampling(temperature=1.0, top_k=2))
    assert drawn == pytest.approx([0.5, 0, 0.5, 0], abs=0.03)


def test_only_the_likeliest_that_make_up_the_mass_are_drawn():
    half, third, sixth = (math.log(p) for p in (1 / 2, 1 / 3, 1 / 6))
    nucleus = Sampling(temperature=1.0, top_k=0, top_p=0.7)
    assert draws([sixth, half, third], nucleus) == pytest.approx([0, 0.6, 0.4], abs=0.03)
    best = Sampling(temperature=1.0, top_k=0, top_p=0.0)
    assert draws([sixth, half, third], best, count=20) == [0, 1, 0]
