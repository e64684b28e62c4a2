"""Which text is for validation, and in what portions text is tokenised. Pure."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from math import ceil
from typing import Final, NamedTuple

from blake3 import blake3

from atoll.data.manifest import Split

PIECE_CHARACTERS: Final = (
    2**20
)  # tokenised at once; the library takes some 100 bytes for each token
MOST_HELD_DOCUMENTS: Final = 1000  # in memory, until it is known whether a source has few or many


class Piece(NamedTuple):
    """A document, or a part of one that is too long to be tokenised at once."""

    split: Split
    starts_document: bool
    text: str


def split_documents(texts: Iterable[str], *, share: float) -> Iterator[tuple[Split, str]]:
    """Yield each text with its split; about `share` of a source is for validation.

    A hash of a text decides, so copies of it stay together and other texts do not matter. Among the
    first 1 / share documents, the least hash is always for validation, and the greatest never. With
    fewer documents, whole ones would be too coarse: then the end of each is for validation.
    """
    texts = iter(texts)
    num_held = min(MOST_HELD_DOCUMENTS, max(2, ceil(1 / share)))
    held = list(islice(texts, num_held))
    if len(held) < num_held:
        for text in held:
            cut = len(text) - round(len(text) * share)
            yield "train", text[:cut]
            yield "validation", text[cut:]
        return
    least, *_, greatest = sorted(_hash_share(text) for text in held)
    for text in chain(held, texts):
        place = _hash_share(text)
        is_validation = place == least or (place < share and place != greatest)
        yield ("validation" if is_validation else "train"), text


def _hash_share(text: str) -> float:
    """Return a number from 0 to 1, evenly spread over different texts."""
    return int.from_bytes(blake3(text.encode()).digest(length=8), "big") / 2**64


def pieces(texts: Iterable[tuple[Split, str]]) -> Iterator[Piece]:
    """Yield the texts, the long ones cut in front of a space, where most tokenizers cut anyway."""
    for split, text in texts:
        start = 0
        while start < len(text):
            stop = start + PIECE_CHARACTERS
            if stop < len(text):
                space = text.rfind(" ", start + 1, stop)
                stop = stop if space == -1 else space
            yield Piece(split, start == 0, text[start:stop])
            start = stop


def portions(all_pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces in lists, each but the last of `PIECE_CHARACTERS` or a little more."""
    portion: list[Piece] = []
    num_characters = 0
    for piece in all_pieces:
        portion.append(piece)
        num_characters += len(piece.text)
        if num_characters >= PIECE_CHARACTERS:
            yield portion
            portion, num_characters = [], 0
    if portion:
        yield portion


def training_texts(texts: Iterable[tuple[Split, str]], *, num_characters: int) -> Iterator[str]:
    """Yield the texts that are for training, until there are `num_characters`."""
    for piece in pieces(texts):
        if num_characters <= 0:
            return
        if piece.split == "train":
            num_characters -= len(piece.text)
            yield piece.text
