from pathlib import Path

import pytest
import torch
from tests.unit.talk.cast import export_tiny

from atoll.talk.source import ExportedFolder, Speaker


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="session")
def speaker(exported: Path) -> Speaker:
    speaker = ExportedFolder(exported, device=torch.device("cpu")).newer()
    assert speaker is not None
    return speaker
