import resource
import shutil
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.numpy import load_file

from atoll.errors import BadBlobError, DamagedError, RunError
from atoll.ids import RoundId, digest_of
from atoll.outer.checkpoint import StateStore
from atoll.outer.manifest import CHUNK_BYTES, StateManifest, manifest_of
from atoll.outer.state import PeerState

RUN = digest_of(b"run")
TWO_CHUNKS = CHUNK_BYTES // 8 + 1000


def state_of(round, num_values=10):
    rng = np.random.default_rng(round)
    params_N, momentum_N = rng.standard_normal((2, num_values)).astype(np.float32)
    return PeerState(RoundId(round), params_N, momentum_N)


def blank(state):
    return PeerState.initial(np.zeros_like(state.params_N))


def save(store, state, now=0.0):
    manifest = manifest_of(state, run=RUN)
    store.save(state, manifest, now=now)
    return manifest


def assert_equal(state, other):
    assert state.round == other.round
    assert state.params_N.tobytes() == other.params_N.tobytes()
    assert state.momentum_N.tobytes() == other.momentum_N.tobytes()


@contextmanager
def disk_full_after(num_bytes):
    """Let every file that grows beyond `num_bytes` fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("num_values", [1, 10, TWO_CHUNKS])
def test_a_state_comes_back_bit_for_bit(tmp_path, num_values):
    state = state_of(12, num_values)
    save(StateStore(tmp_path, keep=2), state)
    store = StateStore(tmp_path, keep=2)
    assert store.rounds() == (12,)
    loaded = blank(state)
    store.load_(loaded, round=RoundId(12), run=RUN)
    assert_equal(loaded, state)


def test_the_file_is_a_safetensors_file(tmp_path):
    state = state_of(12)
    save(StateStore(tmp_path, keep=2), state)
    tensors = load_file(tmp_path / "000012" / "state.safetensors")
    assert sorted(tensors) == ["momentum", "params"]
    assert np.array_equal(tensors["momentum"], state.momentum_N)
    assert np.array_equal(tensors["params"], state.params_N)


def test_the_newest_are_kept(tmp_path):
    store = StateStore(tmp_path, keep=2)
    manifests = [save(store, state_of(round)) for round in (8, 9, 10, 100)]
    assert store.rounds() == (10, 100)
    assert store.locate(manifests[0].digest, now=0.0) is None
    assert store.locate(manifests[2].digest, now=0.0) is not None


def test_a_state_that_is_being_fetched_is_kept_a_while(tmp_path):
    store = StateStore(tmp_path, keep=1)
    fetched = save(store, state_of(1))
    assert store.locate(fetched.chunks[0], now=100.0)
    save(store, state_of(2), now=160.0)
    assert store.rounds() == (1, 2)
    save(store, state_of(3), now=161.0)
    assert store.rounds() == (3,)


def test_located_bytes_have_the_digest_they_were_asked_by(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    manifest = save(StateStore(tmp_path, keep=2), state)
    store = StateStore(tmp_path, keep=2)  # the same after a restart
    for digest in (manifest.digest, *manifest.chunks):
        path, offset, num_bytes = store.locate(digest, now=0.0)
        content = path.read_bytes()[offset : offset + num_bytes]
        assert digest_of(content) == digest
    assert store.locate(digest_of(b"else"), now=0.0) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_is_damage(tmp_path, data):
    state = state_of(12)
    save(StateStore(tmp_path, keep=2), state)
    name = data.draw(st.sampled_from(["state.safetensors", "manifest.json"]))
    path = tmp_path / "000012" / name
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[data.draw(st.integers(0, len(intact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    store = StateStore(tmp_path, keep=2)  # opens all the same
    with pytest.raises(DamagedError, match="000012") as caught:
        store.load_(blank(state), round=RoundId(12), run=RUN)
    assert f"delete the folder {tmp_path / '000012'}" in caught.value.hint
    path.write_bytes(intact)


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_missing_a_cut_and_a_longer_file_are_damage(tmp_path, name):
    state = state_of(12)
    store = StateStore(tmp_path, keep=2)
    save(store, state)
    path = tmp_path / "000012" / name
    intact = path.read_bytes()
    for content in (intact[:-1], intact + b"\0", b"", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DamagedError, match=name):
            store.load_(blank(state), round=RoundId(12), run=RUN)
        path.write_bytes(intact)


def test_a_state_under_another_round_is_damage(tmp_path):
    state = state_of(12)
    save(StateStore(tmp_path, keep=2), state)
    (tmp_path / "000012").rename(tmp_path / "000013")
    with pytest.raises(DamagedError):
        StateStore(tmp_path, keep=2).load_(blank(state), round=RoundId(13), run=RUN)


def test_a_state_of_another_run_is_refused(tmp_path):
    state = state_of(12)
    store = StateStore(tmp_path, keep=2)
    save(store, state)
    with pytest.raises(RunError, match="another run"):
        store.load_(blank(state), round=RoundId(12), run=digest_of(b"other"))


def test_another_state_of_a_round_replaces_the_first(tmp_path):
    store = StateStore(tmp_path, keep=2)
    first = save(store, state_of(12))
    agreed = state_of(99)
    agreed.round = RoundId(12)
    save(store, agreed)
    save(store, agreed)
    loaded = blank(agreed)
    store.load_(loaded, round=RoundId(12), run=RUN)
    assert_equal(loaded, agreed)
    assert store.locate(first.digest, now=0.0) is None
    assert [path.name for path in tmp_path.iterdir()] == ["000012"]


def test_what_a_crash_left_is_removed(tmp_path):
    save(StateStore(tmp_path, keep=2), state_of(12))
    (tmp_path / ".tmp-1").mkdir()
    (tmp_path / ".tmp-1" / "state.safetensors").write_bytes(b"half")
    StateStore(tmp_path, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["000012"]


def test_a_full_disk_leaves_the_states_that_are_there(tmp_path):
    store = StateStore(tmp_path, keep=1)
    first = state_of(1, 1000)
    save(store, first)
    with disk_full_after(5000), pytest.raises(RunError, match=r"cannot write .*") as caught:
        save(store, state_of(2, 1000))
    assert "free some space" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    loaded = blank(first)
    store.load_(loaded, round=RoundId(1), run=RUN)
    assert_equal(loaded, first)


# --- receiving -----------------------------------------------------------------------------------


def chunk(state, manifest, index):
    start, stop = manifest.bounds(index)
    return (state.momentum_N.tobytes() + state.params_N.tobytes())[start:stop]


def begin(store, state, manifest):
    return store.begin_receive(
        manifest.encoded(), expect=manifest.digest, run=RUN, num_values=state.num_values
    )


def test_a_momentum_that_nobody_moved_is_not_fetched(tmp_path):
    state = PeerState.initial(state_of(3, 2 * TWO_CHUNKS).params_N)
    manifest = manifest_of(state, run=RUN)
    store = StateStore(tmp_path, keep=2)
    assert len(manifest.chunks) == 3
    assert received(store, state, manifest) == [1, 2]


def test_a_state_is_received_in_any_order_and_kept(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    manifest = manifest_of(state, run=RUN)
    store = StateStore(tmp_path, keep=2)
    receiver = begin(store, state, manifest)
    assert receiver.missing() == [0, 1]
    receiver.put(1, chunk(state, manifest, 1))
    assert receiver.missing() == [0]
    with pytest.raises(BadBlobError, match="chunk 0"):
        receiver.put(0, chunk(state, manifest, 1))
    assert receiver.missing() == [0]
    receiver.put(0, memoryview(chunk(state, manifest, 0)))
    received = blank(state)
    receiver.finish_(received)
    assert_equal(received, state)
    # It is as if this peer had saved it: the same bytes, and it can serve the next joiner.
    assert store.rounds() == (12,)
    assert store.locate(manifest.chunks[0], now=0.0)
    save(StateStore(tmp_path / "saved", keep=2), state)
    for name in ("state.safetensors", "manifest.json"):
        saved = (tmp_path / "saved" / "000012" / name).read_bytes()
        assert (tmp_path / "000012" / name).read_bytes() == saved


def incoming(tmp_path):
    return tmp_path / "incoming" / "state.safetensors"


def flip_a_bit(path, *, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def received(store, state, manifest):
    """Return the chunks that were still missing, after they were put."""
    receiver = begin(store, state, manifest)
    missing = receiver.missing()
    for index in missing:
        receiver.put(index, chunk(state, manifest, index))
    loaded = blank(state)
    receiver.finish_(loaded)
    assert_equal(loaded, state)
    return missing


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_what_arrived_before_a_restart_is_not_asked_for_again(tmp_path_factory, data):
    """Any chunks arrive, any are damaged on the disk, in any number of lives of the joiner."""
    directory = tmp_path_factory.mktemp("store")
    state = state_of(12, 4 * CHUNK_BYTES // 8 - 5)
    manifest = manifest_of(state, run=RUN)
    there = set()
    for _ in range(data.draw(st.integers(0, 3), label="lives")):
        with closing(begin(StateStore(directory, keep=2), state, manifest)) as receiver:
            assert set(receiver.missing()) == set(range(4)) - there
            arriving = data.draw(st.lists(st.sampled_from(range(4)), unique=True), label="arrive")
            for index in arriving:
                receiver.put(index, chunk(state, manifest, index))
        there |= set(arriving)
        if there and (damaged := data.draw(st.sampled_from([*sorted(there), None]))) is not None:
            flip_a_bit(incoming(directory), at=damaged * CHUNK_BYTES + 2000)
            there.remove(damaged)
    store = StateStore(directory, keep=2)
    assert received(store, state, manifest) == sorted(set(range(4)) - there)
    assert [path.name for path in directory.iterdir()] == ["000012"]


def test_of_a_newer_state_only_the_chunks_that_differ_are_missing(tmp_path):
    """As with fragments: a round changes the momentum and parameters of one of them."""
    state = state_of(12, 2 * CHUNK_BYTES // 4)  # two chunks of momentum, two of parameters
    receiver = begin(StateStore(tmp_path, keep=2), state, manifest_of(state, run=RUN))
    for index in (0, 1, 2):
        receiver.put(index, chunk(state, receiver.manifest, index))
    receiver.close()
    state.round = RoundId(13)
    state.momentum_N[0] += 1
    state.params_N[0] += 1
    store = StateStore(tmp_path, keep=2)
    assert received(store, state, manifest_of(state, run=RUN)) == [0, 2, 3]
    assert store.rounds() == (13,)


def test_the_state_that_arrives_is_known_after_a_restart_until_it_is_there(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    manifest = manifest_of(state, run=RUN)
    assert StateStore(tmp_path, keep=2).arriving() is None
    receiver = begin(StateStore(tmp_path, keep=2), state, manifest)
    receiver.put(0, chunk(state, manifest, 0))
    receiver.close()
    store = StateStore(tmp_path, keep=2)
    arriving = store.arriving()
    assert (arriving.round, arriving.digest) == (12, manifest.digest)
    assert CHUNK_BYTES <= arriving.num_bytes < CHUNK_BYTES + 20_000, "and the header"
    assert received(store, state, manifest) == [1]
    assert store.arriving() is None
    assert StateStore(tmp_path, keep=2).arriving() is None


def test_of_a_state_that_is_given_up_nothing_is_told(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    store = StateStore(tmp_path, keep=2)
    receiver = begin(store, state, manifest_of(state, run=RUN))
    assert store.arriving().num_bytes == 8 * TWO_CHUNKS, "the rest is on its way"
    receiver.close()
    assert store.arriving().num_bytes < 20_000, "the header alone"
    store.give_up()
    assert store.arriving() is None


def test_what_is_of_no_use_for_a_newer_state_takes_no_room_any_more(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    store = StateStore(tmp_path, keep=2)
    receiver = begin(store, state, manifest_of(state, run=RUN))
    receiver.put(0, chunk(state, receiver.manifest, 0))
    receiver.close()
    newer = state_of(14, TWO_CHUNKS)
    receiver = begin(store, newer, manifest_of(newer, run=RUN))
    assert receiver.missing() == [0, 1]
    receiver.close()
    assert store.arriving().round == 14
    assert store.arriving().num_bytes < 20_000, "the header alone"


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_note_of_what_arrives_is_as_none(tmp_path, damage):
    state = state_of(12, TWO_CHUNKS)
    manifest = manifest_of(state, run=RUN)
    receiver = begin(StateStore(tmp_path, keep=2), state, manifest)
    receiver.put(0, chunk(state, manifest, 0))
    receiver.close()
    note = tmp_path / "incoming" / "manifest.json"
    note.write_bytes(note.read_bytes()[:-5] if damage is None else damage)
    store = StateStore(tmp_path, keep=2)
    assert store.arriving() is None
    assert received(store, state, manifest) == [1], "what has arrived is told by its digest"


def test_who_has_caught_up_without_it_drops_what_was_arriving(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    manifest = manifest_of(state, run=RUN)
    receiver = begin(StateStore(tmp_path, keep=2), state, manifest)
    receiver.put(0, chunk(state, manifest, 0))
    receiver.close()
    assert incoming(tmp_path).exists()
    store = StateStore(tmp_path, keep=2)
    save(store, state_of(14))
    assert store.arriving() is None
    assert [path.name for path in tmp_path.iterdir()] == ["000014"]


def test_a_state_that_the_disk_has_no_room_for_is_not_begun(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    num_values = free // 8 + 10 * CHUNK_BYTES
    chunks = (digest_of(b"?"),) * -(-8 * num_values // CHUNK_BYTES)
    manifest = StateManifest(
        run=RUN,
        round=RoundId(12),
        num_values=num_values,
        chunk_bytes=CHUNK_BYTES,
        chunks=chunks,
    )
    with pytest.raises(RunError, match="the rest of the state takes") as caught:
        StateStore(tmp_path, keep=2).begin_receive(
            manifest.encoded(), expect=manifest.digest, run=RUN, num_values=num_values
        )
    assert "what has arrived is kept" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"expect": digest_of(b"other")},
        {"run": digest_of(b"other")},
        {"num_values": 11},
        {"manifest_bytes": b"{}", "expect": digest_of(b"{}")},
    ],
)
def test_a_manifest_that_was_not_asked_for_is_refused(tmp_path, change):
    state = state_of(12)
    manifest = manifest_of(state, run=RUN)
    asked = {
        "manifest_bytes": manifest.encoded(),
        "expect": manifest.digest,
        "run": RUN,
        "num_values": 10,
    }
    with pytest.raises(BadBlobError):
        StateStore(tmp_path, keep=2).begin_receive(**(asked | change))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_receiving_loses_nothing(tmp_path):
    state = state_of(12, TWO_CHUNKS)
    manifest = manifest_of(state, run=RUN)
    receiver = begin(StateStore(tmp_path, keep=2), state, manifest)
    receiver.put(0, chunk(state, manifest, 0))
    with disk_full_after(CHUNK_BYTES), pytest.raises(RunError, match="cannot write"):
        receiver.put(1, chunk(state, manifest, 1))
    assert receiver.missing() == [1]
    receiver.close()
    assert received(StateStore(tmp_path, keep=2), state, manifest) == [1]
