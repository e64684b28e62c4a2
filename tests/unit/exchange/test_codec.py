"""What every codec must hold, whatever its bytes look like."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from atoll.errors import BadBlobError, BadUpdateError
from atoll.exchange.codec import CODECS
from atoll.exchange.values import LARGEST

GOLDEN = Path(__file__).parents[2] / "golden" / "codec"
TINY = 2.0**-126  # the smallest normal fp32

codecs = st.sampled_from(list(CODECS.values()))
keeping = st.sampled_from([codec for codec in CODECS.values() if codec.FEEDBACK is not None])
forgetting = [name for name, codec in CODECS.items() if codec.FEEDBACK is None]
vectors = arrays(np.float64, st.integers(1, 300), elements=st.floats(-LARGEST, LARGEST))


def golden_values():
    """Exact in double: blocks of zeros and of subnormals, signs, ties, both ends of the range."""
    values = [0.0] * 128 + [i * 2.0**-149 for i in range(128)]
    values += [(i * 7919 % 1001 - 500) * 2.0 ** (i % 37 - 18) for i in range(300)]
    return np.array(
        [*values, 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40] + [0.0] * 82 + [LARGEST, -LARGEST]
    )


def largest_around(x_N, block):
    """Return for each value the largest size in its block, but no less than TINY."""
    largest_K = np.maximum.reduceat(np.abs(x_N), np.arange(0, len(x_N), block))
    return np.maximum(np.repeat(largest_K, block)[: len(x_N)], TINY)


def error_bounds(name, x_N):
    """Return the largest error that the codec may make on each value."""
    if name == "int8":
        return np.maximum(largest_around(x_N, 128) / 127, TINY) / 2 * (1 + 1e-5)
    if name == "int4":  # a scale is rounded up by 2**-8 at most; the widest gap is 30/128 of it
        return largest_around(x_N, 32) * (1 + 2.0**-7) * 15 / 128
    if name in ("sparse", "sparse8"):
        return np.full(len(x_N), np.abs(x_N).max() * (1 + 1e-6) + TINY)
    half_ulp = {"fp64": 0.0, "fp32": 2.0**-24, "bf16": 2.0**-8}[name]
    return half_ulp * np.maximum(np.abs(x_N), TINY)


@pytest.mark.parametrize("name", CODECS)
def test_bytes_on_the_wire_do_not_change(name):
    # For a new codec, write what `encode` gives here to the file, and look at it.
    assert CODECS[name].encode(golden_values()) == (GOLDEN / f"{name}.bin").read_bytes()


@settings(deadline=None)
@given(st.sampled_from(list(CODECS)), vectors)
@example("int8", np.array([1.9e-43]))
@example("int8", np.full(129, LARGEST))
@example("bf16", np.array([1 + 2.0**-8 + 2.0**-40, 1.5e-45, LARGEST]))
def test_the_error_is_bounded(name, x_N):
    codec = CODECS[name]
    payload = codec.encode(x_N)
    assert len(payload) == codec.encoded_bytes(len(x_N))
    decoded_N = codec.decode(payload, len(x_N))
    assert decoded_N.dtype == np.float64
    assert (np.abs(decoded_N - x_N) <= error_bounds(name, x_N)).all()
    assert codec.check(payload, len(x_N)) == pytest.approx(np.sum(decoded_N**2), rel=1e-9)


@settings(deadline=None)
@given(codecs, vectors)
def test_negation_is_exact(codec, x_N):
    positive_N, negative_N = (codec.decode(codec.encode(v), len(x_N)) for v in (x_N, -x_N))
    assert np.array_equal(positive_N, -negative_N)


@settings(deadline=None)
@given(codecs, vectors)
@example(CODECS["int4"], np.full(33, 2.0**-130))
def test_what_was_decoded_encodes_without_another_error(codec, x_N):
    decoded_N = codec.decode(codec.encode(x_N), len(x_N))
    again_N = codec.decode(codec.encode(np.clip(decoded_N, -LARGEST, LARGEST)), len(x_N))
    assert np.allclose(again_N, decoded_N, rtol=1e-6, atol=TINY)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -3.4e38, 1e300])
def test_refuses_what_would_poison_the_mean(codec, bad):
    with pytest.raises(BadUpdateError, match="1 of 3 values") as caught:
        codec.encode(np.array([1.0, bad, 0.0]))
    assert "learning rate" in caught.value.hint


@settings(deadline=None)
@given(codecs, vectors, st.floats(0, 1))
def test_accumulate_adds_the_share_of_the_decoded_value(codec, x_N, share):
    payload = codec.encode(x_N)
    total_N = np.linspace(-1, 1, len(x_N))
    expected_N = total_N + share * codec.decode(payload, len(x_N))
    codec.accumulate_(total_N, payload, share=share)
    assert np.array_equal(total_N, expected_N)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_sum_is_not_fused_with_its_product(codec):
    # Full mantissas: a fused multiply-add rounds once where this rounds twice.
    rng = np.random.default_rng(0)
    total_N, x_N, share = rng.standard_normal(1000), rng.standard_normal(1000), 1 / 3
    payload = codec.encode(x_N)
    product_N = share * codec.decode(payload, 1000)
    expected_N = total_N + product_N
    codec.accumulate_(total_N, payload, share=share)
    assert np.array_equal(total_N, expected_N)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_reads_any_buffer_at_any_alignment(codec, kind):
    x_N = np.linspace(-3, 3, 200)
    payload = codec.encode(x_N)
    received = memoryview(b"\0" + payload)[1:] if kind is memoryview else kind(payload)
    expected_N = codec.decode(payload, 200)
    assert codec.check(received, 200) == codec.check(payload, 200)
    assert np.array_equal(codec.decode(received, 200), expected_N)
    total_N = np.zeros(200)
    codec.accumulate_(total_N, received, share=1.0)
    assert np.array_equal(total_N, expected_N)


@settings(deadline=None)
@given(codecs, vectors)
def test_room_that_was_used_before_changes_nothing(codec, x_N):
    payload, size = codec.encode(x_N), codec.encoded_bytes(len(x_N))
    x32_N = np.clip(x_N, -LARGEST, LARGEST).astype(np.float32)
    encoders = (
        lambda into: codec.encode(x_N, into),
        lambda into: codec.encode_difference(x32_N, x32_N[::-1].copy(), into=into),
    )
    for encode in encoders[: 1 if np.abs(x_N).max() > LARGEST / 2 else 2]:
        room = bytearray(b"\xa5" * size)
        assert encode(room) is room
        assert room == encode(None)
    decoded_N = codec.decode(payload, len(x_N))
    for dtype in (np.float32, np.float64):
        into_N = np.full(len(x_N), np.nan, dtype)
        assert codec.decode(payload, len(x_N), into_N) is into_N
        assert into_N.tobytes() == decoded_N.astype(dtype).tobytes()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_another_size_is_a_bad_blob(codec):
    payload = codec.encode(np.ones(200))
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(BadBlobError, match="bytes instead of"):
            codec.check(wrong, 200)
        with pytest.raises(BadBlobError):
            codec.decode(wrong, 200)
        with pytest.raises(BadBlobError):
            codec.accumulate_(np.zeros(200), wrong, share=1.0)


@settings(deadline=None)
@given(codecs, st.integers(1, 300), st.data())
def test_any_bytes_are_a_bad_blob_or_finite_values(codec, num_values, data):
    size = codec.encoded_bytes(num_values)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    with suppress(BadBlobError):
        assert np.isfinite(codec.check(payload, num_values))
        assert (np.abs(codec.decode(payload, num_values)) <= LARGEST * (1 + 1e-6)).all()


@settings(deadline=None)
@given(codecs, vectors, st.data())
def test_a_damaged_payload_is_a_bad_blob_or_finite_values(codec, x_N, data):
    payload = bytearray(codec.encode(x_N))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(BadBlobError):
        assert np.isfinite(codec.check(payload, len(x_N)))
        assert np.isfinite(codec.decode(payload, len(x_N))).all()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_an_empty_vector_has_an_empty_payload(codec):
    payload = codec.encode(np.zeros(0))
    assert payload == b""
    assert codec.check(payload, 0) == 0.0
    assert len(codec.decode(payload, 0)) == 0


# --- differences and residuals --------------------------------------------------------------------

singles = st.floats(-(2.0**60), 2.0**60, width=32)


@st.composite
def triples(draw, max_size=300):
    """Draw global, local and residual values of one length."""
    shape = draw(st.integers(1, max_size))
    return tuple(draw(arrays(np.float32, shape, elements=singles)) for _ in range(3))


@settings(deadline=None)
@given(codecs, triples())
@example(CODECS["bf16"], (np.array([1.0], "f4"), np.array([-(2.0**-8 + 2.0**-40)], "f4"), None))
def test_a_difference_has_the_bytes_of_its_exact_value_or_of_that_in_fp32(codec, triple):
    global_N, local_N, _ = triple
    in_double_N = np.subtract(global_N, local_N, dtype=np.float64)
    x_N = in_double_N if codec in IN_DOUBLE else (global_N - local_N).astype(np.float64)
    assert codec.encode_difference(global_N, local_N) == codec.encode(x_N)


IN_DOUBLE = [CODECS[name] for name in ("fp64", "fp32", "bf16")]


@settings(deadline=None)
@given(keeping, triples())
def test_the_residual_is_what_was_dropped(codec, triple):
    global_N, local_N, residual_N = triple
    x_N = (global_N - local_N) + np.float32(codec.FEEDBACK) * residual_N
    payload = codec.encode_difference(global_N, local_N, residual_N)
    assert payload == codec.encode(x_N.astype(np.float64))
    codec.leave_(residual_N, payload, global_N=global_N, local_N=local_N)
    decoded_N = codec.decode(payload, len(x_N))
    assert np.array_equal(decoded_N, decoded_N.astype(np.float32)), "exact in fp32"
    assert np.array_equal(residual_N, x_N - decoded_N.astype(np.float32))


@pytest.mark.parametrize("name", ["int4", "sparse"])
def test_over_many_rounds_everything_is_transmitted(name):
    codec, rng = CODECS[name], np.random.default_rng(0)
    zeros_N = np.zeros(5000, np.float32)
    residual_N, sent_N, offered_N = zeros_N.copy(), np.zeros(5000), np.zeros(5000)
    for _ in range(40):
        global_N = rng.standard_normal(5000).astype(np.float32)
        payload = codec.encode_difference(global_N, zeros_N, residual_N)
        sent_N += codec.decode(payload, 5000)
        offered_N += global_N.astype(np.float64) - (1 - codec.FEEDBACK) * residual_N
        codec.leave_(residual_N, payload, global_N=global_N, local_N=zeros_N)
    assert np.allclose(sent_N + residual_N, offered_N, rtol=0, atol=1e-4)


def test_int4_keeps_no_more_than_one_round_can_drop():
    codec, rng = CODECS["int4"], np.random.default_rng(0)
    residual_N = np.zeros(4096, np.float32)
    for _ in range(50):
        global_N = rng.uniform(-1, 1, 4096).astype(np.float32)
        payload = codec.encode_difference(global_N, np.zeros_like(global_N), residual_N)
        codec.leave_(residual_N, payload, global_N=global_N, local_N=np.zeros_like(global_N))
        assert np.abs(residual_N).max() < 0.15


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -3.4e38])
def test_refuses_a_difference_that_would_poison_the_mean(codec, bad):
    local_N = np.zeros(200, np.float32)
    local_N[[3, 150]] = bad
    with pytest.raises(BadUpdateError, match="2 of 200 values"):
        codec.encode_difference(np.ones(200, np.float32), local_N)


@pytest.mark.parametrize("name", ["int4", "sparse"])
def test_refuses_a_residual_that_would_poison_the_mean(name):
    ones_N = np.ones(200, np.float32)
    with pytest.raises(BadUpdateError, match="200 of 200 values"):
        CODECS[name].encode_difference(ones_N, ones_N, ones_N * np.float32(2.0**127))


@pytest.mark.parametrize("name", forgetting)
def test_a_codec_without_feedback_takes_no_residual(name):
    ones_N = np.ones(3, np.float32)
    with pytest.raises(AssertionError):
        CODECS[name].encode_difference(ones_N, ones_N, ones_N)
    with pytest.raises(AssertionError, match="no residual"):
        CODECS[name].leave_(ones_N, b"", global_N=ones_N, local_N=ones_N)
