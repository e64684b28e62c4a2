"""What members are told of an open round: plans, rosters, and what reducers are to form. Pure."""

from collections.abc import Collection, Iterable
from itertools import groupby

from msgspec.structs import replace

from atoll import events
from atoll.exchange import plan
from atoll.host.decision import Share
from atoll.host.effects import Effect, Report, Send
from atoll.host.open_round import NOBODY, Round
from atoll.host.state import Run, addresses, present, sources, unmeasured
from atoll.ids import PeerId
from atoll.net import wire


def plans_for(run: Run, rnd: Round, peers: Iterable[PeerId]) -> list[Effect]:
    """Return the plans of a round, to these peers. What is the same in a region is made once."""
    reachable = {address.peer: address for address in addresses(run, set(rnd.assignment))}
    also = _also(rnd)
    of_group: dict[int, wire.Plan] = {}
    effects: list[Effect] = []
    for peer in peers:
        group = rnd.group_of(peer)
        if group not in of_group:
            of_group[group] = _plan(run, rnd, group, reachable)
        told = replace(
            of_group[group],
            leases=run.book.held_by(peer) if _trains(run, peer) else (),
            sources=sources(run, peer),
            num_samples=rnd.work.get(peer, 0),
            also=also.get(peer, ()),
            measure=unmeasured(run, peer),
        )
        effects.append(Send(peer, told))
    return effects


def _plan(run: Run, rnd: Round, group: int, reachable: dict[PeerId, wire.Address]) -> wire.Plan:
    places = rnd.tree.places(group)
    return wire.Plan(
        round=rnd.id,
        version=rnd.version,
        fragment=run.fragment_of(rnd.id),
        first_step=(rnd.id - 1) * run.config.steps_per_round,
        codec=run.config.sync.codec,
        update_codec=run.config.sync.update_codec,
        reductions=tuple(
            wire.Reduction(reducer=reachable[reducer], start=start, stop=stop)
            for reducer, start, stop in plan.runs(rnd.assignment[places.start : places.stop])
            if reducer in reachable
        ),
        leases=(),
        sources=(),
    )


def _also(rnd: Round) -> dict[PeerId, tuple[wire.Run, ...]]:
    """Return the slices that reducers take in from other regions than their own."""
    also: dict[PeerId, list[wire.Run]] = {}
    for group in range(rnd.tree.num_regions):
        places = rnd.tree.places(group)
        for reducer, start, stop in plan.runs(rnd.assignment[places.start : places.stop]):
            if rnd.group_of(reducer) != group:
                also.setdefault(reducer, []).append(wire.Run(start=start, stop=stop))
    return {reducer: tuple(runs) for reducer, runs in also.items()}


def _trains(run: Run, peer: PeerId) -> bool:
    member = run.membership.get(peer)
    return member is not None and member.trains


def closed_message(rnd: Round) -> wire.Closed:
    return wire.Closed(round=rnd.id, roster_version=rnd.roster_version)


def announced(run: Run, rnd: Round) -> list[Effect]:
    """Let the updates of the announced roster be formed and fetched."""
    closed = closed_message(rnd)
    effects: list[Effect] = [Send(m.peer, closed) for m in run.membership.connected()]
    return effects + jobs(run, rnd, range(rnd.tree.num_places))


def moved(run: Run, rnd: Round, places: Collection[int]) -> list[Effect]:
    """Let these places be reduced by those who do it now, and tell whomever that concerns."""
    tree = rnd.tree
    concerned = {tree.group_and_slice(place)[0] for place in places}
    reduces = {rnd.assignment[place] for place in places}
    here = present(run, rnd.id)
    told = sorted(
        peer
        for peer in here.able | (here.resting & rnd.said.keys())
        if rnd.group_of(peer) in concerned or peer in reduces
    )
    effects = plans_for(run, rnd, told)
    if not rnd.announced:
        return effects
    # Those below fetch the update from there, the one above its partial sum.
    again = set(places)
    for group, k in map(tree.group_and_slice, places):
        again |= {tree.place(child, k) for child in tree.children(group)}
        parent = tree.parent(group)
        if parent is not None and tree.place(parent, k) not in rnd.reduced:
            again.add(tree.place(parent, k))
    return effects + jobs(run, rnd, sorted(again))


def jobs(run: Run, rnd: Round, places: Iterable[int]) -> list[Effect]:
    """Ask the reducers of these places, in order, for what the announced roster makes them of."""
    tree = rnd.tree
    reachable = {address.peer: address for address in addresses(run, set(rnd.assignment))}
    rosters: dict[int, list[Share]] = {}
    for share in rnd.announced:
        rosters.setdefault(rnd.group_of(share.peer), []).append(share)

    def reducer_of(group: int, k: int) -> wire.Address | None:
        return reachable.get(rnd.assignment[tree.place(group, k)])

    effects: list[Effect] = []
    for group, of_group in groupby(places, lambda place: tree.group_and_slice(place)[0]):
        if group not in rnd.populated:
            continue
        parent, below = tree.parent(group), rnd.below(group)
        for place in of_group:
            k = tree.group_and_slice(place)[1]
            asked = wire.Reduce(
                round=rnd.id,
                roster_version=rnd.roster_version,
                slice=k,
                inputs=_inputs(rnd, rosters.get(group, ()), k),
                parts=tuple(wire.Part(group=g, reducer=reducer_of(g, k)) for g in below),
                group=None if parent is None else group,
                parent=None if parent is None else reducer_of(parent, k),
            )
            if rnd.assignment[place] != NOBODY:
                effects.append(Send(rnd.assignment[place], asked))
    return effects


def _inputs(rnd: Round, shares: Iterable[Share], k: int) -> tuple[wire.ReduceInput, ...]:
    return tuple(
        wire.ReduceInput(
            peer=share.peer, share=share.share, digest=rnd.claims[share.peer].digests[k]
        )
        for share in shares
    )


def plan_report(rnd: Round, reason: str) -> Report:
    return Report(
        events.RoundPlanned(
            round=rnd.id,
            peers=tuple(sorted(rnd.invited | rnd.waited)),
            reducers=tuple(sorted(set(rnd.assignment) - {NOBODY})),
            reason=reason,
        )
    )
