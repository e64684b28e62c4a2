"""Work that comes too late for its round is in the next one, once.

    round 1: Anna and Ben train; Ben is late, only Anna is in the roster
    round 2: Ben's weights are the new global ones plus what he did; both are in the roster

Shapes: N values of the model.
"""

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace as changed
from tests.numerics.diloco import (
    ANNA,
    BEN,
    CONFIG,
    commit_,
    contribution,
    decoded,
    flat,
    fresh_loop,
    initial_state,
    train,
    train_round,
)

from atoll.data.batches import Batches
from atoll.data.leases import LeaseBook, Span
from atoll.exchange.codec import CODECS
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.outer.state import PeerState
from atoll.peer.work import LocalWork
from atoll.train.merge import carry_
from atoll.train.work import num_samples

GRID = 2.0**-12  # of values so few and so small that fp32 holds every sum and half of them
# The clip would shorten the longer of two contributions: another test's concern.
UNCLIPPED = changed(CONFIG, sync=changed(CONFIG.sync, clip_to_median=1e9))
vectors = arrays(np.float32, 50, elements=st.integers(-(2**9), 2**9).map(lambda k: k * GRID))


def take_over_(local_N, *, global_N, snapshot_N):
    global_P, snapshot_P = torch.from_numpy(global_N), torch.from_numpy(snapshot_N)
    carry_(torch.from_numpy(local_N), global_P=global_P, snapshot_P=snapshot_P)


@settings(deadline=None)
@given(vectors, vectors, vectors, vectors)
def test_over_both_rounds_a_late_peer_contributes_just_what_it_did(start_N, anna_N, ben_N, more_N):
    """`anna_N` and `ben_N` are the local weights of round 1, `more_N` is Ben's work in round 2."""
    state = PeerState.initial(start_N.copy())
    commit_(state, {ANNA: contribution(state, anna_N, num_samples=1, config=UNCLIPPED)}, UNCLIPPED)
    np.testing.assert_array_equal(state.params_N, anna_N)
    local_N = ben_N.copy()
    take_over_(local_N, global_N=state.params_N, snapshot_N=start_N)
    late = contribution(state, local_N + more_N, num_samples=2, config=UNCLIPPED)
    done_N = start_N - ben_N - more_N
    np.testing.assert_array_equal(CODECS["fp64"].decode(late.slices[0], len(done_N)), done_N)
    idle = contribution(state, state.params_N, num_samples=2, config=UNCLIPPED)
    commit_(state, {ANNA: idle, BEN: late}, UNCLIPPED)
    np.testing.assert_array_equal(state.params_N, anna_N - done_N / 2)


def test_a_late_peer_trains_on_no_sample_twice_and_loses_none(dataset):
    batches = Batches(dataset, seed=CONFIG.seed)
    state = initial_state(CONFIG)
    anna, ben = fresh_loop(CONFIG, batches), fresh_loop(CONFIG, batches)
    book, ben_work, start_N = LeaseBook(), LocalWork(), state.params_N.copy()

    def lease(peer):
        return book.grant(peer, num_samples=CONFIG.samples_per_round)

    def work_of_ben(*, first_step):
        """Train on what is left of Ben's leases."""
        assert ben_work.hold(book.held_by(BEN)), "what he did before is still his"
        spans = ben_work.begin(ben_work.num_samples)
        train(ben, spans, first_step=first_step)
        ben_work.advance(num_samples(spans))
        return spans

    # Round 1: Ben trains, and is late.
    for_anna = lease(ANNA)
    for_ben = lease(BEN)
    load_flat_(ben.model, state.params_N, layout_of(ben.config))
    first_spans = work_of_ben(first_step=0)
    ben_N = flat(ben)
    made, _ = train_round(anna, state, [(one.start, one.stop) for one in for_anna])
    commit_(state, {ANNA: made}, CONFIG)
    book.commit({ANNA: [one.id for one in for_anna]})
    carried_N = ben_N.copy()
    take_over_(carried_N, global_N=state.params_N, snapshot_N=start_N)
    load_flat_(ben.model, carried_N, layout_of(ben.config))

    # Round 2: his leases are still his, with new ones; only those are left to train on.
    for_anna = lease(ANNA)
    more_for_ben = lease(BEN)
    second_spans = work_of_ben(first_step=CONFIG.sync.inner_steps)
    assert first_spans == tuple((one.start, one.stop) for one in for_ben)
    assert second_spans == tuple((one.start, one.stop) for one in more_for_ben)
    assert ben_work.is_whole
    late = contribution(state, flat(ben), num_samples=2 * CONFIG.samples_per_round, config=CONFIG)
    # What he moved by in both rounds: up to the rounding of the carried weights, half an ulp.
    moved_N = (start_N.astype(float) - ben_N) + (carried_N.astype(float) - flat(ben))
    half_ulp_N = np.spacing(np.abs(carried_N)) / 2
    error_N = np.abs(decoded(late, CONFIG) - moved_N)
    assert (error_N <= half_ulp_N).all()
    assert np.linalg.norm(moved_N) > 1e4 * np.linalg.norm(error_N)

    # The commit of round 2 takes both of his leases: `commit` refuses one that is not held.
    made, _ = train_round(anna, state, [(one.start, one.stop) for one in for_anna])
    commit_(state, {ANNA: made, BEN: late}, CONFIG)
    book.commit({ANNA: [one.id for one in for_anna], BEN: ben_work.touched()})
    assert book.committed == (Span(0, 4 * CONFIG.samples_per_round),)
    assert (book.held, book.free) == ({}, ())
