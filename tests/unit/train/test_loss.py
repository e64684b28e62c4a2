import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F

from atoll.train import loss
from atoll.train.loss import IGNORED, language_model_loss

B, T, D, V = 6, 5, 8, 11


def parts(*, vocab_size: int = V, width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, a head and targets, some of which are none."""
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(B, T, width, generator=generator)
    head_VD = torch.randn(vocab_size, width, generator=generator)
    targets_BT = torch.randint(0, vocab_size, (B, T), generator=generator)
    targets_BT[0, :3] = IGNORED
    targets_BT[4] = IGNORED
    return hidden_BTD, head_VD, targets_BT


def plain(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, *, z_loss: float) -> Tensor:
    """Return the sum that is to be differentiated, from all logits at once."""
    logits_NV = F.linear(hidden_BTD, head_VD).flatten(0, 1)
    largest_N = logits_NV.amax(dim=1)
    targets_N = targets_BT.flatten()
    squares = largest_N.square()[targets_N != IGNORED].sum()
    cross_entropy = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    return cross_entropy + z_loss * squares


def gradients(objective: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(objective, leaves))


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Return how far gradients are from others: the norm of the difference, relative to theirs.

    No value by itself is as near: where terms cancel, the plain gradient in fp32 is by more than
    itself from the exact one.
    """
    return [
        float((gradient.double() - other).norm() / other.norm())
        for gradient, other in zip(found, expected, strict=True)
    ]


def test_is_the_mean_over_the_targets_plus_the_z_loss():
    hidden_BTD, head_VD, targets_BT = parts()
    num_targets = int((targets_BT != IGNORED).sum())
    objective, cross_entropy = language_model_loss(
        hidden_BTD, head_VD, targets_BT, num_targets=num_targets, z_loss=0.1
    )
    expected = [plain(hidden_BTD, head_VD, targets_BT, z_loss=z) / num_targets for z in (0.1, 0)]
    torch.testing.assert_close([objective, cross_entropy], expected, rtol=1e-6, atol=0)


# Where a chunk has a few tokens of a large vocabulary, the library sums up over the vocabulary one
# by one: 1e-6 by itself. On a CPU a chunk has 65 tokens at 128 256, and more at smaller ones.
@pytest.mark.parametrize(("vocab_size", "width", "least"), [(V, D, 1), (3000, 64, 10)])
@given(tokens=st.integers(1, 2 * B * T), z_loss=st.sampled_from([0.0, 0.1]))
@settings(deadline=None, max_examples=20)
def test_gradients_are_those_of_all_logits_at_once_however_they_are_cut(
    vocab_size, width, least, tokens, z_loss
):
    hidden_BTD, head_VD, targets_BT = parts(vocab_size=vocab_size, width=width)
    # Logits of a few units, as in a run: one of 30 is rounded by 2e-6, and its probability with it.
    leaves = [hidden_BTD.requires_grad_(), (head_VD / width**0.5).requires_grad_()]
    chunk_logits = max(least, tokens) * vocab_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK_LOGITS, "cpu", chunk_logits)
        objective, _ = language_model_loss(*leaves, targets_BT, num_targets=3, z_loss=z_loss)
    expected = plain(*leaves, targets_BT, z_loss=z_loss) / 3
    torch.testing.assert_close(objective, expected, rtol=1e-6, atol=0)
    found, plainly = gradients(2 * objective, *leaves), gradients(2 * expected, *leaves)
    assert max(errors(found, plainly)) < 1e-6


