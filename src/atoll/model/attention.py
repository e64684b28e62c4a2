"""Causal attention on a CPU: matrix products, a block of queries at a time.

    scores = Q K^T / sqrt(E) + mask  --softmax over the keys--> P,   Y = P V

    queries   0:b   b:2b   2b:3b  ...
    keys      0:b   0:2b   0:3b   ...     behind the end of a block nobody in it looks at any

Nothing but Q, K and V is kept for the backward pass. It forms P again, block by block, as
FlashAttention does (arXiv 2205.14135, appendix B.2); then, with . for products value by value,

    dV = P^T dY     dP = dY V^T     dS = P . (dP - sum over the keys of P . dP)
    dQ = dS K / sqrt(E)             dK = dS^T Q / sqrt(E)

Products are in the dtype of the inputs; the softmax, its derivative, and the sums over blocks are
in fp32. Why not torch's own kernel for CPUs: docs/decisions/0035-attention-on-a-cpu.md.

Shapes: B samples, T tokens, H heads, G key-value heads, R = H / G heads that share one, E width of
a head. Of a block: N pairs of a sample and a key-value head, M = tokens * R queries, S keys.
"""

from collections.abc import Iterator, Sequence
from math import prod, sqrt
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, library

BLOCK_TOKENS: Final = 128  # fewer make products slow, more form scores for nothing
SCORES_PER_THREAD: Final = 2**20  # at once: about what the cache of a core holds

# To torch each pass is one operation: autocast, compilation and recomputing do not look inside.
_MASK = "Tensor? mask"
library.define("atoll::attend", f"(Tensor q, Tensor k, Tensor v, {_MASK}) -> Tensor")
library.define(
    "atoll::attend_backward",
    f"(Tensor dy, Tensor q, Tensor k, Tensor v, {_MASK}) -> (Tensor, Tensor, Tensor)",
)


