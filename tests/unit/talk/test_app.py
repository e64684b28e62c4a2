"""The API as its own client sees it, and as a stranger does; the model is a real, tiny one."""

import asyncio
import json
import threading

import openai
import pytest
from starlette.testclient import TestClient

from atoll.errors import DamagedError
from atoll.model.generate import Sampling
from atoll.talk.app import MAX_BODY_BYTES, application
from atoll.talk.completion import Wish, complete
from atoll.talk.engine import Engine, Job

KEY = "sesame"
ASKED = {"model": "reef", "prompt": "The reef", "max_tokens": 12, "seed": 5}


class Same:
    """A source whose first model stays the newest, or that fails."""

    def __init__(self, error=None):
        self.error = error

    def newer(self):
        if self.error:
            raise self.error


@pytest.fixture
def served(speaker):
    with TestClient(application(Engine(Same(), speaker), key=KEY)) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture
def client(served):
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key=KEY, http_client=served, max_retries=0
    )


def text_of(speaker, prompt, *, seed, max_tokens, **sampling):
    sampling = Sampling(**{"temperature": 1.0, "top_k": 0, **sampling, "seed": seed})
    wish = Wish(sampling=sampling, max_new_tokens=max_tokens)
    return "".join(piece.text for piece in complete(speaker, prompt, wish))


def test_it_completes_as_the_model_does(client, speaker):
    prompt = speaker.tokens_of("The reef")
    answer = client.completions.create(**ASKED, n=2)
    texts = [text_of(speaker, prompt, seed=seed, max_tokens=12) for seed in (5, 6)]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    assert (answer.object, answer.model) == ("text_completion", "reef")
    assert answer.usage.prompt_tokens == len(prompt)
    assert 1 <= answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens


def test_a_stream_is_the_same_in_pieces(client):
    whole = client.completions.create(**ASKED, logprobs=2)
    stream = client.completions.create(
        **ASKED, logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    streamed = [choice.logprobs for choice in choices if choice.logprobs]
    told = whole.choices[0].logprobs
    assert [p for each in streamed for p in each.token_logprobs] == told.token_logprobs
    assert [o for each in streamed for o in each.text_offset] == told.text_offset


def test_several_prompts_as_text_or_tokens(client, speaker):
    prompts = [speaker.tokens_of("The"), speaker.tokens_of("Le récif")]
    answer = client.completions.create(model="reef", prompt=prompts, max_tokens=3, temperature=0)
    as_text = client.completions.create(
        model="reef", prompt=["The", "Le récif"], max_tokens=3, temperature=0
    )
    one = client.completions.create(model="reef", prompt=prompts[1], max_tokens=3, temperature=0)
    texts = [choice.text for choice in answer.choices]
    assert texts == [choice.text for choice in as_text.choices]
    assert [choice.text for choice in one.choices] == texts[1:]
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


def test_it_stops_where_it_is_told(client):
    whole = client.completions.create(**ASKED).choices[0].text
    stop = whole[4:6]
    choice = client.completions.create(**ASKED, stop=[stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_the_models(client):
    assert [model.id for model in client.models.list()] == ["reef"]
    assert client.models.retrieve("reef").owned_by == "atoll"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("changes", "param", "what"),
    [
        ({"model": "gpt"}, "model", "no model 'gpt'"),
        ({"max_tokens": 64}, "max_tokens", "a context of 64 tokens"),
        ({"n": 17}, "n", "at most 16"),
        ({"echo": True}, "echo", "not supported"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "not supported"),
        ({"prompt": []}, "prompt", "a prompt is"),
        ({"prompt": [1, "a"]}, "prompt", "a prompt is"),
        ({"prompt": [10**6]}, "prompt", "tokens go from 0 to"),
        ({"temperature": -1}, None, "temperature"),
        ({"stop": list("abcde")}, None, "stop"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_their_form(client, changes, param, what):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{**ASKED, **changes})
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert what in str(caught.value)


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer no"}, {"authorization": KEY}])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/reef", "/v1/completions"])
def test_without_the_key_there_is_nothing(served, header, path):
    del served.headers["authorization"]
    method = "POST" if path.endswith("completions") else "GET"
    answer = served.request(method, path, headers=header)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{}", "application/json", 400),
        (json.dumps(ASKED).encode(), "text/plain", 415),
        (b" " * (MAX_BODY_BYTES + 1), "application/json", 413),
    ],
)
def test_any_bytes_are_answered(served, body, kind, status):
    answer = served.post("/v1/completions", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [("/v1/completions", 405), ("/v1/other", 404)])
def test_what_is_not_there_is_an_error_in_their_form(served, path, status):
    answer = served.get(path)
    assert answer.status_code == status
    assert "there are POST /v1/completions" in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_newer_model_that_cannot_be_read_is_an_error_of_ours(speaker):
    engine = Engine(Same(DamagedError("a chunk is not what was saved")), speaker)
    with TestClient(application(engine)) as client:
        answer = client.post("/v1/completions", json=ASKED)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        stream = client.post("/v1/completions", json={**ASKED, "stream": True}).text
        assert "a chunk is not what was saved" in stream
        assert stream.endswith("data: [DONE]\n\n")


def test_an_error_that_nobody_expected_ends_one_answer_and_not_the_server(speaker):
    source = Same(KeyError("states"))
    with TestClient(application(Engine(source, speaker))) as client:
        assert client.post("/v1/completions", json=ASKED).status_code == 500
        source.error = None
        assert client.post("/v1/completions", json=ASKED).status_code == 200


class Waits:
    """A source that holds up the first job until it is let go."""

    def __init__(self):
        self.asked, self.go = threading.Event(), threading.Event()

    def newer(self):
        self.asked.set()
        self.go.wait()


def test_one_too_many_is_turned_away(speaker):
    source = Waits()
    engine = Engine(source, speaker, max_waiting=2)
    with TestClient(application(engine)) as client:
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(client.post("/v1/completions", json=ASKED))
        )
        first.start()
        source.asked.wait()
        refused = client.post("/v1/completions", json={**ASKED, "n": 3})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        source.go.set()
        first.join()
        assert answers[0].status_code == 200
        assert client.post("/v1/completions", json={**ASKED, "n": 2}).status_code == 200


def test_a_job_that_nobody_waits_for_is_not_done(speaker):
    async def main():
        source = Waits()
        engine = Engine(source, speaker)
        running = asyncio.create_task(engine.run())
        wish = Wish(sampling=Sampling(), max_new_tokens=3)
        kept, left = (Job(speaker.tokens_of("The"), wish) for _ in range(2))
        with engine.ask([left]):
            await asyncio.to_thread(source.asked.wait)
        source.go.set()
        with engine.ask([kept]):
            assert [piece.finish async for piece in kept.read()][-1] is not None
        assert left.pieces.empty()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
