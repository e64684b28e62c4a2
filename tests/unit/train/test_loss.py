import pytest
import torch

from atoll.train.loss import IGNORED, language_model_loss

B, T, V = 6, 5, 11


@pytest.fixture
def logits_BTV():  # noqa: N802
    return 4 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets_BT():  # noqa: N802
    targets_BT = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))
    targets_BT[0, :3] = IGNORED
    targets_BT[4] = IGNORED
    return targets_BT


def test_is_the_mean_over_the_targets_plus_the_z_loss(logits_BTV, targets_BT):
    is_target = targets_BT != IGNORED
    kept, wanted = logits_BTV[is_target], targets_BT[is_target]
    expected = -kept.log_softmax(-1)[torch.arange(len(wanted)), wanted].mean()
    objective, cross_entropy = language_model_loss(
        logits_BTV, targets_BT, num_targets=len(wanted), z_loss=0.1
    )
    assert cross_entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    z_loss = 0.1 * kept.max(-1).values.square().mean()
    assert objective.item() == pytest.approx((expected + z_loss).item(), rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(
    logits_BTV, targets_BT, micro_batch
):
    num_targets = int((targets_BT != IGNORED).sum())

    def gradient(size: int) -> torch.Tensor:
        leaf = logits_BTV.clone().requires_grad_()
        for logits, targets in zip(leaf.split(size), targets_BT.split(size), strict=True):
            language_model_loss(logits, targets, num_targets=num_targets, z_loss=0.1)[0].backward()
        return leaf.grad

    assert torch.equal(gradient(micro_batch), gradient(B))


def test_bf16_logits_are_summed_in_fp32(logits_BTV, targets_BT):
    objective, _ = language_model_loss(logits_BTV.bfloat16(), targets_BT, num_targets=1, z_loss=1.0)
    assert objective.dtype == torch.float32
