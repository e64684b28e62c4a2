from contextlib import suppress
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import BadBlobError
from atoll.exchange.statesync import MAX_MANIFEST_BYTES
from atoll.ids import RoundId, digest_of
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters
from atoll.outer.manifest import (
    CHUNK_BYTES,
    StateManifest,
    bytes_of,
    manifest_of,
    parse_manifest,
)
from atoll.outer.state import PeerState

RUN = digest_of(b"run")


def small_state(num_values=10):
    params_N = np.arange(num_values, dtype=np.float32)
    return PeerState(RoundId(3), params_N, np.sqrt(params_N))


def test_chunks_are_cut_from_momentum_then_params():
    num_values = CHUNK_BYTES // 4 // 2 + 1000  # the first chunk spans the border
    state = small_state(num_values)
    manifest = manifest_of(state, run=RUN)
    whole = state.momentum_N.tobytes() + state.params_N.tobytes()
    assert manifest.chunks == (digest_of(whole[:CHUNK_BYTES]), digest_of(whole[CHUNK_BYTES:]))
    assert [manifest.bounds(index) for index in (0, 1)] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, len(whole)),
    ]


@settings(deadline=None)
@given(st.integers(0, 90), st.integers(0, 90))
def test_bytes_of_a_state_are_those_of_both_vectors(start, stop):
    state = small_state()
    whole = state.momentum_N.tobytes() + state.params_N.tobytes()
    assert b"".join(bytes_of(state, start, stop)) == whole[start:stop]


def test_the_name_of_a_state_does_not_change():
    assert manifest_of(small_state(), run=RUN).encoded() == (
        b'{"chunk_bytes":4194304,"chunks":["CHUNK"],"num_values":10,"round":3,"run":"RUN"}'
    ).replace(b"RUN", RUN.encode()).replace(
        b"CHUNK", digest_of(*bytes_of(small_state(), 0, 80)).encode()
    )


@pytest.mark.parametrize("name", ["params_N", "momentum_N"])
def test_each_bit_of_a_state_counts(name):
    state = small_state()
    before = manifest_of(state, run=RUN).digest
    getattr(state, name).view(np.uint8)[17] ^= 1
    assert manifest_of(state, run=RUN).digest != before


def test_the_manifest_of_ten_billion_parameters_takes_no_state():
    """Of INTELLECT-1: written and read back; its chunks cover all bytes, each once."""
    num_values = num_parameters(PRESETS["intellect-1"])
    num_chunks = -(-8 * num_values // CHUNK_BYTES)
    chunks = tuple(digest_of(b"%d" % index) for index in range(num_chunks))
    manifest = StateManifest(
        run=RUN,
        round=RoundId(904),
        num_values=num_values,
        chunk_bytes=CHUNK_BYTES,
        chunks=chunks,
    )
    encoded = manifest.encoded()
    assert parse_manifest(encoded) == manifest
    assert len(encoded) < MAX_MANIFEST_BYTES / 32, "1.3 MB for a state of 82 GB"
    bounds = [manifest.bounds(index) for index in range(num_chunks)]
    assert bounds[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))
    assert bounds[-1][1] == manifest.state_bytes == 8 * num_values
    with pytest.raises(BadBlobError):
        parse_manifest(msgspec.structs.replace(manifest, chunks=chunks[:-1]).encoded())


def test_a_manifest_comes_back():
    manifest = manifest_of(small_state(), run=RUN)
    assert parse_manifest(manifest.encoded()) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_bytes": 1024},
        {"num_values": 2**47},
        {"num_values": 0},
        {"num_values": "10"},
        {"round": -1},
        {"chunks": []},
        {"chunks": ["../../etc/passwd"]},
        {"run": "0"},
        {"more": 1},
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(change):
    fields = msgspec.json.decode(manifest_of(small_state(), run=RUN).encoded())
    with pytest.raises(BadBlobError, match="manifest"):
        parse_manifest(msgspec.json.encode(fields | change, order="sorted"))


def test_another_form_of_the_same_manifest_is_refused():
    with pytest.raises(BadBlobError):
        parse_manifest(manifest_of(small_state(), run=RUN).encoded() + b" ")


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_garbage_is_a_bad_blob_and_nothing_else(raw):
    with pytest.raises(BadBlobError):
        parse_manifest(raw)


def test_deep_nesting_is_a_bad_blob():
    with pytest.raises(BadBlobError):
        parse_manifest(b"[" * 100_000)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_manifest_is_refused_or_has_another_name(data):
    manifest = manifest_of(small_state(), run=RUN)
    raw = bytearray(manifest.encoded())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(BadBlobError):
        assert parse_manifest(bytes(raw)).digest != manifest.digest
