import numpy as np
import pytest

from atoll.errors import DamagedError, RunError
from atoll.ids import RoundId, digest_of
from atoll.outer.checkpoint import MANIFEST_FILE, STATE_FILE, StateStore
from atoll.outer.manifest import manifest_of
from atoll.outer.saved import read_saved, saved_rounds
from atoll.outer.state import PeerState

RUN = digest_of(b"run")
SIZE = 5000


@pytest.fixture
def store(tmp_path):
    """The directory of a store with the states 3 and 12."""
    store = StateStore(tmp_path, keep=2)
    for number in (3, 12):
        values_N = np.random.default_rng(number).normal(size=(2, SIZE)).astype(np.float32)
        state = PeerState(RoundId(number), values_N[0], values_N[1])
        store.save(state, manifest_of(state, run=RUN), now=0.0)
    return tmp_path


def test_a_state_is_read_as_it_was_saved(store):
    assert saved_rounds(store) == (3, 12)
    state, digest = read_saved(store, RoundId(12), run=RUN)
    values_N = np.random.default_rng(12).normal(size=(2, SIZE)).astype(np.float32)
    assert state.round == 12
    assert np.array_equal(state.params_N, values_N[0])
    assert np.array_equal(state.momentum_N, values_N[1])
    assert digest == manifest_of(state, run=RUN).digest


def test_reading_leaves_what_another_process_is_writing(store):
    half = store / ".tmp-half"
    half.mkdir()
    assert saved_rounds(store) == (3, 12)
    read_saved(store, RoundId(3), run=RUN)
    assert half.exists()


def test_where_there_is_no_store_there_are_no_states(tmp_path):
    assert saved_rounds(tmp_path / "states") == ()


@pytest.mark.parametrize(
    ("name", "at", "message"),
    [
        (STATE_FILE, -1, "chunk 0"),  # the last value
        (STATE_FILE, -8 * SIZE, "chunk 0"),  # the first one
        (STATE_FILE, 0, STATE_FILE),  # the length of the header
        (STATE_FILE, 40, STATE_FILE),  # the header
        (MANIFEST_FILE, -90, MANIFEST_FILE),
    ],
)
def test_a_flipped_bit_is_found(store, name, at, message):
    path = store / "000012" / name
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"000012.*{message}"):
        read_saved(store, RoundId(12), run=RUN)


def test_a_state_that_was_cut_off_is_found(store):
    path = store / "000012" / STATE_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedError, match=STATE_FILE):
        read_saved(store, RoundId(12), run=RUN)


@pytest.mark.parametrize("name", [MANIFEST_FILE, STATE_FILE])
def test_a_file_that_is_gone_is_found(store, name):
    (store / "000012" / name).unlink()
    with pytest.raises(DamagedError, match=name):
        read_saved(store, RoundId(12), run=RUN)


def test_a_state_under_the_name_of_another_round_is_found(store):
    (store / "000012").rename(store / "000013")
    with pytest.raises(DamagedError, match="manifest of round 12"):
        read_saved(store, RoundId(13), run=RUN)


def test_the_state_of_another_run_is_no_damage(store):
    with pytest.raises(RunError, match="another run"):
        read_saved(store, RoundId(12), run=digest_of(b"another"))
