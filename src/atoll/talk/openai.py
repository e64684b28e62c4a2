"""The words of OpenAI's API for completions: what one asks, what it answers, and its errors.

Source: OpenAI's API reference, "Completions", which vLLM, llama.cpp and others serve as well.
"""

from collections.abc import Sequence
from secrets import randbelow
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from atoll.data.tokenizer import Tokenizer
from atoll.errors import AtollError
from atoll.model.generate import Sampling
from atoll.talk.completion import Finish, Likelihood, Wish
from atoll.talk.engine import Job
from atoll.talk.source import Speaker

MAX_CHOICES: Final = 16  # completions in one answer
MAX_STOPS: Final = 4
SEEDS: Final = 2**62

Tokens: TypeAlias = Annotated[list[int], Meta(min_length=1)]
Prompt: TypeAlias = str | list[str | Tokens | int]


class ApiError(AtollError):
    """What the one who asked has to hear, in OpenAI's form."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def type(self) -> str:
        return {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )

    def body(self) -> bytes:
        told = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": told})


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool = False


class Asked(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/completions. What cannot be done is refused, never left out silently."""

    model: str
    prompt: Prompt = ""
    max_tokens: Annotated[int, Meta(ge=1)] | None = 16
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = 1.0
    n: Annotated[int, Meta(ge=1)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    seed: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    # Not done here: only the values that ask for nothing.
    best_of: int | None = None
    echo: bool | None = False
    suffix: str | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None


class Request(Struct, frozen=True, kw_only=True):
    """What was asked, in our terms."""

    jobs: tuple[Job, ...]
    num_prompt_tokens: int
    stream: bool
    include_usage: bool


def parse(body: bytes, speaker: Speaker) -> Request:
    """Return what the body asks of the model.

    Raises:
        ApiError: it is no such request, or asks for what cannot be done here.
    """
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not a request for a completion: {error}") from error
    if asked.model != speaker.name:
        raise unknown_model(asked.model)
    _refuse_what_is_not_done(asked)
    texts, num_choices = _prompts(asked.prompt), asked.n or 1
    if len(texts) * num_choices > MAX_CHOICES:
        raise ApiError(f"at most {MAX_CHOICES} completions at once", param="n")
    prompts = [_tokens(text, speaker) for text in texts]
    wanted = asked.max_tokens or 16
    longest = max(map(len, prompts)) + wanted
    if longest > speaker.max_tokens:
        raise ApiError(
            f"this model has a context of {speaker.max_tokens} tokens, but prompt and max_tokens "
            f"({wanted}) are {longest} together",
            param="max_tokens",
            code="context_length_exceeded",
        )
    first_seed = randbelow(SEEDS) if asked.seed is None else asked.seed
    jobs = [
        Job(prompt, _wish(asked, seed=first_seed + choice, max_new_tokens=wanted))
        for prompt in prompts
        for choice in range(num_choices)
    ]
    return Request(
        jobs=tuple(jobs),
        num_prompt_tokens=sum(map(len, prompts)),
        stream=bool(asked.stream),
        include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
    )


def unknown_model(name: str) -> ApiError:
    return ApiError(
        f"there is no model {name!r} here", status=404, param="model", code="model_not_found"
    )


def _refuse_what_is_not_done(asked: Asked) -> None:
    given = {
        "best_of": asked.best_of not in (None, 1, asked.n),
        "echo": bool(asked.echo),
        "suffix": bool(asked.suffix),
        "presence_penalty": bool(asked.presence_penalty),
        "frequency_penalty": bool(asked.frequency_penalty),
        "logit_bias": bool(asked.logit_bias),
    }
    for name, is_given in given.items():
        if is_given:
            raise ApiError(f"{name} is not supported", param=name)


def _prompts(prompt: Prompt) -> list[str | list[int]]:
    """Return each prompt: there may be one or several, as text or as tokens."""
    if isinstance(prompt, str):
        return [prompt]
    numbers = [each for each in prompt if isinstance(each, int)]
    if numbers and len(numbers) == len(prompt):
        return [numbers]
    if numbers or not prompt:
        raise ApiError("a prompt is a text, tokens, or a list of one of them", param="prompt")
    return [each for each in prompt if not isinstance(each, int)]


def _tokens(prompt: str | list[int], speaker: Speaker) -> list[int]:
    if isinstance(prompt, str):
        return speaker.tokens_of(prompt)
    vocab_size = speaker.tokenizer.vocab_size
    if not all(0 <= token < vocab_size for token in prompt):
        raise ApiError(f"tokens go from 0 to {vocab_size - 1}", param="prompt")
    return prompt


def _wish(asked: Asked, *, seed: int, max_new_tokens: int) -> Wish:
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Wish(
        sampling=Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=0,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=seed % 2**63,
        ),
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        num_top=asked.logprobs,
    )


# --- answers -------------------------------------------------------------------------------------


class Logprobs(Struct, frozen=True, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Struct, frozen=True, kw_only=True):
    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class Usage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole answer, or one message of a stream."""

    id: str
    created: int  # seconds since 1970
    model: str
    choices: list[Choice]
    object: Literal["text_completion"] | None = None
    system_fingerprint: str = ""  # which state of the run it was
    usage: Usage | None = None


def usage(request: Request, *, num_tokens: int) -> Usage:
    prompt = request.num_prompt_tokens
    return Usage(
        prompt_tokens=prompt, completion_tokens=num_tokens, total_tokens=prompt + num_tokens
    )


def logprobs(told: Sequence[tuple[Likelihood, int]], tokenizer: Tokenizer) -> Logprobs:
    """Return the likelihoods as the API tells them, each with where its text begins."""
    return Logprobs(
        tokens=[tokenizer.decode([each.token]) for each, _ in told],
        token_logprobs=[each.logprob for each, _ in told],
        top_logprobs=[
            {tokenizer.decode([token]): value for token, value in each.top} for each, _ in told
        ],
        text_offset=[offset for _, offset in told],
    )


def models(speaker: Speaker, *, created: int) -> dict[str, Any]:
    """Return the answer to GET /v1/models: the one model that there is."""
    return {"object": "list", "data": [model(speaker, created=created)]}


def model(speaker: Speaker, *, created: int) -> dict[str, Any]:
    return {
        "id": speaker.name,
        "object": "model",
        "created": created,
        "owned_by": "atoll",
        "version": speaker.version,
    }
