"""Questions out of held-out text. Samples here are numbers, so each says where it comes from."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.data.batches import Batch
from atoll.data.cloze import NUM_CHOICES, cloze_questions
from atoll.errors import ConfigError

LENGTH = 32


class Numbered:
    """Sample n holds the tokens 100 n, 100 n + 1, ...; every third one has a second document."""

    def validation(self, start, stop):
        number_B1 = np.arange(start, stop)[:, None]
        place_T = np.arange(LENGTH)
        tokens_BT = 100 * number_B1 + place_T
        documents_BT = ((number_B1 % 3 == 2) & (place_T > 10)).astype(np.int64)
        return Batch(tokens_BT, tokens_BT + 1, documents_BT)


@settings(deadline=None, max_examples=50)
@given(num_samples=st.integers(6, 700), most=st.integers(NUM_CHOICES, 500))
def test_the_answer_goes_on_where_the_context_ends_and_the_others_do_not(num_samples, most):
    questions = cloze_questions(
        Numbered(), num_samples=num_samples, sequence_length=LENGTH, most=most
    )
    num_whole = sum(number % 3 != 2 for number in range(num_samples))
    assert len(questions) == min(most, num_whole)
    for question in questions:
        goes_on = question.choices_KP[:, 0] == question.context[-1] + 1
        assert goes_on.tolist() == [k == question.answer for k in range(NUM_CHOICES)]
        sources = question.choices_KP[:, 0] // 100
        assert len(set(sources.tolist())) == NUM_CHOICES
        assert not (sources % 3 == 2).any(), "no question about the start of another text"


def test_answers_are_not_all_at_one_place():
    questions = cloze_questions(Numbered(), num_samples=60, sequence_length=LENGTH, most=40)
    assert {question.answer for question in questions} == set(range(NUM_CHOICES))


def test_too_little_text_is_an_error():
    with pytest.raises(ConfigError, match="too little text for a cloze test: 2 validation"):
        cloze_questions(Numbered(), num_samples=3, sequence_length=LENGTH, most=40)
