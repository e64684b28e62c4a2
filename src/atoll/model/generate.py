"""Text from a model, one token at a time.

Shapes: V vocabulary, K the likeliest tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.model.llama import KvCache, Llama


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen: always the likeliest (temperature 0), or by chance among the best."""

    temperature: float = 0.8
    top_k: int = 50  # 0: all
    seed: int = 0


@torch.inference_mode()
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
        logits_V = F.linear(hidden_BTD[0, -1], weight)
        token = choose(logits_V.float().cpu(), sampling, generator=generator)
        if token == stop_token:
            return
        yield token
        unseen = [token]


def choose(logits_V: Tensor, sampling: Sampling, *, generator: torch.Generator) -> int:
    """Return one token, drawn from the softmax of the logits over the temperature."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits_K, token_K = logits_V.topk(min(sampling.top_k or len(logits_V), len(logits_V)))
    probability_K = torch.softmax(logits_K / sampling.temperature, dim=0)
    return int(token_K[torch.multinomial(probability_K, 1, generator=generator)])
