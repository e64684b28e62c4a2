import math

import numpy as np
import pytest
import torch

from atoll.data.batches import Batches
from atoll.data.cloze import Question
from atoll.train import evaluate
from atoll.train.baseline import initial_model, train_alone
from atoll.train.evaluate import Passage, cloze_accuracy, likeliest, likelihoods, validation_loss

CPU = torch.device("cpu")


@pytest.fixture
def batches(config, dataset):
    return Batches(dataset, seed=config.seed)


def test_a_model_that_knows_nothing_has_the_loss_of_a_guess(config, batches):
    model = initial_model(config, device=CPU)
    with torch.no_grad():
        model.head.weight.zero_()
    loss = validation_loss(model, batches, batch_sequences=3, num_samples=7)
    assert loss == pytest.approx(math.log(config.model.vocab_size), rel=1e-6)


def test_does_not_depend_on_the_batch(config, batches):
    model = initial_model(config, device=CPU)
    losses = [
        validation_loss(model, batches, batch_sequences=b, num_samples=7) for b in (1, 3, 7, 100)
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_training_lowers_it(config, dataset, batches):
    before = validation_loss(
        initial_model(config, device=CPU), batches, batch_sequences=8, num_samples=16
    )
    trained = train_alone(
        config,
        dataset,
        model=initial_model(config, device=CPU),
        num_steps=20,
        on_step=lambda *_: None,
    )
    after = validation_loss(trained.model, batches, batch_sequences=8, num_samples=16)
    assert after < before - 0.5


def test_the_likeliest_passage_is_so_by_the_product_of_its_tokens(config):
    model, rng = initial_model(config, device=CPU), np.random.default_rng(0)
    found = []
    for _ in range(12):
        context, choices_KP = rng.integers(300, size=5), rng.integers(300, size=(4, 3))
        chances = []
        for passage in choices_KP:
            tokens, chance = list(context), 1.0
            for token in passage:  # each from all before it
                logits_V = model(torch.tensor([tokens]))[0, -1].double()
                chance *= logits_V.softmax(0)[token].item()
                tokens.append(token)
            chances.append(chance)
        best = int(np.argmax(chances))
        assert likeliest(model, Question(context, choices_KP, 0)) == best
        found.append(Question(context, choices_KP, best))
    assert cloze_accuracy(model, found) == 1.0
    wrong = [question._replace(answer=(question.answer + 1) % 4) for question in found[:3]]
    assert cloze_accuracy(model, wrong + found[3:]) == 0.75


def test_a_continuation_is_as_likely_as_its_tokens_one_after_the_other(config, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", 20)  # several batches, with padding in them
    monkeypatch.setattr(evaluate, "CHUNK_TOKENS", 3)
    model, rng = initial_model(config, device=CPU), np.random.default_rng(1)
    passages = [
        Passage(rng.integers(300, size=c).tolist(), rng.integers(300, size=p).tolist())
        for c, p in [(1, 1), (3, 7), (5, 2), (2, 0), (30, 1), (4, 4), (1, 6)]
    ]
    passages[3] = Passage([5, 6], greedy := _greedy(model, [5, 6], num_tokens=5))
    passages.append(Passage([5, 6], [*greedy[:-1], (greedy[-1] + 1) % 300]))
    passages.append(Passage([7], []))
    read = []
    found = likelihoods(model, passages, on_read=read.append)
    for (context, continuation), (logprob, is_greedy) in zip(passages, found, strict=True):
        tokens, expected, each_likeliest = list(context), 0.0, True
        for token in continuation:
            logits_V = model(torch.tensor([tokens]))[0, -1].double()
            expected += logits_V.log_softmax(0)[token].item()
            each_likeliest &= int(logits_V.argmax()) == token
            tokens.append(token)
        assert logprob == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert is_greedy == each_likeliest
    assert (found[3].is_greedy, found[-2].is_greedy) == (True, False)
    assert found[-1] == (0.0, True)
    assert (read[-1], read == sorted(set(read)), len(read) > 2) == (len(passages), True, True)


def _greedy(model, tokens, *, num_tokens):
    tokens = list(tokens)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[-num_tokens:]
