"""The Llama 3 architecture (arXiv 2407.21783, section 3.2), whole.

    tokens -> embedding -> L x { x + attention(norm(x)); x + ffn(norm(x)) } -> norm -> head

Modules and their order define the canonical flat vector (`shapes` lists the same without torch).
Rotary embeddings pair the two halves of a head, as Hugging Face's weights expect.

Shapes: B batch, T tokens, S tokens to attend to (T, and those in the cache), D model width,
H heads, G key-value heads, E width of a head, V vocabulary, L layers.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from atoll.config import ModelConfig
from atoll.model import attention
from atoll.model.norm import Norm

Mask: TypeAlias = Tensor | BlockMask
"""Which token may look where: for each pair of them, or in blocks, those of nobody left out."""


class KvCache:
    """The keys and values of the tokens that a model has seen, for generation."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_tokens: int,
        batch_size: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_tokens, config.head_width)
        self.k_LBGSE = torch.zeros(shape, device=device, dtype=dtype)
        self.v_LBGSE = torch.zeros(shape, device=device, dtype=dtype)
        self.num_tokens = 0

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest tokens of a layer; return all its keys and values, of shape BGSE.

        `num_tokens` stays: the model moves it on once all layers have stored theirs.
        """
        start, stop = self.num_tokens, self.num_tokens + k_BGTE.shape[2]
        assert stop <= self.k_LBGSE.shape[3], "the cache is full"
        self.k_LBGSE[layer, :, :, start:stop] = k_BGTE
        self.v_LBGSE[layer, :, :, start:stop] = v_BGTE
        return self.k_LBGSE[layer, :, :, :stop], self.v_LBGSE[layer, :, :, :stop]


class Rotary(NamedTuple):
    """How far each head is turned at each position, fp32; the same in all layers."""

    cos_T1E: Tensor
    sin_T1E: Tensor  # negative in the first half


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        kv_width = config.num_kv_heads * config.head_width
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, kv_width, bias=False)
        self.v = nn.Linear(config.width, kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: Mask | None, cache: KvCache | None
    ) -> Tensor:
        q_BHTE = rotate(self.q(x_BTD).unflatten(2, (self.num_heads, -1)), rotary).transpose(1, 2)
        k_BGSE = rotate(self.k(x_BTD).unflatten(2, (self.num_kv_heads, -1)), rotary).transpose(1, 2)
        v_BGSE = self.v(x_BTD).unflatten(2, (self.num_kv_heads, -1)).transpose(1, 2)
        if cache is not None:
            k_BGSE, v_BGSE = cache.extend(self.layer, k_BGSE, v_BGSE)
        y_BHTE = attend(q_BHTE, k_BGSE, v_BGSE, mask)
        y_BTD: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return y_BTD


def attend(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, mask: Mask | None) -> Tensor:
    """Return what each query makes of the values that it may look at, of shape BHTE; None: back."""
    grouped = q_BHTE.shape[1] != k_BGSE.shape[1]
    if isinstance(mask, BlockMask):
        y_BHTE = flex_attention(q_BHTE, k_BGSE, v_BGSE, block_mask=mask, enable_gqa=grouped)
        assert isinstance(y_BHTE, Tensor), "no more is asked for"
        return y_BHTE
    if q_BHTE.device.type == "cpu" and q_BHTE.shape[2] == k_BGSE.shape[2]:
        return attention.attend(q_BHTE, k_BGSE, v_BGSE, mask)
    if (
        grouped
        and q_BHTE.device.type == "cuda"
        and (mask is not None or q_BHTE.dtype == torch.float32)
    ):
        # Of CUDA's kernels flash attention alone takes fewer keys than queries, and neither a mask
        # of numbers nor fp32. With as many of both there is another one; else all scores exist.
        each = q_BHTE.shape[1] // k_BGSE.shape[1]
        k_BGSE, v_BGSE = (x.repeat_interleave(each, dim=1) for x in (k_BGSE, v_BGSE))
        grouped = False
    return F.scaled_dot_product_attention(
        q_BHTE,
        k_BGSE,
        v_BGSE,
        attn_mask=mask,
        # A single newest token may see all that the cache holds; torch's flag would hide it.
        is_causal=mask is None and q_BHTE.shape[2] == k_BGSE.shape[2],
        enable_gqa=grouped,
    )


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, layer=layer)
        self.ffn_norm = Norm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: Mask | None, cache: KvCache | None
    ) -> Tensor:
        # Cast once for all the matrices behind a norm: autocast would do it for each of them.
        normed_BTD = self.attention_norm(x_BTD).to(_dtype_of_products(self.attention.q.weight))
        x_BTD = x_BTD + self.attention(normed_BTD, rotary, mask, cache)
        normed_BTD = self.ffn_norm(x_BTD).to(_dtype_of_products(self.ffn.gate.weight))
        y_BTD: Tensor = x_BTD + self.ffn(normed_BTD)
        return y_BTD


def call(layer: nn.Module, *inputs: Any) -> Tensor:
    x_BTD: Tensor = layer(*inputs)
    return x_BTD


class Llama(nn.Module):
    """The model. Its first weights are torch's own: `load_flat_` gives it those of the run.

    On the meta device (`with torch.device("meta")`, then `to_empty`) they cost no time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_layer = call  # a trainer may have something else done around it
        self.masks_in_blocks = False  # of packed documents; for layers that are compiled for CUDA
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            Layer(config, layer=layer) for layer in range(config.num_layers)
        )
        self.norm = Norm(config.width, eps=config.norm_eps)
        self.head = (
            None
            if config.tied_embeddings
            else nn.Linear(config.width, config.vocab_size, bias=False)
        )

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """Return the logits of the next tokens, of shape BTV. For the arguments see `hidden`."""
        x_BTD = self.hidden(tokens_BT, documents_BT, cache)
        return F.linear(x_BTD, self.head_weight)

    def hidden(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """Return what the head turns into logits, of shape BTD.

        A token attends to itself and to those before it: of its own document, if `documents_BT`
        has the number of each token's document, and of the cache, to which the tokens are added.
        Positions run on across documents: rotary attention depends on their differences only.
        """
        assert documents_BT is None or cache is None, "packed documents are for training"
        num_cached = 0 if cache is None else cache.num_tokens
        num_tokens = tokens_BT.shape[1]
        rotary = rotary_at(num_cached, num_tokens, config=self.config, device=tokens_BT.device)
        mask: Mask | None
        if documents_BT is not None and self.masks_in_blocks:
            mask = document_blocks(documents_BT)
        elif documents_BT is not None:
            mask = document_mask(documents_BT, dtype=_dtype_of_products(self.embedding.weight))
        elif num_cached > 0 and num_tokens > 1:
            mask = causal_mask(num_cached, num_tokens, device=tokens_BT.device)
        else:
            mask = None  # plainly causal, or one token that sees everything: the fast paths
        x_BTD: Tensor = self.embedding(tokens_BT)
        for layer in self.layers:
            x_BTD = self.run_layer(layer, x_BTD, rotary, mask, cache)
        if cache is not None:
            cache.num_tokens += num_tokens
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    @property
    def head_weight(self) -> Tensor:
        """The matrix of shape VD that turns the hidden state into logits."""
        return self.embedding.weight if self.head is None else self.head.weight


def causal_mask(num_cached: int, num_tokens: int, *, device: torch.device) -> Tensor:
    """Return a boolean TS mask, true where a token may look, when others are cached before them."""
    position_S = torch.arange(num_cached + num_tokens, device=device)
    return position_S[num_cached:, None] >= position_S


def document_mask(documents_BT: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return a B1TT mask to be added: 0 where a token may look: back, within its own document.

    Numbers rather than booleans: of these, each layer would make and keep numbers of its own.
    """
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    hidden_BTT = same_BTT.tril_().logical_not_()
    mask_BTT = torch.zeros(hidden_BTT.shape, dtype=dtype, device=documents_BT.device)
    return mask_BTT.masked_fill_(hidden_BTT, -torch.inf)[:, None]


def document_blocks(documents_BT: Tensor) -> BlockMask:
    """Return the same in blocks of 128 tokens by 128; those where nobody sees anything are skipped.

    For flex attention (arXiv 2412.05496): short documents in a long sample then cost the sum of the
    squares of their lengths, where a mask of numbers costs the square of the sample's.
    """
    num_samples, num_tokens = documents_BT.shape

    def sees(b: Tensor, _: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (t >= s) & (documents_BT[b, t] == documents_BT[b, s])

    return create_block_mask(
        sees, num_samples, None, num_tokens, num_tokens, device=documents_BT.device
    )


def _dtype_of_products(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def rotary_at(start: int, num_tokens: int, *, config: ModelConfig, device: torch.device) -> Rotary:
    """Return the rotations of the positions from `start` on.

    Computed in each pass rather than kept: it costs next to nothing, and a model that comes from
    the meta device, or was cast to bf16, cannot have a wrong table.
    """
    position_T11 = torch.arange(start, start + num_tokens, device=device).view(-1, 1, 1)
    angle_T1R = position_T11 * rotary_frequencies(config, device=device)
    cos_T1R, sin_T1R = angle_T1R.cos(), angle_T1R.sin()
    return Rotary(torch.cat((cos_T1R, cos_T1R), dim=2), torch.cat((-sin_T1R, sin_T1R), dim=2))


def rotary_frequencies(config: ModelConfig, *, device: torch.device) -> Tensor:
    """Return the radians per position of the R = E / 2 rotations of a head (arXiv 2104.09864).

    With `rope_scaling`, those that turn seldom within the original sequence length are slowed down
    by `factor`, those that turn often kept, and the ones between blended (Llama 3.1's
    `apply_scaling`).
    """
    width = config.head_width
    exponent_R = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    frequency_R = 1.0 / config.rope_theta**exponent_R
    scaling = config.rope_scaling
    if scaling is None:
        return frequency_R
    turns_R = scaling.original_sequence_length * frequency_R / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept_R = ((turns_R - scaling.low_freq_factor) / span).clamp(0, 1)
    return torch.lerp(frequency_R / scaling.factor, frequency_R, kept_R)


def rotate(x_BTHE: Tensor, rotary: Rotary) -> Tensor:
    """Return queries or keys turned by their positions, computed in fp32 as the rotations are."""
    # (a, b) -> (a cos - b sin, b cos + a sin), where rolling by half a head swaps a and b.
    swapped_BTHE = x_BTHE.roll(x_BTHE.shape[3] // 2, dims=3)
    return (x_BTHE * rotary.cos_T1E + swapped_BTHE * rotary.sin_T1E).type_as(x_BTHE)
