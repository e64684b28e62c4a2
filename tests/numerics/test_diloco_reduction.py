"""The mean of a round is a function of its roster alone: of no reducer, and of no order of arrival.

Shapes: N values of a fragment.
"""

import asyncio
from itertools import accumulate, permutations

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from tests.unit.exchange.cast import reduce

from atoll.config import OuterConfig
from atoll.exchange.blobs import BlobStore
from atoll.exchange.buffers import Buffers
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import Vectors, encode_slice
from atoll.exchange.plan import assign, assign_by_shares, reassign, runs, shares
from atoll.exchange.reduce import Means, Reducers, reduce_slice
from atoll.exchange.sizes import slices_of
from atoll.exchange.step import apply_updates_
from atoll.ids import PeerId, RoundId, digest_of
from atoll.model.layout import Fragment, Layout
from atoll.net import wire
from atoll.outer.layout import slice_bounds
from atoll.outer.state import PeerState

PEERS = [PeerId(f"{number:032x}") for number in range(7)]
ROUND = RoundId(3)


def vectors(count, *, num_values):
    return np.random.default_rng(num_values).standard_normal((count, num_values), np.float32)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=3),
    st.lists(st.integers(1, 1000), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sets(st.integers(0, 5)),
)
@example([65_536], [1], 1, set())
@example([65_537, 1], [3, 3, 3], 6, {0, 1, 2, 3, 4})
def test_every_value_is_reduced_exactly_once(sizes, tokens, num_reducers, lost):
    """`sizes`: the number of values of each fragment."""
    num_values = sum(sizes)
    codec = CODECS["fp64"]
    global_N, *locals_N = vectors(len(tokens) + 1, num_values=num_values)
    roster = shares(
        dict(zip(PEERS, tokens, strict=False)),
        dict.fromkeys(PEERS[: len(tokens)], 1.0),
        clip_to_median=3.0,
    )
    reducers = PEERS[:num_reducers]
    survivors = [p for k, p in enumerate(reducers) if k not in lost] or [PEERS[6]]
    assembled_N = np.full(num_values, np.nan)
    times_N = np.zeros(num_values, int)
    for origin, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        bounds = slice_bounds(size)
        assignment = reassign(
            assign(len(bounds), reducers),
            lost=frozenset(reducers) - set(survivors),
            reducers=survivors,
        )
        assert set(assignment) <= set(survivors)
        for _, first, last in runs(assignment):
            for start, stop in bounds[first:last]:
                part = slice(origin + start, origin + stop)
                encoded = [
                    encode_slice(codec, Vectors(global_N[part], local_N[part]))[1]
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


def fragmented(sizes):
    """Return a layout with fragments of so many values."""
    starts = list(accumulate(sizes, initial=0))
    fragments = [Fragment(k, starts[k], starts[k + 1]) for k in range(len(sizes))]
    return Layout(entries=(), fragments=tuple(fragments))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(CODECS)),
    st.lists(st.integers(1, 50_000), min_size=1, max_size=4),
    st.integers(1, 8),
    st.lists(st.integers(1, 1000), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
)
@example("sparse", [1, 40_000, 16_385, 7], 2, [1, 2, 3], [0.1, 0.8, 0.1])
@example("fp64", [16_384], 1, [1], [1.0])
def test_a_round_reduces_each_value_of_its_fragment_once_and_touches_no_other(
    codec_name, sizes, round_id, tokens, work
):
    """`sizes`: values of each fragment; `work`: how much of it each reducer is to do."""
    codec, layout, round_id = CODECS[codec_name], fragmented(sizes), RoundId(round_id)
    fragment = layout.fragment_of(round_id)
    inside = slice(fragment.start, fragment.stop)
    global_N, momentum_N, *locals_N = vectors(len(tokens) + 2, num_values=sum(sizes))
    roster = shares(
        dict(zip(PEERS, tokens, strict=False)),
        dict.fromkeys(PEERS[: len(tokens)], 1.0),
        clip_to_median=3.0,
    )

    # As one slice, in one place.
    whole = reduce_slice(
        [
            (encode_slice(codec, Vectors(global_N[inside], local_N[inside]))[1], share)
            for local_N, share in zip(locals_N, roster.values(), strict=True)
        ],
        codec=codec,
        update_codec=codec,
        num_values=sizes[fragment.index],
    )

    bounds = slices_of(layout, round_id)
    assignment = assign_by_shares(len(bounds), dict(zip(PEERS, work, strict=False)))
    updates = {
        index: reduce_slice(
            [
                (encode_slice(codec, Vectors(global_N, local_N).part(*bounds[index]))[1], share)
                for local_N, share in zip(locals_N, roster.values(), strict=True)
            ],
            codec=codec,
            update_codec=codec,
            num_values=bounds[index][1] - bounds[index][0],
        )
        for _, first, last in runs(assignment)
        for index in range(first, last)
    }
    state = PeerState(RoundId(round_id - 1), global_N.copy(), momentum_N.copy())
    in_order = [updates[index] for index in range(len(bounds))]
    outer = OuterConfig(lr=1.0, momentum=0.0)
    apply_updates_(state, in_order, codec=codec, outer=outer, layout=layout)

    expected_N, expected_momentum_N = global_N.copy(), momentum_N.copy()
    mean_N = codec.decode(whole, sizes[fragment.index])
    expected_N[inside] = (global_N[inside].astype(float) - mean_N).astype(np.float32)
    expected_momentum_N[inside] = mean_N.astype(np.float32)
    assert state.round == round_id
    assert np.array_equal(state.params_N, expected_N)
    assert np.array_equal(state.momentum_N, expected_momentum_N)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([name for name, codec in CODECS.items() if codec.FEEDBACK is not None]),
    st.lists(st.integers(1, 50_000), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_what_a_round_drops_of_its_fragment_is_the_residual_of_that_alone(
    codec_name, sizes, round_id
):
    codec, layout, round_id = CODECS[codec_name], fragmented(sizes), RoundId(round_id)
    fragment = layout.fragment_of(round_id)
    inside = slice(fragment.start, fragment.stop)
    global_N, local_N, residual_N = vectors(3, num_values=sum(sizes))
    before_N, pending_N = residual_N.copy(), np.full(sum(sizes), np.nan, np.float32)
    bounds = slices_of(layout, round_id)
    made = Vectors(global_N, local_N, residual_N, pending_N)
    payloads = [encode_slice(codec, made.part(start, stop))[1] for start, stop in bounds]
    assert np.array_equal(residual_N, before_N)
    assert np.isnan(np.delete(pending_N, np.r_[inside])).all()
    decoded_N = np.concatenate(
        [codec.decode(p, stop - start) for p, (start, stop) in zip(payloads, bounds, strict=True)]
    )
    meant_N = (global_N.astype(float) - local_N + codec.FEEDBACK * before_N.astype(float))[inside]
    np.testing.assert_allclose(decoded_N + pending_N[inside], meant_N, rtol=1e-5, atol=1e-5)


# --- whoever reduces, and in whatever order the slices come --------------------------------------

BOUNDS = ((0, 300), (300, 1000))
CONTRIBUTORS = PEERS[:3]
ADDRESS = wire.Address(peer=PEERS[0], host="127.0.0.1", port=1)
ALL_SLICES = wire.Reduction(reducer=ADDRESS, start=0, stop=len(BOUNDS))


def encoded_slices(codec):
    """Return the encoded slices of three contributors, by contributor and index."""
    global_N, *locals_N = vectors(4, num_values=1000)
    return {
        (peer, index): encode_slice(codec, Vectors(global_N, local_N).part(start, stop))[1]
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
    reducers = Reducers(Means(blobs, told.append, Buffers()))
    sizes = [stop - start for start, stop in BOUNDS]
    plan = plan_of(codec)
    reducers.follow(plan, own=[ALL_SLICES], sizes=sizes)
    reducer = reducers.of(plan.round)
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
            job = wire.Reduce(round=ROUND, roster_version=1, slice=index, inputs=inputs)
            await reduce(reducer, job)

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
