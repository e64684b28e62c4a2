"""What the inner optimizer descends on.

    loss = mean over the targets of  -log p(target)  +  z_loss * (largest logit)^2

    hidden --head, a chunk of tokens at a time--> logits --> loss, and at once its gradients

With 128 256 tokens in the vocabulary, the logits of a batch take more memory than the model. So a
chunk of them is all that ever exists: its gradients with respect to hidden state and head are taken
before the next one is formed.

Shapes: B sequences, T tokens, N = B * T, D model width, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

IGNORED = -100  # a target that is none; the data's word for it, and torch's
# 32 MB of them on a CPU, 512 MB on a GPU: fewer keep the device less busy, more gain nothing.
CHUNK_LOGITS: Final = {"cpu": 2**23, "cuda": 2**27, "mps": 2**25}

OfChunk: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""Takes hidden states, the head, targets and the weight of the z-loss; returns the sums of
cross-entropy and of squares, and the gradient with respect to the logits, in their dtype."""


def language_model_loss(
    hidden_BTD: Tensor,
    head_VD: Tensor,
    targets_BT: Tensor,
    *,
    num_targets: int,
    z_loss: float,
    of_chunk: OfChunk | None = None,
) -> tuple[Tensor, Tensor]:
    """Return two scalars: what to differentiate, and the plain cross-entropy to report (nats).

    Both are sums over these sequences divided by `num_targets`, which counts the targets of the
    whole batch: so the gradients of micro-batches add up to that of the batch, however it is cut.
    Logits are products in the dtype of the autocast, if one is on, and fp32 from there on.
    `of_chunk` forms them, and does what happens to them; by default operation by operation.

    The second term is max-z-loss (Baichuan 2, arXiv 2309.10305; INTELLECT-1 took 2e-4): it keeps
    logits small, where bf16 resolves them well.
    """
    objective, cross_entropy = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_BTD.flatten(0, 1),
        head_VD,
        targets_BT.flatten(),
        _How(1.0 / num_targets, z_loss, of_chunk or by_operations),
    )
    return objective, cross_entropy


class _How(NamedTuple):
    scale: float
    z_loss: float
    of_chunk: OfChunk


class _ChunkedLoss(torch.autograd.Function):
    """`scale` times the sums over all targets, with gradients that are there after the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        how: _How,
    ) -> tuple[Tensor, Tensor]:
        scale, z_loss, of_chunk = how
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden_ND = torch.empty_like(hidden_ND) if wanted else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if wanted else None
        dtype = _dtype_of_products(hidden_ND)
        x_ND, weight_VD = hidden_ND.to(dtype), head_VD.to(dtype)
        cross_entropy = torch.zeros((), device=hidden_ND.device)
        squares = torch.zeros((), device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for chunk in _chunks(len(x_ND), vocab_size=len(head_VD), device=hidden_ND.device):
                x_CD = x_ND[chunk]
                ce, square, grad_CV = of_chunk(x_CD, weight_VD, targets_N[chunk], z_loss)
                cross_entropy += ce
                squares += square
                if grad_hidden_ND is not None and grad_head_VD is not None:
                    grad_hidden_ND[chunk] = grad_CV @ weight_VD
                    _add_product_(grad_head_VD, grad_CV.T, x_CD)
                del grad_CV  # it makes place for the logits of the next chunk
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        ctx.scale, ctx.head_dtype = scale, head_VD.dtype
        cross_entropy *= scale
        objective = cross_entropy + z_loss * scale * squares
        ctx.mark_non_differentiable(cross_entropy)
        return objective, cross_entropy

    @staticmethod
    def backward(ctx: Any, grad_objective: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        grad = grad_objective * ctx.scale
        grad_head_VD = (grad_head_VD * grad).to(ctx.head_dtype)
        return grad_hidden_ND * grad, grad_head_VD, None, None


def by_operations(
    x_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `OfChunk` says, each operation passing over all logits, most of them in place.

    The gradient is softmax - one_hot(target), and 2 z max at the max.
    """
    logits_CV = (x_CD @ weight_VD.T).float()  # those that were not in fp32 are gone
    is_target_C = targets_C != IGNORED
    target_C1 = targets_C.where(is_target_C, 0)[:, None]
    largest_C, at_C = logits_CV.max(dim=1)
    at_target_C = logits_CV.gather(1, target_C1)[:, 0]
    exp_CV = logits_CV.sub_(largest_C[:, None]).exp_()
    sum_C = exp_CV.sum(dim=1)
    cross_entropy_C = sum_C.log() + largest_C - at_target_C
    counts_C = is_target_C.float()
    grad_CV = exp_CV.mul_((counts_C / sum_C)[:, None])
    grad_CV.scatter_add_(1, target_C1, -counts_C[:, None])
    if z_loss:
        grad_CV.scatter_add_(1, at_C[:, None], (2 * z_loss * largest_C * counts_C)[:, None])
    return (
        cross_entropy_C.where(is_target_C, 0.0).sum(),
        largest_C.square().where(is_target_C, 0.0).sum(),
        grad_CV.to(x_CD.dtype),
    )


def by_formulas(
    x_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same, written without changes in place: compiled, it is two passes or three."""
    logits_CV = (x_CD @ weight_VD.T).float()
    is_target_C = targets_C != IGNORED
    target_C1 = targets_C.where(is_target_C, 0)[:, None]
    largest_C, at_C = logits_CV.max(dim=1)
    exp_CV = (logits_CV - largest_C[:, None]).exp()
    sum_C = exp_CV.sum(dim=1)
    cross_entropy_C = sum_C.log() + largest_C - logits_CV.gather(1, target_C1)[:, 0]
    counts_C1 = is_target_C.float()[:, None]
    place_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    grad_CV = counts_C1 * (exp_CV / sum_C[:, None] - (place_V == target_C1).float())
    if z_loss:
        at_largest_CV = (place_V == at_C[:, None]).float()
        grad_CV = grad_CV + counts_C1 * 2 * z_loss * largest_C[:, None] * at_largest_CV
    return (
        cross_entropy_C.where(is_target_C, 0.0).sum(),
        largest_C.square().where(is_target_C, 0.0).sum(),
        grad_CV.to(x_CD.dtype),
    )


def _dtype_of_products(hidden_ND: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    )


def _chunks(num_tokens: int, *, vocab_size: int, device: torch.device) -> list[slice]:
    """Return chunks of near equal length, with so many logits as suit the device."""
    most = max(1, CHUNK_LOGITS[device.type] // vocab_size)
    num_chunks = -(-num_tokens // most)
    size = -(-num_tokens // max(1, num_chunks))
    return [slice(start, start + size) for start in range(0, num_tokens, size or 1)]


def _add_product_(total_VD: Tensor, a_VC: Tensor, b_CD: Tensor) -> None:
    """Add a product to a sum in fp32; CUDA's products add to it themselves, unrounded."""
    if a_VC.dtype == total_VD.dtype:
        total_VD.addmm_(a_VC, b_CD)
    elif total_VD.device.type == "cuda":
        torch.addmm(total_VD, a_VC, b_CD, out_dtype=torch.float32, out=total_VD)
    else:
        total_VD += a_VC @ b_CD
