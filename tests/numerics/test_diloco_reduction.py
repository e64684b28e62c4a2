"""The mean of a round is a function of its roster alone: of no reducer, and of no order of arrival.

Shapes: N values of a fragment.
"""

import asyncio
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from atoll.exchange.blobs import BlobStore
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import encode_slice
from atoll.exchange.plan import assign, reassign, runs, shares
from atoll.exchange.reduce import Reducer, reduce_slice
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.outer.layout import Layout, slice_bounds

PEERS = [PeerId(f"{number:032x}") for number in range(7)]
ROUND = RoundId(3)


def vectors(count, *, num_values):
    return np.random.default_rng(num_values).standard_normal((count, num_values), np.float32)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=3),
    st.integers(1, 3),
    st.lists(st.integers(1, 1000), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sets(st.integers(0, 5)),
)
@example([65_536], 1, [1], 1, set())
@example([65_537, 1], 2, [3, 3, 3], 6, {0, 1, 2, 3, 4})
def test_every_value_is_reduced_exactly_once(sizes, num_fragments, tokens, num_reducers, lost):
    layout = Layout.of([(f"p{k}", (size,)) for k, size in enumerate(sizes)])
    codec = CODECS["fp64"]
    global_N, *locals_N = vectors(len(tokens) + 1, num_values=layout.num_values)
    roster = shares(
        dict(zip(PEERS, tokens, strict=False)),
        dict.fromkeys(PEERS[: len(tokens)], 1.0),
        clip_to_median=3.0,
    )
    reducers = PEERS[:num_reducers]
    survivors = [p for k, p in enumerate(reducers) if k not in lost] or [PEERS[6]]
    assembled_N = np.full(layout.num_values, np.nan)
    times_N = np.zeros(layout.num_values, int)
    for fragment in layout.fragments(num_fragments):
        bounds = slice_bounds(fragment.stop - fragment.start)
        assignment = reassign(
            assign(len(bounds), reducers),
            lost=frozenset(reducers) - set(survivors),
            reducers=survivors,
        )
        assert set(assignment) <= set(survivors)
        for _, first, last in runs(assignment):
            for start, stop in bounds[first:last]:
                part = slice(fragment.start + start, fragment.start + stop)
                encoded = [
                    encode_slice(codec, global_N=global_N[part], local_N=local_N[part])
                    for local_N in locals_N
                ]
                update = reduce_slice(
                    list(zip(encoded, roster.values(), strict=True)),
                    codec=codec,
                    update_codec=codec,
                    num_values=stop - start,
                )
                assembled_N[part] = codec.decode(update, stop - start)
                times_N[part] += 1
    assert (times_N == 1).all()
    direct_N = np.average(
        [global_N.astype(float) - local_N for local_N in locals_N], axis=0, weights=tokens
    )
    np.testing.assert_allclose(assembled_N, direct_N, rtol=1e-12, atol=1e-12)


# --- whoever reduces, and in whatever order the slices come --------------------------------------

BOUNDS = ((0, 300), (300, 1000))
CONTRIBUTORS = PEERS[:3]
ADDRESS = wire.Address(peer=PEERS[0], host="127.0.0.1", port=1)
ALL_SLICES = wire.Reduction(reducer=ADDRESS, start=0, stop=len(BOUNDS))


def encoded_slices(codec):
    """Return the encoded slices of three contributors, by contributor and index."""
    global_N, *locals_N = vectors(4, num_values=1000)
    return {
        (peer, index): encode_slice(
            codec, global_N=global_N[start:stop], local_N=local_N[start:stop]
        )
        for peer, local_N in zip(CONTRIBUTORS, locals_N, strict=True)
        for index, (start, stop) in enumerate(BOUNDS)
    }


def plan_of(codec):
    return wire.Plan(
        round=ROUND,
        version=1,
        fragment=0,
        first_step=0,
        codec=codec,
        update_codec=codec,
        reductions=(ALL_SLICES,),
        leases=(),
        sources=(),
    )


async def reduced(directory, codec, payloads, *, order, reduce_first):
    """Return the digests that a new reducer reports, and its updates, slice by slice."""
    told = []
    blobs = BlobStore(directory)
    reducer = Reducer(slices=BOUNDS, blobs=blobs, tell_host=told.append)
    reducer.follow(plan_of(codec), own=[ALL_SLICES])
    keys = [(CONTRIBUTORS[k], index) for k in order for index in range(len(BOUNDS))]
    share = shares(
        dict(zip(CONTRIBUTORS, (1, 2, 4), strict=True)),
        dict.fromkeys(CONTRIBUTORS, 1.0),
        clip_to_median=3.0,
    )

    async def take_all():
        for peer, index in keys:
            payload = payloads[peer, index]
            await reducer.take(peer, index, digest_of(payload), payload)

    async def reduce_all():
        for index in range(len(BOUNDS)):
            inputs = tuple(
                wire.ReduceInput(peer=p, share=s, digest=digest_of(payloads[p, index]))
                for p, s in share.items()
            )
            await reducer.reduce(
                wire.Reduce(round=ROUND, roster_version=1, slice=index, inputs=inputs)
            )

    stages = [take_all(), reduce_all()]
    if reduce_first:  # then it waits for the slices
        await asyncio.gather(*reversed(stages))
    else:
        for stage in stages:
            await stage
    digests = [message.digest for message in told if isinstance(message, wire.Reduced)]
    return digests, [blobs.get(digest) for digest in digests]


@pytest.mark.parametrize("codec", CODECS)
def test_another_reducer_and_another_order_of_arrival_give_the_same_bytes(tmp_path, codec):
    payloads = encoded_slices(CODECS[codec])
    results = [
        asyncio.run(
            reduced(
                tmp_path / f"{number}", codec, payloads, order=order, reduce_first=number % 2 == 1
            )
        )
        for number, order in enumerate(permutations(range(3)))
    ]
    assert len(results[0][0]) == len(BOUNDS)
    assert all(result == results[0] for result in results)
