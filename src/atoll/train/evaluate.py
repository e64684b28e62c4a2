"""How well a model predicts text that nobody trains on.

Shapes: K choices of a question, C tokens of its context, P of a passage, S = C + P.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from atoll.data.batches import Batches
from atoll.data.cloze import Question
from atoll.model.llama import Llama
from atoll.train.inner import autocast, cut
from atoll.train.loss import IGNORED, language_model_loss
from atoll.train.parallel import ALONE, Ranks


@torch.no_grad()  # not inference mode: what a sharded model gathers is used in training again
def validation_loss(
    model: Llama,
    batches: Batches,
    *,
    batch_sequences: int,
    num_samples: int,
    bf16: bool | None = None,
    ranks: Ranks = ALONE,
) -> float:
    """Return the mean cross-entropy, in nats per token, over the first validation samples.

    Over several ranks each has its share of a batch, and all have to ask.
    """
    device = model.embedding.weight.device
    total, num_targets = torch.zeros((), device=device), 0
    for start in range(0, num_samples, batch_sequences):
        batch = batches.validation(start, min(start + batch_sequences, num_samples))
        for on_host in cut(ranks.share(batch), micro_batch=batch_sequences):
            piece = on_host.on(device)
            with autocast(device, bf16=bf16 if ranks.mesh is None else False):
                _, cross_entropy = language_model_loss(
                    model.hidden(piece.tokens_BT, piece.documents_BT),
                    model.head_weight,
                    piece.targets_BT,
                    num_targets=1,
                    z_loss=0.0,
                )
            total += cross_entropy
        num_targets += int((batch.targets_BT != IGNORED).sum())
    ranks.sum_(total)
    return total.item() / max(1, num_targets)


@torch.inference_mode()
def cloze_accuracy(model: Llama, questions: Sequence[Question]) -> float:
    """Return the share of questions whose answer the model finds likeliest of all choices."""
    num_right = sum(likeliest(model, question) == question.answer for question in questions)
    return num_right / max(1, len(questions))


def likeliest(model: Llama, question: Question) -> int:
    """Return which passage has the largest probability after the context."""
    device = model.embedding.weight.device
    choices_KP = torch.from_numpy(question.choices_KP).to(device)
    context_KC = torch.from_numpy(question.context).to(device).expand(len(choices_KP), -1)
    tokens_KS = torch.cat((context_KC, choices_KP), dim=1)
    with autocast(device):
        hidden_KSD = model.hidden(tokens_KS)
        # The token before a passage foretells its first one.
        hidden_KPD = hidden_KSD[:, context_KC.shape[1] - 1 : -1]
        logits_KPV = F.linear(hidden_KPD, model.head_weight)
    losses_KP = F.cross_entropy(logits_KPV.float().transpose(1, 2), choices_KP, reduction="none")
    return int(losses_KP.sum(dim=1).argmin())
