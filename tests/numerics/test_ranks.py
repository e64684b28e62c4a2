"""Several ranks compute what one does, and hold together what one holds."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.numerics.ranked import CASES, COPIED, answers, copied_answers
from torch.testing._internal.distributed.fake_pg import FakeStore

from atoll.data.batches import Batch
from atoll.model.flat import views
from atoll.model.layout import lay_out
from atoll.model.llama import Llama
from atoll.model.presets import PRESETS
from atoll.train.channel import Seat
from atoll.train.loss import IGNORED
from atoll.train.parallel import Ranks, join, shard_, share_of

# What torch.compile says of its own doings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
CPU = torch.device("cpu")
FP32 = [name for name, case in CASES.items() if not case.how.bf16]


@pytest.fixture(scope="module")
def alone(dataset):
    return answers(dataset)


@pytest.fixture(scope="module")
def together(dataset, tmp_path_factory):
    """What rank 0 of two finds; of the weights, what both hold. And as two machines, "copy of"."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    command = [sys.executable, "-m", "tests.numerics.ranked", str(store), str(dataset.folder)]
    second = subprocess.Popen(command)
    try:
        ranks = join(Seat(rank=0, num_ranks=2, store=str(store)), CPU)
        found, copied = answers(dataset, ranks), copied_answers(dataset, ranks)
        assert second.wait(timeout=120) == 0
    finally:
        second.kill()
        second.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
    with np.load(store.with_suffix(".npz")) as others:
        for name, mine in found.items():
            assert not (mine.weights_N * others[name]).any(), "a value is on one rank alone"
            mine.weights_N[:] += others[name]
        for name, mine in copied.items():
            assert (mine.weights_N == others[f"copy of {name}"]).all(), "machines differ"
            found[f"copy of {name}"] = mine
    return found


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", FP32)
def test_two_ranks_take_the_steps_of_one(alone, together, name):
    one, two = alone[name], together[name]
    # Muon's own products are in bf16, and so the loss of a second step is that of other weights.
    assert two.losses == pytest.approx(one.losses, rel=1e-5 if name == "muon" else 1e-6)
    if CASES[name].num_steps == 1:  # later ones begin at other weights, by Adam's root of a square
        assert error(two.gradient_N, one.gradient_N) < 1e-6
    assert error(two.weights_N, one.weights_N) < (1e-3 if name == "muon" else 1e-5)
    for moment in one.moments:
        assert two.moments[moment].shape == one.moments[moment].shape


@pytest.mark.parametrize("name", COPIED)
def test_two_machines_take_the_steps_of_one(alone, together, name):
    one, two = alone[name], together[f"copy of {name}"]
    in_bf16 = CASES[name].how.bf16
    assert two.losses == pytest.approx(one.losses, rel=1e-3 if in_bf16 else 1e-6)
    if CASES[name].num_steps == 1:
        assert error(two.gradient_N, one.gradient_N) < (3e-2 if in_bf16 else 1e-6)
    else:
        assert error(two.weights_N, one.weights_N) < (1e-3 if name == "muon" else 1e-5)
    for moment in one.moments:
        assert two.moments[moment].shape == one.moments[moment].shape


@pytest.mark.parametrize("name", ["micro-batches", "selective", "layers", "compiled"])
def test_neither_cutting_nor_recomputing_nor_compiling_changes_a_gradient(alone, name):
    assert alone[name].losses == pytest.approx(alone["plain"].losses, rel=1e-6)
    assert error(alone[name].gradient_N, alone["plain"].gradient_N) < 1e-6


def test_bf16_rounds_products_and_nothing_else(alone, together):
    for found in (alone["bf16"], together["bf16"]):
        assert 1e-4 < error(found.gradient_N, alone["plain"].gradient_N) < 3e-2
        assert found.losses == pytest.approx(alone["plain"].losses, rel=1e-3)


def test_fp8_rounds_large_products_and_nothing_else(alone, together):
    """Emulated here; recomputed, by one rank or two: near what bf16 makes of it."""
    in_bf16 = alone["fp8's model in bf16"]
    for found in (alone["fp8"], together["fp8"]):
        assert 1e-3 < error(found.gradient_N, in_bf16.gradient_N) < 0.1
        assert found.losses == pytest.approx(in_bf16.losses, rel=1e-2)
        assert found.weights_N.shape == in_bf16.weights_N.shape


def test_shares_are_equally_long_and_hold_each_row_once():
    rows_BT = np.arange(7)[:, None].repeat(3, axis=1)
    batch = Batch(rows_BT, rows_BT + 100, rows_BT * 0)
    for num_ranks in (1, 2, 3, 8):
        shares = [share_of(batch, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        assert len({share.tokens_BT.shape for share in shares}) == 1
        targets_BT = np.concatenate([share.targets_BT for share in shares])
        exists_B = targets_BT[:, 0] != IGNORED
        assert (targets_BT[exists_B] == batch.targets_BT).all()
        assert (targets_BT[~exists_B] == IGNORED).all()


def test_eight_ranks_hold_each_value_of_ten_billion_once():
    """On the meta device: nothing of it is there."""
    from torch.distributed.device_mesh import init_device_mesh

    config = PRESETS["intellect-1"]
    layout = lay_out(config, 6)
    places, held = [], []
    for rank in range(8):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=8)
        try:
            with torch.device("meta"):
                model = Llama(config)
            shard_(model, Ranks(rank, 8, init_device_mesh("cpu", (8,))), bf16=True)
            found = [place for _, place in views(model, layout, start=0, stop=layout.num_values)]
        finally:
            dist.destroy_process_group()
        places += [(place.start, place.stop) for place in found]
        held.append(sum(place.stop - place.start for place in found))
    places.sort()
    assert places[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in pairwise(places))
    assert places[-1][1] == layout.num_values == sum(held) == 10_211_381_248
    assert set(held) == {layout.num_values // 8}, "5.1 GB in fp32 on each"
