"""What holds for all tests: their order, and how they share the cores."""

import os

import pytest

# Two threads of torch wait for each other without spinning: the core is the other worker's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(trylast=True)  # after the order was drawn by lot
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that all workers are busy to the end."""
    items.sort(key=lambda item: "loopback" not in item.path.parts)
