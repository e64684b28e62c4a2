"""Random faults by the hundred: each run ends, and ends right. `make chaos` does thousands more."""

import pytest
from tests.sim.cast import well

from atoll.sim.scripts import random_case

SEEDS = 240
PER_TEST = 8  # so that the start of a test is not what takes the time


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_whatever_happens_the_run_ends_and_ends_right(first, tmp_path):
    for seed in range(first, first + PER_TEST):
        directory = tmp_path / str(seed)
        directory.mkdir()
        well(random_case(seed), directory)
