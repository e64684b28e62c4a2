import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.errors import RunError
from atoll.train import shared
from atoll.train.shared import SharedVectors, vectors_path

NUM_VALUES = 3001  # no multiple of a page


@pytest.fixture
def vectors(tmp_path):
    vectors = SharedVectors.create(tmp_path / "vectors", NUM_VALUES)
    yield vectors
    vectors.unlink()


def test_begin_as_zeros_that_do_not_overlap(vectors):
    assert not vectors.global_N.any()
    vectors.global_N[:] = 1
    assert not vectors.snapshot_N.any()
    assert len(vectors.global_N) == len(vectors.snapshot_N) == NUM_VALUES


def test_what_one_process_writes_the_other_reads(vectors):
    vectors.global_N[:] = np.arange(NUM_VALUES)
    program = (
        "import sys; from pathlib import Path; from atoll.train.shared import SharedVectors\n"
        f"vectors = SharedVectors.open(Path(sys.argv[1]), {NUM_VALUES})\n"
        "vectors.snapshot_N[:] = -vectors.global_N"
    )
    subprocess.run([sys.executable, "-c", program, str(vectors.path)], check=True)
    assert np.array_equal(vectors.snapshot_N, -np.arange(NUM_VALUES, dtype=np.float32))


def test_a_view_outlives_close_and_unlink(vectors):
    view = vectors.global_N[:10]
    vectors.close()
    vectors.unlink()
    view[:] = 5
    assert view.sum() == 50
    assert not vectors.path.exists()


def test_the_space_is_really_taken(vectors):
    assert vectors.path.stat().st_blocks * 512 >= 8 * NUM_VALUES


def test_create_replaces_a_file_without_touching_its_memory(vectors):
    vectors.global_N[:] = 1
    again = SharedVectors.create(vectors.path, NUM_VALUES)
    assert not again.global_N.any()
    assert vectors.global_N.all()


def test_only_its_owner_may_read_it(vectors):
    assert vectors.path.stat().st_mode & 0o077 == 0


def test_for_a_trainer_in_this_process_there_is_no_file(tmp_path):
    vectors = SharedVectors.private(tmp_path, NUM_VALUES)
    vectors.global_N[:] = 1
    assert not vectors.snapshot_N.any()
    assert len(vectors.snapshot_N) == NUM_VALUES
    vectors.unlink()
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_says_how_much_it_takes(tmp_path):
    with pytest.raises(RunError, match=r"8\.0 TB: .*vectors: No space left") as caught:
        SharedVectors.create(tmp_path / "vectors", 10**12)
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_a_run_error(tmp_path):
    with pytest.raises(RunError):
        SharedVectors.create(tmp_path / "nowhere" / "vectors", 10)


@pytest.mark.parametrize("num_values", [NUM_VALUES - 1, NUM_VALUES + 2000])
def test_another_size_is_refused(vectors, num_values):
    with pytest.raises(RunError, match="parameters take"):
        SharedVectors.open(vectors.path, num_values)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RunError, match="0 bytes"):
        SharedVectors.open(tmp_path / "none", 1)


def test_lies_in_memory_where_that_has_room_and_else_with_the_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "MEMORY_FILES", tmp_path)
    peer = tmp_path / "peer"
    assert vectors_path(peer, 10).parent == tmp_path
    assert vectors_path(peer, 10) == vectors_path(peer, 1000)
    assert vectors_path(peer, 10) != vectors_path(tmp_path / "other", 10)
    too_many = shutil.disk_usage(tmp_path).free
    assert vectors_path(peer, too_many) == peer / "trainer.vectors"
    monkeypatch.setattr(shared, "MEMORY_FILES", Path(os.devnull))
    assert vectors_path(peer, 10) == peer / "trainer.vectors"
