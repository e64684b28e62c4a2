"""How well a model predicts text that nobody trains on.

Shapes: B passages at once, S tokens of the longest, P those of a continuation, D model width,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from atoll.data.batches import Batches
from atoll.data.cloze import Question
from atoll.model.llama import Llama
from atoll.train.device import computes_in_bf16
from atoll.train.inner import autocast, cut
from atoll.train.loss import IGNORED, language_model_loss
from atoll.train.parallel import ALONE, Ranks

BATCH_TOKENS: Final = 8192  # of passages that are read at once
CHUNK_TOKENS: Final = 1024  # whose logits exist at once


class Passage(NamedTuple):
    """Tokens, and those that are to follow them; at least one before."""

    context: Sequence[int]
    continuation: Sequence[int]

    @property
    def num_read(self) -> int:
        return len(self.context) + len(self.continuation) - 1  # nothing follows the last one


class PassageLikelihood(NamedTuple):
    """Of a whole continuation: its natural logarithm, and whether each token was the likeliest."""

    logprob: float
    is_greedy: bool


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

    Over several ranks each has its share of a batch, and all have to ask. `bf16` None: as the
    device is made for.
    """
    device = model.embedding.weight.device
    if bf16 is None:
        bf16 = computes_in_bf16(device, width=model.config.width)
    total, num_targets = torch.zeros((), device=device), 0
    for start in range(0, num_samples, batch_sequences):
        batch = batches.validation(start, min(start + batch_sequences, num_samples))
        for on_host in cut(ranks.share(batch), micro_batch=batch_sequences):
            piece = on_host.on(device)
            with autocast(device, bf16=bf16, ranks=ranks):
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


def cloze_accuracy(model: Llama, questions: Sequence[Question]) -> float:
    """Return the share of questions whose answer the model finds likeliest of all choices."""
    num_right = sum(likeliest(model, question) == question.answer for question in questions)
    return num_right / max(1, len(questions))


def likeliest(model: Llama, question: Question) -> int:
    """Return which passage has the largest probability after the context."""
    context = question.context.tolist()
    choices = [Passage(context, choice) for choice in question.choices_KP.tolist()]
    logprobs = [found.logprob for found in likelihoods(model, choices)]
    return logprobs.index(max(logprobs))


@torch.inference_mode()
def likelihoods(
    model: Llama, passages: Sequence[Passage], *, on_read: Callable[[int], None] = lambda _: None
) -> list[PassageLikelihood]:
    """Return how likely the continuation of each passage is after its context.

    `on_read` hears how many passages are done.
    """
    found: dict[int, PassageLikelihood] = {}
    for batch in _batches([passage.num_read for passage in passages]):
        chosen = [passages[index] for index in batch]
        found |= zip(batch, _likelihoods_of_batch(model, chosen), strict=True)
        on_read(len(found))
    return [found[index] for index in range(len(passages))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of all passages, the longest first: little of a batch is padding."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        num_passages = max(1, BATCH_TOKENS // max(1, lengths[order[0]]))
        yield order[:num_passages]
        order = order[num_passages:]


def _likelihoods_of_batch(model: Llama, passages: Sequence[Passage]) -> Iterator[PassageLikelihood]:
    device = model.embedding.weight.device
    rows = [torch.tensor([*context, *continuation]) for context, continuation in passages]
    # Padding comes last, where no token of a passage looks.
    tokens_BS = pad_sequence([row[:-1] for row in rows], batch_first=True).to(device)
    with autocast(device, bf16=computes_in_bf16(device, width=model.config.width)):
        hidden_BSD = model.hidden(tokens_BS)
        for passage, row, hidden_SD in zip(passages, rows, hidden_BSD, strict=True):
            # The token before a continuation foretells its first one.
            foretelling = slice(len(passage.context) - 1, passage.num_read)
            target_P = row[len(passage.context) :].to(device)
            yield _likelihood(hidden_SD[foretelling], target_P, head_weight=model.head_weight)


def _likelihood(hidden_PD: Tensor, target_P: Tensor, *, head_weight: Tensor) -> PassageLikelihood:
    logprob, is_greedy = 0.0, True
    chunks = zip(hidden_PD.split(CHUNK_TOKENS), target_P.split(CHUNK_TOKENS), strict=True)
    for hidden, target in chunks:
        logits = F.linear(hidden, head_weight).float()
        logprob -= F.cross_entropy(logits, target, reduction="sum").item()
        is_greedy &= bool((logits.argmax(dim=1) == target).all())
    return PassageLikelihood(logprob, is_greedy)
