"""Text from a model, one token at a time.

Shapes: V vocabulary, K the likeliest tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.model.llama import KvCache, Llama

COLDEST = 1e-6  # below, logits over the temperature may overflow: always the likeliest token


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen: always the likeliest (temperature 0), or by chance among the best."""

    temperature: float = 0.8
    top_k: int = 50  # 0: all
    top_p: float = 1.0  # the likeliest of these that have so much of the probability; 1: all
    seed: int = 0


class Chosen(NamedTuple):
    """A token, and the logits that it was chosen by, of shape V, fp32, on the CPU."""

    token: int
    logits_V: Tensor


def generate(
    model: Llama,
    prompt_tokens: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that go on from the prompt, ending before `stop_token`.

    The same seed gives the same tokens, on any device whose logits agree.
    """
    chosen = choices(model, prompt_tokens, max_new_tokens=max_new_tokens, sampling=sampling)
    for token, _ in chosen:
        if token == stop_token:
            return
        yield token


@torch.inference_mode()
def choices(
    model: Llama, prompt_tokens: Sequence[int], *, max_new_tokens: int, sampling: Sampling
) -> Iterator[Chosen]:
    """Yield `max_new_tokens` tokens that go on from the prompt, each with its logits."""
    assert prompt_tokens, "a model goes on from something: begin with the start token"
    weight = model.head_weight
    cache = KvCache(
        model.config,
        max_tokens=len(prompt_tokens) + max_new_tokens,
        device=weight.device,
        dtype=weight.dtype,
    )
    generator = torch.Generator().manual_seed(sampling.seed)
    unseen = list(prompt_tokens)
    for _ in range(max_new_tokens):
        hidden_BTD = model.hidden(torch.tensor([unseen], device=weight.device), cache=cache)
        logits_V = F.linear(hidden_BTD[0, -1], weight).float().cpu()
        token = choose(logits_V, sampling, generator=generator)
        yield Chosen(token, logits_V)
        unseen = [token]


def choose(logits_V: Tensor, sampling: Sampling, *, generator: torch.Generator) -> int:
    """Return one token, drawn from the softmax of the logits over the temperature.

    `top_p` is nucleus sampling (arXiv 1904.09751): the fewest tokens with at least that mass.
    """
    if sampling.temperature < COLDEST:
        return int(logits_V.argmax())
    logits_K, token_K = logits_V.topk(min(sampling.top_k or len(logits_V), len(logits_V)))
    probability_K = torch.softmax(logits_K / sampling.temperature, dim=0)
    if sampling.top_p < 1:
        mass_before_K = probability_K.cumsum(dim=0) - probability_K
        probability_K = probability_K * (mass_before_K < sampling.top_p)
        probability_K[0] = probability_K[0].clamp(min=torch.finfo(torch.float32).tiny)
    return int(token_K[torch.multinomial(probability_K, 1, generator=generator)])
