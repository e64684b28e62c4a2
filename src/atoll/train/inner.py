"""The inner loop's step, written out: batch, forward, loss, backward, clip, AdamW.

    spans -> batch -> our rank's share -> micro-batches -> { forward -> loss -> backward }
    -> gradients, summed over the ranks -> clip -> AdamW

As far as the micro-batches, it is done while a GPU computes the step before (see `ahead`). Where
the CPU itself computes, there is nothing to be won (docs/experiments.md).

Equal weights, optimizer states, samples and threads give equal bits on the same CPU. On a GPU the
backward pass of attention adds up in no fixed order.

Shapes: B sequences, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll.config import RunConfig
from atoll.data.batches import Batch, Batches
from atoll.errors import RunError
from atoll.model.llama import Llama
from atoll.train.ahead import Ahead
from atoll.train.compiled import Compiler, loss_of_chunk
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
    """A micro-batch."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None

    def pinned(self) -> "Piece":
        """Return it in memory that a GPU reads by itself."""
        return self._each(Tensor.pin_memory)

    def on(self, device: torch.device) -> "Piece":
        """Return it on the device; to a GPU it goes while that is at work, if it is pinned."""
        meanwhile = device.type == "cuda"
        return self._each(lambda x_BT: x_BT.to(device, non_blocking=meanwhile))

    def _each(self, do: Callable[[Tensor], Tensor]) -> "Piece":
        documents_BT = None if self.documents_BT is None else do(self.documents_BT)
        return Piece(do(self.tokens_BT), do(self.targets_BT), documents_BT)


class Share(NamedTuple):
    """What a rank has to do in a step."""

    pieces: list[Piece]  # on the host
    num_targets: int  # of all ranks


@dataclass(frozen=True, slots=True)
class Computing:
    """How this machine takes the steps; it changes nothing but how sums are rounded."""

    micro_batch: int = 0  # sequences that pass through the model at once; 0: all of a step
    bf16: bool | None = None  # of matrix products; None: as the device is made for
    accumulate: Literal["shards", "whole"] = "shards"  # gradients of micro-batches, among ranks
    compiler: Compiler = "none"  # of the layers
    reads_ahead: bool | None = None  # samples of the next step; None: unless the CPU computes


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
        wanted = self.how.bf16
        width = config.model.width
        self.bf16 = computes_in_bf16(self.device, width=width) if wanted is None else wanted
        self.micro_batch = self.how.micro_batch or config.inner.batch_sequences
        self._loss_of_chunk = loss_of_chunk(self.how.compiler)
        self.optimizer = make_optimizer(model, config.inner)
        self.steps_since_fresh = 0  # how many the state of the optimizer has seen
        ahead = self.how.reads_ahead
        self._reads_ahead = self.device.type != "cpu" if ahead is None else ahead
        self._ahead = Ahead(
            partial(
                share_of_step,
                batches,
                ranks=ranks,
                micro_batch=self.micro_batch,
                pinned=self.device.type == "cuda",
            )
        )

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def step(self, spans: Sequence[Span], *, step: int, then: Sequence[Span] = ()) -> StepResult:
        """Take the inner step `step` of the run on the samples of `spans`.

        Those of the next one, `then`, may be read meanwhile; none: it is not known yet.

        Raises:
            NotFinite: the loss or the gradient is. The weights are those before the step.
        """
        share = self._ahead.take(spans, then=then if self._reads_ahead else ())
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for piece in share.pieces:
            is_last = piece is share.pieces[-1]
            self.ranks.reduce_gradients_(
                self.model, is_last=is_last, accumulate=self.how.accumulate
            )
            objective, cross_entropy = self._forward(
                piece.on(self.device), num_targets=share.num_targets
            )
            objective.backward()
            total += cross_entropy
        self.ranks.sum_(total)
        grad_norm = whole(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.inner.clip_norm)
        )
        result = StepResult(
            loss=total.item(),
            num_tokens=share.num_targets,
            grad_norm=grad_norm.item(),
            lr=learning_rate(self.config, step, steps_since_fresh=self.steps_since_fresh),
        )
        require_finite(result, step=step)
        for group in self.optimizer.param_groups:
            group["lr"] = result.lr
        self.optimizer.step()
        self.steps_since_fresh += 1
        return result

    def drop_gradients(self) -> None:
        """Free what the last step has left: between steps, others take that much memory."""
        self.optimizer.zero_grad()

    def _forward(self, piece: Piece, *, num_targets: int) -> tuple[Tensor, Tensor]:
        with autocast(self.device, bf16=self.bf16, ranks=self.ranks):
            return language_model_loss(
                self.model.hidden(piece.tokens_BT, piece.documents_BT),
                self.model.head_weight,
                piece.targets_BT,
                num_targets=num_targets,
                z_loss=self.config.inner.z_loss,
                of_chunk=self._loss_of_chunk,
            )


def autocast(device: torch.device, *, bf16: bool, ranks: Ranks = ALONE) -> torch.autocast:
    """Return the context for a forward pass, with matrix products in bf16 or not.

    The layers of a model that is sharded over ranks bring their own casts (see `parallel`),
    whatever is asked for here.
    """
    enabled = bf16 and ranks.mesh is None
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def load_batch(batches: Batches, spans: Sequence[Span]) -> Batch:
    """Return the samples of all spans as one batch."""
    parts = [batches.batch(start, stop) for start, stop in spans]
    return Batch(
        tokens_BT=np.concatenate([part.tokens_BT for part in parts]),
        targets_BT=np.concatenate([part.targets_BT for part in parts]),
        documents_BT=np.concatenate([part.documents_BT for part in parts]),
    )


def share_of_step(
    batches: Batches, spans: Sequence[Span], *, ranks: Ranks, micro_batch: int, pinned: bool
) -> Share:
    """Return what a rank has to do in the step on the samples of these spans."""
    batch = load_batch(batches, spans)
    pieces = cut(ranks.share(batch), micro_batch=micro_batch)
    return Share(
        [piece.pinned() if pinned else piece for piece in pieces],
        num_targets=int((batch.targets_BT != IGNORED).sum()),
    )


def cut(batch: Batch, *, micro_batch: int) -> Iterator[Piece]:
    """Yield the batch in micro-batches, on the host.

    Where no sample holds a second document, there is nothing to mask: causal attention is faster.
    """
    for start in range(0, len(batch.tokens_BT), micro_batch):
        piece = slice(start, start + micro_batch)
        documents_BT = batch.documents_BT[piece]
        packed = bool((documents_BT != documents_BT[:, :1]).any())
        yield Piece(
            torch.from_numpy(batch.tokens_BT[piece]),
            torch.from_numpy(batch.targets_BT[piece]),
            torch.from_numpy(documents_BT) if packed else None,
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
