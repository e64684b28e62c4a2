"""What the inner optimizer descends on.

    loss = mean over the targets of  -log p(target)  +  z_loss * (largest logit)^2

Shapes: B sequences, T tokens, V vocabulary.
"""

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a target that is none; the data's word for it, and torch's


def language_model_loss(
    logits_BTV: Tensor, targets_BT: Tensor, *, num_targets: int, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return two scalars: what to differentiate, and the plain cross-entropy to report (nats).

    Both are sums over these sequences divided by `num_targets`, which counts the targets of the
    whole batch: so the gradients of micro-batches add up to that of the batch, however it is cut.

    The second term is max-z-loss (Baichuan 2, arXiv 2309.10305; INTELLECT-1 took 2e-4): it keeps
    logits small, where bf16 resolves them well.
    """
    logits_BTV = logits_BTV.float()
    cross_entropy = (
        F.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        / num_targets
    )
    if z_loss == 0:
        return cross_entropy, cross_entropy.detach()
    largest_BT = logits_BTV.amax(dim=-1)
    squares = largest_BT.square().where(targets_BT != IGNORED, 0.0).sum() / num_targets
    return cross_entropy + z_loss * squares, cross_entropy.detach()
