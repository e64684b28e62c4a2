"""One outer step of a fragment of a state, from the updates of a round.

update --decode, slice by slice--> mean pseudo-gradient --Nesterov--> next state
"""

from collections.abc import Iterable

import numpy as np

from atoll.config import OuterConfig
from atoll.exchange.codec import Codec
from atoll.ids import Buffer, RoundId
from atoll.model.layout import Layout
from atoll.outer.layout import slice_bounds
from atoll.outer.nesterov import momentum_at, outer_step_
from atoll.outer.state import PeerState


def slices_of(layout: Layout, round_id: RoundId) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) in the flat vector of each slice of the fragment of this round."""
    fragment = layout.fragment_of(round_id)
    bounds = slice_bounds(fragment.stop - fragment.start)
    return tuple((fragment.start + start, fragment.start + stop) for start, stop in bounds)


def encoded_slices(layout: Layout, codec: Codec) -> tuple[tuple[int, ...], ...]:
    """Return how many bytes each slice of each fragment has when it is encoded."""
    first_turns = (RoundId(index + 1) for index in range(len(layout.fragments)))
    return tuple(
        tuple(codec.encoded_bytes(stop - start) for start, stop in slices_of(layout, round_id))
        for round_id in first_turns
    )


def apply_updates_(
    state: PeerState,
    updates: Iterable[Buffer],
    *,
    codec: Codec,
    outer: OuterConfig,
    layout: Layout,
) -> None:
    """Make `state` that of the next round, whose updates these are, one for each slice in order.

    Raises:
        BadBlobError: an update has the wrong size. The slices before it are stepped already.
    """
    round_id = RoundId(state.round + 1)
    momentum = momentum_at(outer, layout.step_of(round_id))
    bounds = slices_of(layout, round_id)
    mean_N = np.empty(max(stop - start for start, stop in bounds))
    for (start, stop), update in zip(bounds, updates, strict=True):
        outer_step_(
            state.params_N[start:stop],
            state.momentum_N[start:stop],
            codec.decode(update, stop - start, mean_N[: stop - start]),
            lr=outer.lr,
            momentum=momentum,
        )
    state.round = round_id
