"""What is going on in a run at this moment, read off the host's own state. Pure.

The events tell what has happened; this is how far the open rounds are, which no event says.
"""

from msgspec import Struct

from atoll.host.open_round import NOBODY, Phase, Round, num_arrived
from atoll.host.state import Run
from atoll.ids import PeerId, RoundId


class Contributing(Struct, kw_only=True):
    """How much of a contribution has arrived, of 1; `claimed`: it said what it brings."""

    peer: PeerId
    claimed: bool
    arrived: float


class Reducing(Struct, kw_only=True):
    """How many slices a member averages, and how many updates of these are formed."""

    peer: PeerId
    num_slices: int
    formed: int


class OpenRound(Struct, kw_only=True):
    round: RoundId
    fragment: int
    phase: str  # train, exchange (somebody's slices are on their way), or reduce (it is closed)
    open_s: float  # since it was opened
    usual_s: float  # how long the wait and the exchange of rounds take; 0: nobody knows yet
    num_slices: int
    num_holders: int  # members on whose disks all updates are
    contributors: tuple[Contributing, ...]  # those that have begun to deliver
    reducers: tuple[Reducing, ...]
    waits_for: tuple[PeerId, ...]  # who has not delivered all


class Connected(Struct, kw_only=True):
    """A member that is there now. `up` and `down` are in bytes per second; 0: unknown."""

    peer: PeerId
    is_ready: bool  # it holds a state, and the host knows who can reach it
    round: RoundId  # of the state that it reported last
    agrees: bool  # that is the agreed one
    rests: bool  # its owner has paused it: no round waits for it
    up: float
    down: float
    heard_s: float  # ago


class Live(Struct, kw_only=True):
    """`away`: cut off for now, and expected back for `sync.reconnect_s`."""

    built_in: PeerId
    built_in_is_in: bool
    is_paused: bool  # by the operator: no new round begins
    chosen_reducers: tuple[PeerId, ...]  # by the operator; empty: all that can
    members: tuple[Connected, ...]  # that train
    away: tuple[PeerId, ...]
    open_rounds: tuple[OpenRound, ...]


def live(run: Run, *, now: float) -> Live:
    """Return what is going on; `now` is on the clock of the host's event loop."""
    connected = run.membership.connected()
    return Live(
        built_in=run.built_in,
        built_in_is_in=run.membership.is_connected(run.built_in),
        is_paused=run.is_paused,
        chosen_reducers=tuple(sorted(run.chosen_reducers)),
        members=tuple(
            Connected(
                peer=m.peer,
                is_ready=m.probed and m.state is not None,
                round=m.round,
                agrees=m.state is not None and m.state == run.agreed.get(m.round),
                rests=m.rests,
                up=m.up or 0.0,
                down=m.down or 0.0,
                heard_s=max(0.0, now - run.membership.heard_at[m.peer]),
            )
            for m in connected
            if m.trains
        ),
        away=tuple(sorted(p for p, m in run.membership.members.items() if not m.connected)),
        open_rounds=tuple(_open_round(run, rnd, now=now) for rnd in run.open_rounds.values()),
    )


def _open_round(run: Run, rnd: Round, *, now: float) -> OpenRound:
    num_slices = rnd.num_slices
    contributors = tuple(
        Contributing(
            peer=peer,
            claimed=peer in rnd.claims,
            arrived=num_arrived(rnd, peer) / max(1, num_slices),
        )
        for peer in sorted(set(rnd.delivered) | set(rnd.claims))
    )
    slices: dict[PeerId, int] = {}
    formed: dict[PeerId, int] = {}
    for k, reducer in enumerate(rnd.assignment):
        slices[reducer] = slices.get(reducer, 0) + 1
        formed[reducer] = formed.get(reducer, 0) + (k in rnd.reduced)
    return OpenRound(
        round=rnd.id,
        fragment=run.fragment_of(rnd.id),
        phase="reduce" if rnd.phase is Phase.REDUCE else "exchange" if contributors else "train",
        open_s=max(0.0, now - rnd.opened_at),
        usual_s=run.usual_wait_s + (run.usual_exchange_s or 0.0) if run.usual_wait_s else 0.0,
        num_slices=num_slices,
        num_holders=len(rnd.held),
        contributors=contributors,
        reducers=tuple(
            Reducing(peer=peer, num_slices=slices[peer], formed=formed[peer])
            for peer in sorted(slices)
            if peer != NOBODY
        ),
        waits_for=tuple(sorted(rnd.waited - set(rnd.completed_at))),
    )
