"""How well a model predicts text that nobody trains on."""

import torch

from atoll.data.batches import Batches
from atoll.model.llama import Llama
from atoll.train.inner import autocast, cut
from atoll.train.loss import IGNORED, language_model_loss


@torch.inference_mode()
def validation_loss(
    model: Llama, batches: Batches, *, batch_sequences: int, num_samples: int
) -> float:
    """Return the mean cross-entropy, in nats per token, over the first validation samples."""
    device = model.embedding.weight.device
    total, num_targets = 0.0, 0
    for start in range(0, num_samples, batch_sequences):
        batch = batches.validation(start, min(start + batch_sequences, num_samples))
        for piece in cut(batch, micro_batch=batch_sequences, device=device):
            with autocast(device):
                _, cross_entropy = language_model_loss(
                    model.hidden(piece.tokens_BT, piece.documents_BT),
                    model.head_weight,
                    piece.targets_BT,
                    num_targets=1,
                    z_loss=0.0,
                )
            total += cross_entropy.item()
        num_targets += int((batch.targets_BT != IGNORED).sum())
    return total / max(1, num_targets)
