"""The inner loop's step, written out: batch, forward, loss, backward, clip, AdamW.

    spans -> batch -> our rank's share -> micro-batches -> { forward -> loss -> backward }
    -> gradients, summed over the ranks -> clip -> AdamW

Equal weights, optimizer states, samples and threads give equal bits on the same machine.

Shapes: B sequences, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll.config import RunConfig
from atoll.data.batches import Batch, Batches
from atoll.errors import RunError
from atoll.model.llama import Llama
from atoll.train.device import computes_in_bf16
from atoll.train.loss import IGNORED, language_model_loss
from atoll.train.optim import make_optimizer
from atoll.train.parallel import ALONE, Ranks, whole
from atoll.train.schedule import learning_rate
from atoll.train.work import Span


class NotFinite(RunError):
    """Training has diverged: the loss or the gradient is a NaN or infinite."""


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float  # nats per token, without the z-loss
    num_tokens: int  # that were predicted
    grad_norm: float  # before it was clipped
    lr: float


class Piece(NamedTuple):
    """A micro-batch on the device."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None


@dataclass(frozen=True, slots=True)
class Computing:
    """How this machine takes the steps; it changes nothing but how sums are rounded."""

    micro_batch: int = 0  # sequences that pass through the model at once; 0: all of a step
    bf16: bool | None = None  # of matrix products; None: as the device is made for
    accumulate: Literal["shards", "whole"] = "shards"  # gradients of micro-batches, among ranks


class InnerLoop:
    """A model, its optimizer, and the samples that they see."""

    def __init__(
        self,
        model: Llama,
        batches: Batches,
        config: RunConfig,
        *,
        how: Computing | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.batches = batches
        self.config = config
        self.ranks = ranks
        self.how = how or Computing()
        self.micro_batch = self.how.micro_batch or config.inner.batch_sequences
        self.optimizer = make_optimizer(model, config.inner)
        self.steps_since_fresh = 0  # how many the state of the optimizer has seen

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def step(self, spans: Sequence[Span], *, step: int) -> StepResult:
        """Take the inner step `step` of the run on the samples of `spans`.

        Raises:
            NotFinite: the loss or the gradient is. The weights are those before the step.
        """
        batch = load_batch(self.batches, spans)
        num_targets = int((batch.targets_BT != IGNORED).sum())
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        share = self.ranks.share(batch)
        num_left = -(-len(share.tokens_BT) // self.micro_batch)
        for piece in cut(share, micro_batch=self.micro_batch, device=self.device):
            num_left -= 1
            self.ranks.reduce_gradients_(
                self.model, wanted=num_left == 0 or self.how.accumulate == "shards"
            )
            objective, cross_entropy = self._forward(piece, num_targets=num_targets)
            objective.backward()
            total += cross_entropy
        self.ranks.sum_(total)
        grad_norm = whole(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.inner.clip_norm)
        )
        result = StepResult(
            loss=total.item(),
            num_tokens=num_targets,
            grad_norm=grad_norm.item(),
            lr=learning_rate(self.config, step, steps_since_fresh=self.steps_since_fresh),
        )
        require_finite(result, step=step)
        for group in self.optimizer.param_groups:
            group["lr"] = result.lr
        self.optimizer.step()
        self.steps_since_fresh += 1
        return result

    def _forward(self, piece: Piece, *, num_targets: int) -> tuple[Tensor, Tensor]:
        # The layers of a sharded model bring their own casts (see `parallel`).
        with autocast(self.device, bf16=self.how.bf16 if self.ranks.mesh is None else False):
            return language_model_loss(
                self.model.hidden(piece.tokens_BT, piece.documents_BT),
                self.model.head_weight,
                piece.targets_BT,
                num_targets=num_targets,
                z_loss=self.config.inner.z_loss,
            )


def autocast(device: torch.device, *, bf16: bool | None = None) -> torch.autocast:
    """Return the context for a forward pass, with matrix products in bf16 or not.

    None: in bf16 where the device is made for it.
    """
    enabled = computes_in_bf16(device) if bf16 is None else bf16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def load_batch(batches: Batches, spans: Sequence[Span]) -> Batch:
    """Return the samples of all spans as one batch."""
    parts = [batches.batch(start, stop) for start, stop in spans]
    return Batch(
        tokens_BT=np.concatenate([part.tokens_BT for part in parts]),
        targets_BT=np.concatenate([part.targets_BT for part in parts]),
        documents_BT=np.concatenate([part.documents_BT for part in parts]),
    )


def cut(batch: Batch, *, micro_batch: int, device: torch.device) -> Iterator[Piece]:
    """Yield the batch in micro-batches on the device.

    Where no sample holds a second document, there is nothing to mask: causal attention is faster.
    """
    for start in range(0, len(batch.tokens_BT), micro_batch):
        piece = slice(start, start + micro_batch)
        documents_BT = batch.documents_BT[piece]
        packed = bool((documents_BT != documents_BT[:, :1]).any())
        yield Piece(
            torch.from_numpy(batch.tokens_BT[piece]).to(device),
            torch.from_numpy(batch.targets_BT[piece]).to(device),
            torch.from_numpy(documents_BT).to(device) if packed else None,
        )


def require_finite(result: StepResult, *, step: int) -> None:
    """Refuse a step that would spoil the weights.

    Raises:
        NotFinite: the loss or the norm of the gradient is a NaN or infinite.
    """
    if not (isfinite(result.loss) and isfinite(result.grad_norm)):
        raise NotFinite(
            f"training has diverged at inner step {step}: "
            f"loss {result.loss}, gradient norm {result.grad_norm}",
            hint="a smaller inner.lr or a longer inner.warmup_steps is steadier; "
            "if no other peer reports this, suspect this machine's memory or GPU",
        )
