import pytest
from hypothesis import given, settings, strategies as st

from atoll.exchange.tree import MIN_FAN_IN, Tree, divided

trees = st.builds(
    lambda num_slices, num_regions, fan_in: (
        Tree.over(num_slices, num_regions=num_regions, fan_in=fan_in),
        fan_in,
    ),
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(0, 70),
)


def test_one_region_is_the_root():
    tree = Tree.over(3, num_regions=1, fan_in=64)
    assert tree == Tree(3)
    assert (tree.root, tree.num_places, tree.parent(0), list(tree.children(0))) == (0, 3, None, [])


def test_ten_thousand_members_have_one_level_between():
    assert Tree.over(1, num_regions=16, fan_in=64).widths == (16, 1)
    assert Tree.over(1, num_regions=157, fan_in=64).widths == (157, 3, 1)


@settings(deadline=None, max_examples=50)
@given(trees)
def test_every_group_but_the_root_is_added_up_once_and_none_adds_up_too_many(given_tree):
    tree, fan_in = given_tree
    children = [child for group in range(tree.num_groups) for child in tree.children(group)]
    assert sorted(children) == list(range(tree.root))
    for group in range(tree.num_groups):
        assert len(tree.children(group)) <= max(fan_in, MIN_FAN_IN)
        assert (len(tree.children(group)) > 0) == (group >= tree.num_regions)
        assert all(tree.parent(child) == group for child in tree.children(group))


@settings(deadline=None, max_examples=50)
@given(trees)
def test_places_are_numbered_group_by_group(given_tree):
    tree, _ = given_tree
    places = [place for group in range(tree.num_groups) for place in tree.places(group)]
    assert places == list(range(tree.num_places))
    named = [tree.group_and_slice(place) for place in places]
    assert [tree.place(group, k) for group, k in named] == places


@settings(deadline=None, max_examples=50)
@given(trees)
def test_a_tree_follows_from_how_many_groups_it_has_below_its_root(given_tree):
    tree, fan_in = given_tree
    assert Tree.below_root(tree.num_slices, tree.root, fan_in=fan_in) == tree


def test_not_every_number_of_groups_is_that_of_a_tree():
    assert Tree.below_root(1, 1, fan_in=2) is None


def test_whoever_is_below_somebody_needs_all_above_it():
    tree = Tree.over(1, num_regions=5, fan_in=2)
    assert tree.widths == (5, 3, 2, 1)
    assert tree.with_parents([]) == set()
    assert tree.with_parents([4]) == {4, 7, 9, 10}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers()), st.integers(1, 9))
def test_parts_have_near_equal_length_and_nothing_is_lost(items, num_parts):
    parts = divided(items, num_parts)
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("widths", "is_one"),
    [
        ((1,), True),
        ((2, 1), True),
        ((4, 2, 1), True),
        ((), False),
        ((2,), False),
        ((4, 2), False),
        ((1, 1), False),
        ((4, 2, 2, 1), False),
        ((2, 4, 1), False),
    ],
)
def test_each_level_of_a_tree_is_narrower_than_the_one_below_it_and_the_last_is_one(widths, is_one):
    """As a commit may say anything."""
    assert Tree(3, widths).is_one == is_one


def test_where_nothing_else_is_said_there_is_one_region():
    assert Tree(3).is_one
    assert (Tree(3).num_regions, Tree(3).num_places) == (1, 3)
