"""The inner loop's step, written out: batch, forward, loss, backward, clip, AdamW.

    spans -> batch -> micro-batches -> { forward -> loss -> backward } -> clip -> AdamW

Equal weights, optimizer states, samples and threads give equal bits on the same machine.

Shapes: B sequences, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

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


class InnerLoop:
    """A model, its optimizer, and the samples that they see."""

    def __init__(
        self, model: Llama, batches: Batches, config: RunConfig, *, micro_batch: int = 0
    ) -> None:
        """`micro_batch`: how many sequences pass through the model at once; 0: all of a step."""
        self.model = model
        self.batches = batches
        self.config = config
        self.micro_batch = micro_batch or config.inner.batch_sequences
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
        for piece in cut(batch, micro_batch=self.micro_batch, device=self.device):
            objective, cross_entropy = self._forward(piece, num_targets=num_targets)
            objective.backward()  # type: ignore[no-untyped-call]
            total += cross_entropy
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.inner.clip_norm
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
        with autocast(self.device):
            return language_model_loss(
                self.model.hidden(piece.tokens_BT, piece.documents_BT),
                self.model.head_weight,
                piece.targets_BT,
                num_targets=num_targets,
                z_loss=self.config.inner.z_loss,
            )


def autocast(device: torch.device) -> torch.autocast:
    """Return the context for a forward pass: matrix products in bf16 where the device has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(device))


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
