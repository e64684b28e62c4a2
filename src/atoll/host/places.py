"""Who reduces what in a round of this run: what the host knows, put to `exchange/regions.py`."""

from collections.abc import Collection, Sequence

from atoll.exchange import regions
from atoll.exchange.plan import Link
from atoll.exchange.positions import located
from atoll.exchange.regions import Division, Volumes
from atoll.exchange.tree import Tree
from atoll.host.open_round import NOBODY, Round
from atoll.host.state import Run, SitsOut, is_ready, present
from atoll.ids import PeerId, RoundId

FORGOTTEN_ABOVE = 3  # times as many as there are: who is away may come back, but not for ever
MOST_ROUNDS_OUT = 64  # without work as a reducer, before it is tried again


def reducers(run: Run, round_id: RoundId, *, without: Collection[PeerId] = ()) -> list[PeerId]:
    """Return who reduces: those that the operator has chosen, or the peers that others can reach.

    With none of these it is the built-in member. Who sits out is taken only if nobody else is left.
    """
    can_reduce = present(run, round_id).can_reduce - frozenset(without)
    fit = {peer for peer in can_reduce if not _sits_out(run, peer, round_id)} or can_reduce
    if chosen := fit & run.chosen_reducers:
        return sorted(chosen)
    return sorted(fit - {run.built_in}) or sorted(fit)


def let_sit_out(run: Run, relieved: Collection[PeerId]) -> None:
    """Spare who had to be relieved the next round; twice as many each time in a row.

    Rates of lines belong to members, not to pairs of them: they may say that a line is good which
    is not, towards those who count.
    """
    for peer in relieved:
        before = run.sitting_out.get(peer)
        num_rounds = 1 if before is None else min(2 * before.num_rounds, MOST_ROUNDS_OUT)
        newest = max(run.open_rounds, default=run.committed)
        run.sitting_out[peer] = SitsOut(until=RoundId(newest + num_rounds), num_rounds=num_rounds)


def _sits_out(run: Run, peer: PeerId, round_id: RoundId) -> bool:
    pause = run.sitting_out.get(peer)
    return pause is not None and round_id <= pause.until


def locate(run: Run) -> None:
    """Find out where members are by what they have measured since, if there are to be regions."""
    if not run.has_regions:
        return
    if len(run.round_trips) > FORGOTTEN_ABOVE * run.membership.num_connected:
        here = {m.peer for m in run.membership.connected()}
        run.round_trips = {p: known for p, known in run.round_trips.items() if p in here}
    run.positions = located(run.positions, run.round_trips)


def division(run: Run, round_id: RoundId, chosen: Sequence[PeerId]) -> Division:
    """Return how the members are divided for a new round, if these reduce.

    All that are connected: who is not ready yet may well be while the round is open.
    """
    tree, of_peers = regions.divide(
        present(run, round_id).connected - {run.built_in},
        chosen,
        positions=run.positions,
        size=run.config.sync.region_size,
        num_slices=len(run.slice_bytes[run.fragment_of(round_id)]),
    )
    return _division(run, round_id, chosen, tree=tree, of_peers=of_peers)


def replaced(run: Run, rnd: Round, lost: frozenset[PeerId]) -> tuple[PeerId, ...]:
    """Return the reducers of an open round without the lost ones; nobody, if there is none now."""
    # Rather one that was no good before than none at all.
    chosen = (
        reducers(run, rnd.id, without=lost | rnd.excluded)
        or reducers(run, rnd.id, without=lost)
        or [NOBODY]
    )
    divided = _division(run, rnd.id, chosen, tree=rnd.tree, of_peers=rnd.regions)
    return regions.reassign_places(divided, rnd.assignment, lost=lost)


def _division(
    run: Run,
    round_id: RoundId,
    chosen: Sequence[PeerId],
    *,
    tree: Tree,
    of_peers: dict[PeerId, int],
) -> Division:
    fragment, among = run.fragment_of(round_id), frozenset(chosen)
    return Division(
        tree=tree,
        regions=of_peers,
        links={
            m.peer: Link(
                peer=m.peer,
                up=m.up,
                down=m.down,
                contributes=m.trains,
                reduces=m.peer in among,
            )
            for m in run.membership.connected()
            if m.peer in among or is_ready(run, m.peer, round_id)
        },
        reducers=chosen,
        volumes=Volumes(
            contribution=run.contribution_bytes[fragment],
            update=sum(run.slice_bytes[fragment]),
            partial=run.partial_bytes[fragment],
        ),
    )