def attend(q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """Return what each query makes of the values that it may look at, of shape BHTE.

    It may look back; or, with a mask, which is added to the scores, where that is not -inf. Nobody
    may look at later tokens: a mask says so, too.
    """
    y_BHTE: Tensor = torch.ops.atoll.attend(q_BHTE, k_BGTE, v_BGTE, mask_B1TT)
    return y_BHTE


class Block(NamedTuple):
    """Queries that are taken at once."""

    samples: slice
    kv_heads: slice
    tokens: slice

    @property
    def queries(self) -> tuple[slice, slice, slice]:
        """Where they are in a tensor that begins with BGT."""
        return self.samples, self.kv_heads, self.tokens

    @property
    def keys(self) -> tuple[slice, slice, slice]:
        """Where the keys are that they may look at."""
        return self.samples, self.kv_heads, slice(self.tokens.stop)


@library.impl("atoll::attend", "cpu")
def _forward(q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    y_BHTE = _empty_like(q_BHTE)
    q_BGTRE, y_BGTRE = (_grouped(x, like=k_BGTE) for x in (q_BHTE, y_BHTE))
    scratch = _Scratch(q_BHTE)
    for block in _blocks(q_BHTE, k_BGTE):
        q_NME = scratch.copy("q", q_BGTRE[block.queries])
        k_NSE = scratch.copy("k", k_BGTE[block.keys])
        v_NSE = scratch.copy("v", v_BGTE[block.keys])
        p_NMS = _probabilities(block, q_NME, k_NSE, mask_B1TT, scratch=scratch)
        y_block = y_BGTRE[block.queries]
        y_block.copy_(scratch.product("y", p_NMS, v_NSE).view(y_block.shape))
    return y_BHTE


@library.impl("atoll::attend_backward", "cpu")
def _backward(
    dy_BHTE: Tensor, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, mask_B1TT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dq_BHTE = _empty_like(q_BHTE)
    wide = torch.promote_types(k_BGTE.dtype, torch.float32)
    dk_BGTE, dv_BGTE = (_empty_like(x, dtype=wide).zero_() for x in (k_BGTE, v_BGTE))
    q_BGTRE, dq_BGTRE, dy_BGTRE = (_grouped(x, like=k_BGTE) for x in (q_BHTE, dq_BHTE, dy_BHTE))
    scratch, scale = _Scratch(q_BHTE), _scale(q_BHTE)
    for block in _blocks(q_BHTE, k_BGTE):
        q_NME = scratch.copy("q", q_BGTRE[block.queries])
        dy_NME = scratch.copy("dy", dy_BGTRE[block.queries])
        k_NSE = scratch.copy("k", k_BGTE[block.keys])
        v_NSE = scratch.copy("v", v_BGTE[block.keys])
        dq_block, dk_block = dq_BGTRE[block.queries], dk_BGTE[block.keys]
        dv_block = dv_BGTE[block.keys]
        p_NMS = _probabilities(block, q_NME, k_NSE, mask_B1TT, scratch=scratch)
        dv_block += scratch.product("dv", p_NMS.mT, dy_NME).view(dv_block.shape)
        ds_NMS = scratch.product("dp", dy_NME, v_NSE.mT)
        torch.ops.aten._softmax_backward_data.out(ds_NMS, p_NMS, -1, p_NMS.dtype, grad_input=ds_NMS)
        dq_block.copy_(scratch.product("dq", ds_NMS, k_NSE, scale=scale).view(dq_block.shape))
        dk_block += scratch.product("dk", ds_NMS.mT, q_NME, scale=scale).view(dk_block.shape)
    return dq_BHTE, dk_BGTE.to(k_BGTE.dtype), dv_BGTE.to(v_BGTE.dtype)


def _probabilities(
    block: Block, q_NME: Tensor, k_NSE: Tensor, mask_B1TT: Tensor | None, *, scratch: "_Scratch"
) -> Tensor:
    """Return the softmax of a block's scores, of shape NMS."""
    scores_NMS = scratch.product("p", q_NME, k_NSE.mT, scale=_scale(q_NME))
    start, stop = block.tokens.start, block.tokens.stop
    scores_NTRS = scores_NMS.unflatten(1, (stop - start, -1))
    if mask_B1TT is None:
        later_TT = scores_NMS.new_full((stop - start, stop - start), -torch.inf).triu_(1)
        scores_NTRS[..., start:] += later_TT[:, None]
    else:
        mask_B1T1S = mask_B1TT[block.samples, :, start:stop, None, :stop]
        scores_NTRS.unflatten(0, (len(mask_B1T1S), -1)).add_(mask_B1T1S)
    return torch.softmax(scores_NMS, dim=-1, out=scores_NMS)


def _blocks(q_BHTE: Tensor, k_BGTE: Tensor) -> Iterator[Block]:
    """Yield blocks that cover all queries, those with the most keys first: they need most memory.

    As many pairs of a sample and a key-value head are in each as the caches hold the scores of.
    """
    num_samples, num_heads, num_tokens, _ = q_BHTE.shape
    num_kv_heads = k_BGTE.shape[1]
    scores_of_pair = BLOCK_TOKENS * num_tokens * num_heads // num_kv_heads
    num_pairs = max(1, SCORES_PER_THREAD * torch.get_num_threads() // scores_of_pair)
    for samples in _slices(num_samples, max(1, num_pairs // num_kv_heads)):
        for kv_heads in _slices(num_kv_heads, num_pairs):
            for tokens in reversed(_slices(num_tokens, BLOCK_TOKENS)):
                yield Block(samples, kv_heads, tokens)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Scratch:
    """Memory for the blocks of a pass, the same for each of them: new pages take time."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def copy(self, name: str, x: Tensor) -> Tensor:
        """Return a copy of queries (BGTRE) or keys (BGTE) as matrices, of shape NME or NSE."""
        copied = self._empty(name, x.shape).copy_(x)
        return copied.view(x.shape[0] * x.shape[1], -1, x.shape[-1])

    def product(self, name: str, a_NIK: Tensor, b_NKJ: Tensor, *, scale: float = 1.0) -> Tensor:
        out_NIJ = self._empty(name, (*a_NIK.shape[:2], b_NKJ.shape[2]))
        return torch.baddbmm(out_NIJ, a_NIK, b_NKJ, beta=0, alpha=scale, out=out_NIJ)

    def _empty(self, name: str, shape: Sequence[int]) -> Tensor:
        size = prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(*shape)


def _grouped(x_BHTE: Tensor, *, like: Tensor) -> Tensor:
    """Return a view of shape BGTRE, with the heads that share the keys of `like` (BGTE)."""
    x_BGRTE: Tensor = x_BHTE.unflatten(1, (like.shape[1], -1))
    return x_BGRTE.transpose(2, 3)


def _empty_like(x_BHTE: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return room for such values, in memory as the model has them before and behind: BTHE."""
    num_samples, num_heads, num_tokens, width = x_BHTE.shape
    shape = (num_samples, num_tokens, num_heads, width)
    return x_BHTE.new_empty(shape, dtype=dtype).transpose(1, 2)


def _scale(q: Tensor) -> float:
    return 1.0 / sqrt(q.shape[-1])


# --- what torch has to know of the two operations ------------------------------------------------


def _shape_of_forward(q_BHTE: Tensor, *_: Tensor | None) -> Tensor:
    return _empty_like(q_BHTE)


def _shapes_of_backward(
    _: Tensor, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, __: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q_BHTE), _empty_like(k_BGTE), _empty_like(v_BGTE)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], **_: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy_BHTE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    dq_BHTE, dk_BGTE, dv_BGTE = torch.ops.atoll.attend_backward(dy_BHTE, *ctx.saved_tensors)
    return dq_BHTE, dk_BGTE, dv_BGTE, None


library.register_fake("atoll::attend", _shape_of_forward)
library.register_fake("atoll::attend_backward", _shapes_of_backward)
library.register_autograd("atoll::attend", _gradients, setup_context=_keep)