def test_gradients_of_large_logits_are_as_near_to_the_exact_one_as_if_taken_all_at_once():
    hidden_BTD, head_VD, targets_BT = parts(vocab_size=3000, width=64)
    in_fp32 = [hidden_BTD.requires_grad_(), head_VD.requires_grad_()]
    in_fp64 = [leaf.detach().double().requires_grad_() for leaf in in_fp32]
    exact = gradients(plain(*in_fp64, targets_BT, z_loss=0.1), *in_fp64)
    plainly = gradients(plain(*in_fp32, targets_BT, z_loss=0.1), *in_fp32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK_LOGITS, "cpu", 3000)
        objective, _ = language_model_loss(*in_fp32, targets_BT, num_targets=1, z_loss=0.1)
    ours, theirs = errors(gradients(objective, *in_fp32), exact), errors(plainly, exact)
    assert all(our < 2 * their for our, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(micro_batch):
    hidden_BTD, head_VD, targets_BT = parts()
    num_targets = int((targets_BT != IGNORED).sum())

    def gradient(size: int) -> list[Tensor]:
        leaves = [hidden_BTD.clone().requires_grad_(), head_VD.clone().requires_grad_()]
        for hidden, targets in zip(leaves[0].split(size), targets_BT.split(size), strict=True):
            objective, _ = language_model_loss(
                hidden, leaves[1], targets, num_targets=num_targets, z_loss=0.1
            )
            objective.backward()
        return [leaf.grad for leaf in leaves]

    torch.testing.assert_close(gradient(micro_batch), gradient(B), rtol=1e-6, atol=1e-7)


def test_under_autocast_products_are_in_bf16_and_sums_in_fp32():
    hidden_BTD, head_VD, targets_BT = parts()
    leaves = [hidden_BTD.requires_grad_(), head_VD.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective, _ = language_model_loss(*leaves, targets_BT, num_targets=20, z_loss=0.1)
    expected = plain(hidden_BTD, head_VD, targets_BT, z_loss=0.1) / 20
    assert objective.dtype == torch.float32
    torch.testing.assert_close(objective, expected, rtol=2e-2, atol=0)
    found = gradients(objective, *leaves)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 2
    torch.testing.assert_close(found, gradients(expected, *leaves), rtol=0.1, atol=2e-2)


def test_only_a_chunk_of_the_logits_exists_at_once(monkeypatch):
    """With chunks of 1/32 of the logits, the forward pass needs an eighth of their memory."""
    hidden_BTD = torch.randn(4, 64, D, requires_grad=True)
    head_VD = torch.randn(4096, D, requires_grad=True)
    targets_BT = torch.zeros(4, 64, dtype=torch.int64)
    logits_bytes = 4 * 4 * 64 * 4096
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 4 * 64 * 4096 // 32)
    with torch.profiler.profile(profile_memory=True) as profile:
        language_model_loss(hidden_BTD, head_VD, targets_BT, num_targets=1, z_loss=0.1)
    held, most = 0, 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        held += event.nbytes()
        most = max(most, held)
    assert 0 < most < logits_bytes / 8


def test_without_gradients_none_are_taken():
    hidden_BTD, head_VD, targets_BT = parts()
    with torch.inference_mode():
        _, cross_entropy = language_model_loss(
            hidden_BTD, head_VD, targets_BT, num_targets=1, z_loss=0.0
        )
    expected = plain(hidden_BTD, head_VD, targets_BT, z_loss=0.0)
    torch.testing.assert_close(cross_entropy, expected, rtol=1e-6, atol=0)


@given(z_loss=st.sampled_from([0.0, 0.1]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=10)
def test_what_is_compiled_says_the_same_as_operation_by_operation(z_loss, dtype):
    generator = torch.Generator().manual_seed(1)
    logits_CV = (3 * torch.randn(20, 300, generator=generator)).to(dtype)
    logits_CV[:, 7] = logits_CV[:, 100] = logits_CV.amax(dim=1)  # the first of the largest counts
    targets_C = torch.randint(0, 300, (20,), generator=generator)
    targets_C[:4] = IGNORED
    one_VV = torch.eye(300, dtype=dtype)
    found = loss.by_formulas(logits_CV, one_VV, targets_C, z_loss)
    expected = loss.by_operations(logits_CV, one_VV, targets_C, z_loss)
    assert found[2].dtype == dtype
    # Of bf16, where the last bit of a number in fp32 may decide how it is rounded.
    within = {torch.float32: (1e-6, 1e-7), torch.bfloat16: (2**-7, 1e-5)}[dtype]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=within[0], atol=within[1])
