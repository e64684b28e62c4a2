"""The bytes of one committed round: what changes here would set old members apart from new ones.

Everything is a function of whole numbers, so any machine must get the same digests.

Shapes: N values of the model.
"""

from math import sqrt
from pathlib import Path

import msgspec
import numpy as np
import pytest

from atoll.config import ModelConfig, OuterConfig
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors, encode_slice
from atoll.exchange.plan import shares
from atoll.exchange.reduce import reduce_slice
from atoll.exchange.step import apply_updates_
from atoll.ids import Digest, PeerId, RoundId, digest_of
from atoll.model.initial import fill_initial_
from atoll.model.layout import lay_out
from atoll.model.shapes import num_parameters
from atoll.outer.layout import slice_bounds
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState

GOLDEN = Path(__file__).parent / "round"
RUN = Digest("d1" * 32)
MODEL = ModelConfig(  # 92,000 values: six slices, and a last block that is not whole
    vocab_size=300, num_layers=2, width=64, num_heads=4, num_kv_heads=2, ffn_width=75
)
OUTER = OuterConfig(lr=0.7, momentum=0.9, momentum_warmup_rounds=3)
TOKENS = {PeerId(letter * 32): tokens for letter, tokens in (("a", 1280), ("b", 640), ("c", 960))}
LONGEST = PeerId("c" * 32)  # its contribution is so long that the clip shortens it


def state_of_round_1():
    """Return a state with a momentum, so that the outer step has one to apply."""
    params_N = np.empty(num_parameters(MODEL), np.float32)
    fill_initial_(params_N, lay_out(MODEL), seed=7)
    return PeerState(RoundId(1), params_N, deltas(params_N, seed=3) / np.float32(4))


def deltas(params_N, *, seed):
    """Return steps of many sizes: whole numbers times powers of two, so exact in fp32."""
    index_N = np.arange(len(params_N), dtype=np.uint64)
    mixed_N = (index_N + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    level_N = (mixed_N % np.uint64(4001)).astype(np.int32) - 2000
    exponent_N = (mixed_N >> np.uint64(16)).astype(np.int32) % 9 - 28
    return np.ldexp(level_N.astype(np.float32), exponent_N)


def contributions(state, codec):
    """Return the encoded slices of each contributor."""
    made = {}
    for seed, peer in enumerate(TOKENS):
        stretch = np.float32(64 if peer == LONGEST else 1)
        local_N = state.params_N - stretch * deltas(state.params_N, seed=seed)
        vectors = Vectors(state.params_N, local_N)
        made[peer] = [
            encode_slice(codec, vectors.part(start, stop))[1]
            for start, stop in slice_bounds(state.num_values)
        ]
    return made


def committed_round(name):
    """Return what names every blob of a round, as it is kept in its golden file."""
    codec, state = CODECS[name], state_of_round_1()
    before = manifest_of(state, run=RUN).digest
    made = contributions(state, codec)
    sizes = [stop - start for start, stop in slice_bounds(state.num_values)]
    norms = {
        peer: sqrt(sum(codec.check(s, size) for s, size in zip(slices, sizes, strict=True)))
        for peer, slices in made.items()
    }
    roster = shares(TOKENS, norms, clip_to_median=3.0)
    updates = [
        reduce_slice(
            [(made[peer][index], share) for peer, share in roster.items()],
            codec=codec,
            update_codec=codec,
            num_values=size,
        )
        for index, size in enumerate(sizes)
    ]
    apply_updates_(state, updates, codec=codec, outer=OUTER, layout=lay_out(MODEL))
    return {
        "state_before": before,
        "contributions": {peer: [digest_of(s) for s in slices] for peer, slices in made.items()},
        "shares": {peer: share.hex() for peer, share in roster.items()},
        "updates": [digest_of(update) for update in updates],
        "state_after": manifest_of(state, run=RUN).digest,
    }


def rewrite() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in CODECS:
        encoded = msgspec.json.format(msgspec.json.encode(committed_round(name)), indent=2)
        (GOLDEN / f"{name}.json").write_bytes(encoded + b"\n")


@pytest.mark.parametrize("codec", CODECS)
def test_a_round_has_the_bytes_that_it_always_had(codec):
    golden = msgspec.json.decode((GOLDEN / f"{codec}.json").read_bytes())
    assert committed_round(codec) == golden


def test_the_round_is_one_that_says_something():
    found = committed_round("int8")
    assert float.fromhex(found["shares"][LONGEST]) < 0.1, "the clip has nothing to do"
    assert found["state_before"] != found["state_after"]
    assert len(found["updates"]) == 6
