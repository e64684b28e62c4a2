"""What lm-evaluation-harness asks of a model, answered by ours, without its package.

    its requests -> passages of tokens -> likelihoods of the continuations
                 -> wishes             -> completions

A text begins with the start token, as each did in training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from atoll.errors import ConfigError
from atoll.model.generate import Sampling
from atoll.talk.completion import Wish, complete
from atoll.talk.source import Speaker
from atoll.train.evaluate import Passage, PassageLikelihood, likelihoods

DEFAULT_NEW_TOKENS: Final = 256  # the harness's own, where a task does not say
KNOWN_WISHES: Final = frozenset(
    {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
)


class Request(Protocol):
    """One question of a task."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class HarnessModel:
    """The methods of the harness's `LM`, for one process with one model."""

    rank, world_size = 0, 1

    def __init__(self, speaker: Speaker, *, note: Callable[[str, int], None]) -> None:
        """Answer with this model; `note` hears what is being done, and how many are."""
        self._speaker = speaker
        self._note = note

    def loglikelihood(self, requests: Sequence[Request]) -> list[PassageLikelihood]:
        """Return how likely each continuation is after its context.

        Raises:
            ConfigError: one is longer than the model reads.
        """
        passages = [passage_of(self._speaker, *request.args) for request in requests]
        return self._likelihoods(passages)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Return how likely each text is, however long."""
        texts = [list(windows(self._speaker, *request.args)) for request in requests]
        found = iter(self._likelihoods([window for text in texts for window in text]))
        return [sum(next(found).logprob for _ in text) for text in texts]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Return how the model goes on from each context.

        Raises:
            ConfigError: a task asks for more tokens than the model reads, or for what it cannot do.
        """
        texts = []
        for request in requests:
            context, asked = request.args
            texts.append(self._generate(context, wish_of(asked, self._speaker.max_tokens)))
            self._note("writing texts", len(texts))
        return texts

    def _likelihoods(self, passages: Sequence[Passage]) -> list[PassageLikelihood]:
        return likelihoods(
            self._speaker.model, passages, on_read=lambda done: self._note("reading passages", done)
        )

    def _generate(self, context: str, wish: Wish) -> str:
        tokens = self._speaker.tokens_of(context)
        prompt = tokens[-(self._speaker.max_tokens - wish.max_new_tokens) :]
        return "".join(piece.text for piece in complete(self._speaker, prompt, wish))


def passage_of(speaker: Speaker, context: str, continuation: str) -> Passage:
    """Return both as tokens: those of the whole text, cut where the context's own tokens end.

    Blanks at the end of the context belong to the continuation, since tokens begin with them. Of a
    context that is too long the beginning is left out.

    Raises:
        ConfigError: the continuation alone is longer than the model reads.
    """
    stripped = context.rstrip()
    num_context = len(speaker.tokens_of(stripped))
    tokens = speaker.tokens_of(context + continuation)
    num_asked = len(tokens) - num_context
    if num_asked > speaker.max_tokens:
        raise ConfigError(
            f"an answer of {num_asked} tokens, and the model reads {speaker.max_tokens}",
            hint="choose tasks with shorter answers for this model",
        )
    first = max(0, len(tokens) - 1 - speaker.max_tokens)
    return Passage(tokens[first:num_context], tokens[num_context:])


def windows(speaker: Speaker, text: str) -> Iterator[Passage]:
    """Yield passages whose continuations make up the text, each with all the context that fits."""
    tokens = speaker.tokens_of(text)
    for start in range(1, len(tokens), speaker.max_tokens):
        stop = min(start + speaker.max_tokens, len(tokens))
        first = max(0, stop - 1 - speaker.max_tokens)
        yield Passage(tokens[first:start], tokens[start:stop])


def wish_of(asked: Mapping[str, Any], max_tokens: int) -> Wish:
    """Return what a task's `generation_kwargs` ask for; without `do_sample`, the likeliest tokens.

    Raises:
        ConfigError: more tokens than the model reads, or something that it cannot do.
    """
    if unknown := asked.keys() - KNOWN_WISHES:
        raise ConfigError(
            f"a task asks for {', '.join(sorted(unknown))} in its generation_kwargs",
            hint=f"there are: {', '.join(sorted(KNOWN_WISHES))}",
        )
    max_new_tokens = int(asked.get("max_gen_toks", DEFAULT_NEW_TOKENS))
    if max_new_tokens >= max_tokens:
        raise ConfigError(
            f"a task asks for {max_new_tokens} new tokens, and the model reads {max_tokens}",
            hint="set max_gen_toks in its generation_kwargs",
        )
    until = asked.get("until") or ()
    return Wish(
        sampling=Sampling(
            temperature=float(asked.get("temperature", 1.0)) if asked.get("do_sample") else 0.0,
            top_k=int(asked.get("top_k", 0)),
            top_p=float(asked.get("top_p", 1.0)),
        ),
        max_new_tokens=max_new_tokens,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
