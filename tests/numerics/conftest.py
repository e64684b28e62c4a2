import pytest
import torch
from tests.numerics.diloco import CONFIG

from atoll.data.prepare import prepare


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("diloco")
    text = " ".join(f"the island {k} is {k * k} miles from the atoll" for k in range(900))
    (directory / "text.txt").write_text(text)
    return prepare(
        CONFIG, base_directory=directory, directory=directory, on_progress=lambda *_: None
    )
