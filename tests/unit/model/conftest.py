import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Models this small are slower on two, above all beside other tests."""
    torch.set_num_threads(1)
