from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.unit.talk.cast import MAX_TOKENS

from atoll.cli.harness import Score, scores_in
from atoll.errors import ConfigError
from atoll.model.generate import Sampling
from atoll.talk.completion import Wish, complete
from atoll.talk.harness import HarnessModel, passage_of, windows, wish_of
from atoll.train.evaluate import likelihoods


@pytest.fixture
def model(speaker):
    return HarnessModel(speaker, note=lambda what, done: None)


def requests(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


# --- likelihoods ---------------------------------------------------------------------------------


def test_a_text_is_cut_where_its_context_ends_and_begins_with_the_start_token(speaker):
    start, encode = speaker.tokenizer.start_token, speaker.tokenizer.encode
    reef = [start, *encode("The reef")]
    assert passage_of(speaker, "The reef", " hides") == (reef, encode(" hides"))
    assert passage_of(speaker, "The reef ", "hides") == (reef, encode(" hides"))
    assert passage_of(speaker, "", "The reef") == ([start], encode("The reef"))


def test_of_a_context_that_is_too_long_the_end_counts(speaker):
    context, answer = passage_of(speaker, "0123456789" * 20, "tide")
    whole = speaker.tokens_of("0123456789" * 20 + "tide")
    assert [*context, *answer] == whole[-MAX_TOKENS - 1 :]
    assert answer == speaker.tokenizer.encode("tide")
    with pytest.raises(ConfigError, match=rf"of 200 tokens, and the model reads {MAX_TOKENS}"):
        passage_of(speaker, "The reef", "0123456789" * 20)


@settings(max_examples=50)
@given(st.text("0123456789 reftid", max_size=4 * MAX_TOKENS))
def test_the_windows_of_a_text_make_it_up_and_see_all_that_fits(speaker, text):
    found = list(windows(speaker, text))
    tokens = speaker.tokens_of(text)
    assert [token for _, continuation in found for token in continuation] == tokens[1:]
    for context, continuation in found:
        assert len(context) >= 1
        assert len(context) + len(continuation) - 1 <= MAX_TOKENS
    for passage in found[:1]:
        assert passage.context == tokens[:1]
    for passage in found[1:]:
        assert passage.num_read == MAX_TOKENS


def test_a_text_is_as_likely_as_its_windows(speaker, model):
    texts = ["The reef", "", "0123456789" * 20]
    expected = [
        sum(found.logprob for found in likelihoods(speaker.model, list(windows(speaker, text))))
        for text in texts
    ]
    assert expected[1] == 0
    found = model.loglikelihood_rolling(requests(*((text,) for text in texts)))
    assert found == pytest.approx(expected, rel=1e-5)


# --- generation ----------------------------------------------------------------------------------


def test_what_a_task_asks_for():
    assert wish_of({"until": "\n\n", "max_gen_toks": 9}, 64) == Wish(
        sampling=Sampling(temperature=0.0, top_k=0), max_new_tokens=9, stop=("\n\n",)
    )
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "until": ["a", "b"]}
    assert wish_of(sampled, 1024) == Wish(
        sampling=Sampling(temperature=0.5, top_k=3, top_p=0.9), max_new_tokens=256, stop=("a", "b")
    )
    assert wish_of({"temperature": 0.7, "max_gen_toks": 1}, 64).sampling.temperature == 0
    with pytest.raises(ConfigError, match="asks for 256 new tokens, and the model reads 64"):
        wish_of({}, 64)
    with pytest.raises(ConfigError, match="asks for num_beams") as caught:
        wish_of({"num_beams": 4}, 64)
    assert "max_gen_toks" in caught.value.hint


def test_it_goes_on_as_a_completion_does_from_as_much_as_fits(speaker, model):
    asked = {"until": ["e"], "max_gen_toks": 12}
    contexts = ["The reef", "0123456789" * 20]
    wish = Wish(sampling=Sampling(temperature=0.0), max_new_tokens=12, stop=("e",))
    prompts = [speaker.tokens_of(context)[-(MAX_TOKENS - 12) :] for context in contexts]
    expected = [
        "".join(piece.text for piece in complete(speaker, prompt, wish)) for prompt in prompts
    ]
    assert model.generate_until(requests(*((c, asked) for c in contexts))) == expected
    assert any(expected)


# --- results -------------------------------------------------------------------------------------


def test_scores_are_the_numbers_of_the_results_with_their_errors():
    results = {
        "reef": {
            "alias": "reef",
            "sample_len": 4,
            "acc,none": 0.5,
            "acc_stderr,none": np.float64(0.25),
            "exact_match,strict": 0.75,
            "exact_match_stderr,strict": "N/A",
        }
    }
    found = scores_in(results)
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Score]) == [
        Score(task="reef", metric="acc", value=0.5, stderr=0.25),
        Score(task="reef", metric="exact_match (strict)", value=0.75, stderr=None),
    ]
