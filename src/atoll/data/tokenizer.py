"""Text to tokens and back: a thin cover over the `tokenizers` library.

A document is its start token and the tokens of its text. There is no end token: a model says that a
text is over with the start of the next one, and generation stops there.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from tokenizers import Tokenizer as Rules, decoders, models, pre_tokenizers, trainers

from atoll.errors import ConfigError

START: Final = "<|begin|>"
# What other tokenizers call the token between two documents; the first one that exists counts.
KNOWN_STARTS: Final = (START, "<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>", "<|im_start|>")
MIN_VOCAB_SIZE: Final = 257  # every byte, and the start token
INCOMPLETE: Final = "\ufffd"  # what bytes decode to that are no character, or not yet a whole one


class Tokenizer:
    def __init__(self, rules: Rules, *, name: str) -> None:
        """Take over the rules of a tokenizer; `name` is what errors call it.

        Raises:
            ConfigError: it has no token that can stand at the start of a document.
        """
        starts = (rules.token_to_id(token) for token in KNOWN_STARTS)
        start_token = next((token for token in starts if token is not None), None)
        if start_token is None:
            raise ConfigError(
                f"no token for the start of a text in the tokenizer: {name}",
                hint=f"add one of these as a special token: {', '.join(KNOWN_STARTS)}",
            )
        rules.no_truncation()
        rules.no_padding()
        rules.encode_special_tokens = True  # a text that quotes a special token does not become it
        self._rules = rules
        self.start_token: int = start_token
        self.vocab_size: int = max(rules.get_vocab().values()) + 1
        self.token_bytes: Literal[2, 4] = 2 if self.vocab_size <= 2**16 else 4

    @staticmethod
    def train(documents: Iterable[str], *, vocab_size: int) -> "Tokenizer":
        """Return a byte-level BPE tokenizer of `vocab_size` tokens, fewer for very little text."""
        if vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError(
                f"a vocabulary of {vocab_size} tokens is too small",
                hint=f"data.tokenizer.vocab_size must be at least {MIN_VOCAB_SIZE}",
            )
        rules = Rules(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rules.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[START],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        rules.train_from_iterator(documents, trainer=trainer)
        return Tokenizer(rules, name="trained here")

    @staticmethod
    def from_bytes(content: bytes, *, name: str) -> "Tokenizer":
        """Return the tokenizer of the `tokenizer.json` with this content.

        Raises:
            ConfigError: it is damaged, or of no use here.
        """
        try:
            rules = Rules.from_buffer(content)
        except Exception as error:
            raise ConfigError(
                f"not a tokenizer: {name}: {error}",
                hint="it must be a tokenizer.json of the Hugging Face tokenizers library",
            ) from error
        return Tokenizer(rules, name=name)

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Return the tokenizer in this `tokenizer.json`.

        Raises:
            ConfigError: it is missing, damaged, or of no use here.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the tokenizer {path}: {error.strerror}",
                hint="data.tokenizer.path names a tokenizer.json, from the folder of run.toml",
            ) from error
        return Tokenizer.from_bytes(content, name=str(path))

    def to_bytes(self) -> bytes:
        """Return the content of its `tokenizer.json`."""
        return self._rules.to_str().encode()

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text alone, without the start token of a document."""
        return self._rules.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, on all cores."""
        encodings = self._rules.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of the tokens, without special tokens."""
        return self._rules.decode(list(tokens), skip_special_tokens=True)


class StreamDecoder:
    """Decodes tokens one by one, and holds back a character until its last byte is there.

    An incomplete character decodes as one U+FFFD, at the end; those before it are broken for good.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The tokens of the last whole text, and from `_start` on those after it: some decoders
        # treat a first word specially.
        self._tokens: list[int] = []
        self._start = 0
        self._num_shown = 0  # characters of their text

    def push(self, token: int) -> str:
        """Return the text that this token completes, which may be empty."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        whole = text.removesuffix(INCOMPLETE)
        shown = whole[self._num_shown :]
        if whole == text:
            self._tokens = self._tokens[self._start :]
            self._start = len(self._tokens)
            self._num_shown = len(self._tokenizer.decode(self._tokens))
        else:
            self._num_shown = len(whole)
        return shown

    def finish(self) -> str:
        """Return what was held back, if the tokens ended within a character."""
        return self._tokenizer.decode(self._tokens)[self._num_shown :]


def check_fits(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        ConfigError: it has not.
    """
    if tokenizer.vocab_size > model_vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model a vocabulary of {model_vocab_size}",
            hint=f"set model.vocab_size to {tokenizer.vocab_size}, or take a smaller tokenizer",
        )
