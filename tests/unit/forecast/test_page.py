"""The page about the planner is what its command writes, as far as that follows from the code."""

from benchmarks import planner


def test_the_page_is_up_to_date():
    """Otherwise: make bench-plan, and look at what has changed."""
    page = planner.PAGE.read_text(encoding="utf-8")
    assert planner.written(page, planner.computed()) == page


def test_what_was_measured_is_found_on_the_pages_beside_it():
    cases = [each.case for each in (*planner.exchanges(), *planner.utilisations())]
    assert "4 peers, 20 M, 100 Mb/s" in cases
    assert "blocking int8, 40 Mb/s" in cases
