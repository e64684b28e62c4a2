import pytest

from atoll.peer.speed import Speed


def after(*rounds: tuple[int, float]) -> float:
    """Return the estimate after rounds of (samples of a step, its seconds) each, two steps long."""
    speed = Speed()
    for num_samples, seconds in rounds:
        speed.note(num_samples, seconds)
        speed.note(num_samples, seconds)
        speed.close_round()
    return speed.samples_per_s


def test_unknown_until_a_round_had_steps():
    speed = Speed()
    speed.note(8, 2.0)
    assert speed.samples_per_s == 0.0
    speed.close_round()
    assert speed.samples_per_s == 4.0


def test_a_round_without_steps_changes_nothing():
    speed = Speed()
    speed.note(8, 2.0)
    speed.close_round()
    speed.close_round()
    assert speed.samples_per_s == 4.0


def test_a_hiccup_halves_it_at_worst_and_is_forgotten():
    assert after((8, 2.0), (8, 1e9)) == pytest.approx(2.0)
    assert after((8, 2.0), (8, 1e9), (8, 2.0), (8, 2.0), (8, 2.0)) > 0.9 * 4.0


def test_a_machine_that_has_become_slower_shows_in_three_rounds():
    assert after((8, 2.0), *[(8, 20.0)] * 3) < 1.3 * 0.4 + 0.4
