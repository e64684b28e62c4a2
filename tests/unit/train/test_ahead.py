from threading import Event, get_ident

import pytest
from hypothesis import given, settings, strategies as st

from atoll.train.ahead import Ahead

A, B, C = [(0, 4)], [(4, 6), (9, 11)], [(11, 15)]
WAIT_S = 30.0


def test_what_is_foretold_is_made_once_by_another_thread():
    made, by, is_made = [], [], Event()

    def make(spans):
        made.append(spans)
        by.append(get_ident())
        if spans == B:
            is_made.set()
        return len(made)

    ahead = Ahead(make)
    assert ahead.take(A, then=B) == 1
    assert is_made.wait(WAIT_S), "nobody has asked for it yet"
    assert ahead.take(B) == 2
    assert made == [A, B]
    assert by[0] == get_ident() != by[1]


def fail_at(failing):
    def make(spans):
        if spans == failing:
            raise OSError("the disk is gone")
        return spans

    return make


def test_a_failure_comes_with_the_step_that_needs_it_and_no_other():
    ahead = Ahead(fail_at(B))
    assert ahead.take(A, then=B) == A
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(B, then=C)
    assert ahead.take(A, then=B) == A
    assert ahead.take(C, then=A) == C, "B was never needed: the work was halted"
    assert ahead.take(A) == A


steps = st.lists(st.tuples(st.integers(0, 3), st.integers(4, 6)), max_size=2)


@settings(deadline=None)
@given(st.lists(st.tuples(steps, steps), max_size=20))
def test_whatever_was_foretold_each_gets_its_own_and_no_more_is_made(takes):
    made = []

    def make(spans):
        made.append(tuple(spans))
        return tuple(spans)

    ahead = Ahead(make)
    for spans, then in takes:
        assert ahead.take(spans, then=then) == tuple(spans)
    assert set(made) <= {tuple(spans) for take in takes for spans in take}
