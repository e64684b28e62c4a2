"""Questions about text that nobody trains on: which of four passages goes on from this one?

    context    | tokens of a validation sample ........ |
    choices    | what follows there | and what follows in three other samples, at the same place |

Made of the run's own data, so it needs no network, and is the same for every state of the run. All
passages are alike in style and length: what tells them apart is what the context says. By chance a
quarter of the answers is right.

Shapes: K choices, P tokens of a passage.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.data.batches import Batches
from atoll.errors import ConfigError

NUM_CHOICES: Final = 4
MAX_PASSAGE: Final = 16  # tokens; longer ones become easy, shorter ones mean little
READ_AT_ONCE: Final = 256


class Question(NamedTuple):
    context: NDArray[np.int64]
    choices_KP: NDArray[np.int64]
    answer: int  # which of the choices it is


def cloze_questions(
    batches: Batches, *, num_samples: int, sequence_length: int, most: int
) -> list[Question]:
    """Return up to `most` questions about the first validation samples.

    Only samples whose first document goes on to the end of the passage are asked about: the start
    of another text follows from nothing.

    Raises:
        ConfigError: there are fewer such samples than a question has choices.
    """
    passage = min(MAX_PASSAGE, sequence_length // 4)
    start = sequence_length // 2
    whole: list[NDArray[np.int64]] = []
    for first in range(0, num_samples, READ_AT_ONCE):
        batch = batches.validation(first, min(first + READ_AT_ONCE, num_samples))
        is_whole = (batch.documents_BT[:, : start + passage] == batch.documents_BT[:, :1]).all(1)
        whole.extend(batch.tokens_BT[is_whole, : start + passage])
        if len(whole) >= most:
            break
    whole = whole[:most]
    if passage < 1 or len(whole) < NUM_CHOICES:
        raise ConfigError(
            f"too little text for a cloze test: {len(whole)} validation samples of one document",
            hint="--questions 0 leaves it out",
        )
    return [_question(whole, number, start=start) for number in range(len(whole))]


def _question(whole: list[NDArray[np.int64]], number: int, *, start: int) -> Question:
    """Return the question about one sample; the samples after it lend the wrong choices."""
    answer = number % NUM_CHOICES
    others = [whole[(number + k) % len(whole)][start:] for k in range(1, NUM_CHOICES)]
    choices = [*others[:answer], whole[number][start:], *others[answer:]]
    return Question(whole[number][:start], np.stack(choices), answer)
