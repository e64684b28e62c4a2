"""A text that goes on: tokens from the model, as text, up to where one asked it to stop.

    prompt tokens -> choices -> whole characters -> text before the first stop string

Shapes: V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from atoll.data.tokenizer import StreamDecoder
from atoll.model.generate import Sampling, choices
from atoll.talk.source import Speaker

Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one wants of a completion."""

    sampling: Sampling
    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()  # strings before which it ends
    num_top: int | None = None  # of the likeliest tokens, told with each; None: no probabilities


class Likelihood(NamedTuple):
    """A token, how likely it was, and which others were: natural logarithms, at temperature 1."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """What one more token brought: text that is certain by now, which may be none."""

    text: str
    likelihood: Likelihood | None = None
    finish: Finish | None = None  # why this is the last piece, which has no token of its own

    @property
    def is_token(self) -> bool:
        return self.finish is None


def complete(speaker: Speaker, prompt: Sequence[int], wish: Wish) -> Iterator[Piece]:
    """Yield one piece for each token, and a last one that says why it ends.

    The end of a document, and a stop string, are not part of the text.
    """
    decoder, until = StreamDecoder(speaker.tokenizer), Until(wish.stop)
    chosen = choices(
        speaker.model, prompt, max_new_tokens=wish.max_new_tokens, sampling=wish.sampling
    )
    for token, logits_V in chosen:
        if token == speaker.tokenizer.start_token:
            yield Piece(until.push(decoder.finish()) + until.finish(), finish="stop")
            return
        likelihood = None
        if wish.num_top is not None:
            likelihood = likelihood_of(token, logits_V, num_top=wish.num_top)
        yield Piece(until.push(decoder.push(token)), likelihood)
        if until.is_over:
            yield Piece("", finish="stop")
            return
    yield Piece(until.push(decoder.finish()) + until.finish(), finish="length")


def likelihood_of(token: int, logits_V: Tensor, *, num_top: int) -> Likelihood:
    """Return what the model thought of the token, and the likeliest ones, best first."""
    logprob_V = torch.log_softmax(logits_V, dim=0)
    best = logprob_V.topk(min(num_top, len(logprob_V)))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Likelihood(token, float(logprob_V[token]), tuple(top))


class Until:
    """Text that comes in pieces, up to the first of some strings.

    What may be the beginning of such a string is held back until that is clear.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.is_over = False  # a stop string has come
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, text: str) -> str:
        """Return what is certain to come before the end."""
        if self.is_over:
            return ""
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.is_over, self._held = True, ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back, and was no stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of the text may begin the string."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
