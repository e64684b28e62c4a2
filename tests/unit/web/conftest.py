"""The application of a board, without a network, and on a real port."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tests.unit.web.cast import Seen

from atoll.web.app import application
from atoll.web.stream import Stream


@pytest.fixture
def seen() -> Seen:
    """A run of two rounds, with three peers in it."""
    run = Seen.new()
    peers = run.gather(3)
    run.commit_round(*peers)
    run.passes(3.0)
    run.commit_round(*peers)
    run.passes(3.0)
    return run


@pytest.fixture
def client(seen) -> Iterator[TestClient]:
    with TestClient(application(seen.board, Stream(seen.board))) as client:
        yield client
