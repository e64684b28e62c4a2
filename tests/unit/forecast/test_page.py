"""The page about the planner is what its command writes from the code and the pages beside it."""

from benchmarks import planner


def test_the_page_is_up_to_date():
    """Otherwise: make bench-plan, and look at what has changed."""
    page = planner.PAGE.read_text(encoding="utf-8")
    assert planner.written(page) == page
