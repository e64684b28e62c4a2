"""What holds for all tests: their order, how they share the cores, and that they have time."""

import os

import pytest
from hypothesis import settings

# No test is held to a speed: a machine may be ten times slower, or have other work.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Two threads of torch wait for each other without spinning: the core is the other worker's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(trylast=True)  # after the order was drawn by lot
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that all workers are busy to the end."""
    items.sort(key=lambda item: "loopback" not in item.path.parts)
