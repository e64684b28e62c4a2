import pytest
from tests.unit.host.scene import CONFIG
from tests.unit.peer.cast import Enrolled


@pytest.fixture
def enrolled(tmp_path) -> Enrolled:
    return Enrolled(tmp_path / "anna", CONFIG)
