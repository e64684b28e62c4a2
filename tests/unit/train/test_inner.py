import msgspec
import numpy as np
import pytest
import torch

from atoll.data.batches import Batch, Batches
from atoll.train.baseline import initial_model
from atoll.train.inner import InnerLoop, NotFinite, cut, load_batch

CPU = torch.device("cpu")


@pytest.fixture
def loop(config, dataset):
    return InnerLoop(initial_model(config, device=CPU), Batches(dataset, seed=config.seed), config)


def test_a_step_reports_the_loss_and_norm_of_a_plain_gradient(config, loop):
    model, batch = initial_model(config, device=CPU), loop.batches.batch(0, 4)
    logits = model(torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.documents_BT))
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten()
    )
    (loss + 1e-4 * logits.max(-1).values.square().mean()).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()

    result = loop.step([(0, 4)], step=0)

    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert result.num_tokens == batch.targets_BT.size
    assert result.lr == config.inner.lr / 2
    assert loop.steps_since_fresh == 1


def test_gradients_are_clipped(config, dataset):
    inner = msgspec.structs.replace(config.inner, clip_norm=1e-3)
    config = msgspec.structs.replace(config, inner=inner)
    loop = InnerLoop(initial_model(config, device=CPU), Batches(dataset, seed=0), config)
    assert loop.step([(0, 4)], step=0).grad_norm > 1e-2
    norm = torch.cat([p.grad.flatten() for p in loop.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_divergence_is_an_error_and_spares_the_weights(loop, poison):
    loop.step([(0, 4)], step=0)
    with torch.no_grad():
        loop.model.norm.weight[0] = poison
    before = [p.clone() for p in loop.model.parameters()]
    with pytest.raises(NotFinite, match="diverged at inner step 1: loss") as caught:
        loop.step([(4, 8)], step=1)
    assert "inner.lr" in caught.value.hint
    after = list(loop.model.parameters())
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(after, before, strict=True)
    )
    assert loop.steps_since_fresh == 1


def test_a_step_over_several_spans_sees_their_samples_in_order(loop):
    batch = load_batch(loop.batches, [(3, 5), (9, 11)])
    expected = [loop.batches.batch(n, n + 1).tokens_BT[0] for n in (3, 4, 9, 10)]
    assert np.array_equal(batch.tokens_BT, expected)


def test_documents_are_masked_only_where_there_are_two():
    documents_BT = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]])
    batch = Batch(tokens_BT=documents_BT, targets_BT=documents_BT, documents_BT=documents_BT)
    first, second = cut(batch, micro_batch=2)
    assert first.documents_BT is None
    assert torch.equal(second.documents_BT, torch.from_numpy(documents_BT[2:]))
