import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as Rules, decoders, models, pre_tokenizers

from atoll.data.tokenizer import StreamDecoder, Tokenizer, check_fits
from atoll.errors import ConfigError

TEXTS = ["The tide comes in, slowly.", "The tide goes out; naïve 🐚 and 珊瑚 remain behind."] * 5
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=300)


def foreign(*special_tokens: str) -> Tokenizer:
    rules = Rules(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    rules.add_special_tokens(list(special_tokens))
    return Tokenizer.from_bytes(rules.to_str().encode(), name="foreign")


@settings(deadline=None)
@given(st.text())
def test_every_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_training_is_a_function_of_the_texts():
    again = Tokenizer.train(iter(TEXTS), vocab_size=300)
    assert again.to_bytes() == TOKENIZER.to_bytes()
    assert Tokenizer.train(TEXTS[:1], vocab_size=300).to_bytes() != TOKENIZER.to_bytes()


def test_training_learns_words():
    assert TOKENIZER.vocab_size == 300
    assert len(TOKENIZER.encode("The tide")) < len("The tide") / 2


def test_little_text_gives_a_smaller_vocabulary():
    assert 257 <= Tokenizer.train(["ab"], vocab_size=1000).vocab_size < 300


def test_a_vocabulary_without_room_for_every_byte_is_refused():
    with pytest.raises(ConfigError, match="256 tokens is too small"):
        Tokenizer.train(TEXTS, vocab_size=256)


def test_a_text_that_quotes_the_start_token_does_not_start_a_document():
    tokens = TOKENIZER.encode("write <|begin|> first")
    assert TOKENIZER.start_token not in tokens
    assert TOKENIZER.decode(tokens) == "write <|begin|> first"
    assert TOKENIZER.decode([TOKENIZER.start_token, *tokens]) == "write <|begin|> first"


def test_a_batch_is_encoded_like_its_texts():
    assert TOKENIZER.encode_batch(TEXTS) == [TOKENIZER.encode(text) for text in TEXTS]


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.to_bytes() == TOKENIZER.to_bytes()
    assert loaded.start_token == TOKENIZER.start_token


@pytest.mark.parametrize(
    ("special_tokens", "start_token"),
    [
        (["<|end_of_text|>", "<|begin_of_text|>"], 3),  # Llama 3
        (["<|endoftext|>"], 2),  # GPT-2
        (["<unk>", "<s>", "</s>"], 3),  # Llama 2
    ],
)
def test_the_start_token_of_other_tokenizers_is_found(special_tokens, start_token):
    assert foreign(*special_tokens).start_token == start_token


def test_a_tokenizer_without_a_start_token_is_refused():
    with pytest.raises(ConfigError, match=r"no token for the start of a text .*: foreign"):
        foreign("<pad>")


def test_truncation_and_padding_of_other_tokenizers_do_not_apply():
    rules = Rules(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    rules.add_special_tokens(["<s>"])
    rules.enable_truncation(2)
    rules.enable_padding(length=5)
    tokenizer = Tokenizer.from_bytes(rules.to_str().encode(), name="foreign")
    assert tokenizer.encode("abab") == [0, 1, 0, 1]
    assert tokenizer.encode_batch(["a"]) == [[0]]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"version": "1.0", "model": 3}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a tokenizer: .*tokenizer.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the tokenizer .*missing.json"):
        Tokenizer.load(tmp_path / "missing.json")


def test_a_vocabulary_beyond_the_models_is_refused():
    check_fits(TOKENIZER, 300)
    with pytest.raises(ConfigError, match="has 300 tokens, the model a vocabulary of 299"):
        check_fits(TOKENIZER, 299)


def test_tokens_take_two_bytes_as_long_as_they_fit():
    rules = Rules(models.WordLevel({"<s>": 0, "a": 65_535}, unk_token="<s>"))
    assert Tokenizer(rules, name="small").token_bytes == 2
    rules = Rules(models.WordLevel({"<s>": 0, "a": 65_536}, unk_token="<s>"))
    assert Tokenizer(rules, name="large").token_bytes == 4


# --- streams -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_a_stream_shows_whole_characters_only_and_all_of_them(text):
    stream = StreamDecoder(TOKENIZER)
    shown = [stream.push(token) for token in TOKENIZER.encode(text)]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + stream.finish() == text


@settings(deadline=None)
@given(st.lists(st.integers(0, 299), max_size=30))
def test_a_stream_of_any_tokens_shows_what_they_decode_to_at_once(tokens):
    stream = StreamDecoder(TOKENIZER)
    shown = "".join(stream.push(token) for token in tokens)
    rest = stream.finish()
    assert shown + rest == TOKENIZER.decode(tokens)
    assert rest in ("", "\ufffd")


def test_a_stream_keeps_the_spaces_of_a_tokenizer_that_marks_words():
    rules = Rules(models.WordLevel({"<s>": 0, "▁the": 1, "▁tide": 2}, unk_token="<s>"))
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.decoder = decoders.Metaspace()
    stream = StreamDecoder(Tokenizer(rules, name="words"))
    assert [stream.push(token) for token in (1, 2, 1)] == ["the", " tide", " the"]


def test_numpy_tokens_decode():
    assert TOKENIZER.decode(np.array(TOKENIZER.encode("tide"))) == "tide"
