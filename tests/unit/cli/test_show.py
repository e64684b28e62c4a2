import pytest

from atoll.cli.show import sparkline


def test_a_curve_has_a_bar_for_each_value():
    assert sparkline([8, 4.5, 1], columns=10) == "█▅▁"


def test_a_long_curve_is_one_of_means():
    assert sparkline([1, 1, 1, 9, 9, 9], columns=2) == "▁█"
    assert sparkline([1, 3, 9], columns=2) == "▁█"


@pytest.mark.parametrize("columns", [1, 7, 60])
def test_a_curve_fits(columns):
    assert len(sparkline(range(1000), columns=columns)) == columns


def test_a_flat_curve_and_none_at_all():
    assert sparkline([5.0, 5.0], columns=9) == "▁▁"
    assert sparkline([], columns=9) == ""
