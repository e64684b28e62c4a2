import math
from itertools import islice

import pytest
import torch
from hypothesis import given, strategies as st

from atoll.config import ModelConfig
from atoll.errors import ConfigError
from atoll.model.generate import Sampling, generate
from atoll.talk.completion import Until, Wish, complete, likelihood_of
from atoll.talk.source import ExportedFolder

letters = st.text("abé", max_size=30)


@given(letters, st.lists(letters, max_size=3), st.data())
def test_what_comes_is_the_text_before_the_first_stop_string(text, stop, data):
    """However the text is cut into pieces."""
    until, shown, rest = Until(stop), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += until.push(rest[:size])
        rest = rest[size:]
    shown += until.finish()
    places = [at for one in stop if one and (at := text.find(one)) >= 0]
    if not places:
        assert (shown, until.is_over) == (text, False)
        return
    assert until.is_over
    # A longer stop string may begin earlier, but is whole only later: both ends are right.
    assert text.startswith(shown)
    assert any(text.startswith(one, len(shown)) for one in stop if one)


def test_nothing_is_held_back_that_cannot_become_a_stop_string():
    until = Until(["\n\n", "END"])
    assert [until.push(text) for text in ("a\n", "b", "E", "N", "x")] == ["a", "\nb", "", "", "ENx"]


WISH = Wish(sampling=Sampling(seed=3), max_new_tokens=40)


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_the_pieces_are_the_text_of_the_tokens(speaker):
    prompt = speaker.tokens_of("The reef")
    pieces = list(complete(speaker, prompt, WISH))
    tokens = list(
        generate(
            speaker.model,
            prompt,
            max_new_tokens=40,
            sampling=WISH.sampling,
            stop_token=speaker.tokenizer.start_token,
        )
    )
    assert text_of(pieces) == speaker.tokenizer.decode(tokens)
    assert [piece.finish for piece in pieces] == [None] * len(tokens) + [pieces[-1].finish]
    assert pieces[-1].finish == ("length" if len(tokens) == 40 else "stop")


def test_it_stops_before_a_stop_string(speaker):
    prompt = speaker.tokens_of("The reef")
    whole = text_of(complete(speaker, prompt, WISH))
    stop = whole[10:12]
    wish = Wish(sampling=WISH.sampling, max_new_tokens=40, stop=(stop,))
    pieces = list(complete(speaker, prompt, wish))
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


def test_likelihoods_are_those_of_the_softmax():
    logits_V = torch.tensor([0.0, 2.0, 1.0])
    likelihood = likelihood_of(2, logits_V, num_top=2)
    total = 1 + math.e**2 + math.e
    assert likelihood.logprob == pytest.approx(math.log(math.e / total))
    assert [token for token, _ in likelihood.top] == [1, 2]
    assert likelihood.top[0][1] == pytest.approx(math.log(math.e**2 / total))


def test_a_piece_tells_how_likely_its_token_was_if_one_wants_to_know(speaker):
    prompt = speaker.tokens_of("The")
    greedy = Wish(sampling=Sampling(temperature=0), max_new_tokens=3, num_top=2)
    for piece in islice(complete(speaker, prompt, greedy), 3):
        token, logprob, top = piece.likelihood
        assert (token, logprob) == top[0]
        assert top[0][1] >= top[1][1]


# --- an exported folder --------------------------------------------------------------------------


def test_an_exported_model_comes_once(exported):
    source = ExportedFolder(exported, device=torch.device("cpu"))
    speaker = source.newer()
    assert (speaker.name, speaker.version, speaker.max_tokens) == ("reef", "", 64)
    assert isinstance(speaker.model.config, ModelConfig)
    assert source.newer() is None


def test_a_folder_without_a_tokenizer_is_no_use(exported, tmp_path):
    for path in exported.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="tokenizer"):
        ExportedFolder(tmp_path, device=torch.device("cpu")).newer()
