"""One outer step of a fragment of a state, from the updates of a round.

update --decode, slice by slice--> mean pseudo-gradient --Nesterov--> next state
"""

from collections.abc import Iterable

import numpy as np

from atoll.config import OuterConfig
from atoll.exchange.codec import Codec
from atoll.exchange.sizes import slices_of
from atoll.ids import Buffer, RoundId
from atoll.model.layout import Layout
from atoll.outer.nesterov import momentum_at, outer_step_
from atoll.outer.state import PeerState


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
