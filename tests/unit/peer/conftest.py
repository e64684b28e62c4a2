from collections.abc import Iterator

import pytest
from tests.unit.host.scene import CONFIG
from tests.unit.peer.cast import Enrolled

from atoll.peer.home import Home


@pytest.fixture
def enrolled(tmp_path) -> Enrolled:
    return Enrolled(tmp_path / "anna", CONFIG)


@pytest.fixture
def home(enrolled) -> Iterator[Home]:
    home = Home(enrolled.directory, keep_states=2)
    yield home
    home.close()
