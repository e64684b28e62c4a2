"""What is wrong with a run now, in words, and what to do about it: the worst first. Pure."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

from atoll.config import SyncConfig
from atoll.exchange.dials import enough_reducers
from atoll.host.live import Live
from atoll.host.overview import Overview, PeerView, RoundView
from atoll.ids import PeerId
from atoll.sentences import named
from atoll.units import format_seconds

Severity: TypeAlias = Literal["alarm", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("alarm", "warning", "note")
LONG = 3.0  # times what rounds usually take
RECENT_ROUNDS = 5  # of which a peer that is often late misses most
LEFT_S = 120.0  # for so long somebody's going is news
RISEN = 1.1  # times the best of the losses


class Concern(Struct, frozen=True, kw_only=True):
    severity: Severity
    text: str
    hint: str = ""


def concerns(
    view: Overview, live: Live, rounds: list[RoundView], *, sync: SyncConfig, at: float
) -> list[Concern]:
    """Return what is wrong. `rounds` are the newest ones, in order; `at` is the wall clock's."""
    names = {peer.peer: peer.name for peer in view.peers} | {live.built_in: "the built-in member"}
    if view.committed >= view.rounds:
        return [Concern(severity="note", text="The run is complete.")]
    found = [
        *_paused(live),
        *_nobody(view, live, sync),
        *_stuck(live, names),
        *_few_reduce(view, live, sync),
        *_members(view, live, names, at=at),
        *_often_late(rounds, names),
        *_loss(view),
    ]
    return sorted(found, key=lambda concern: SEVERITIES.index(concern.severity))


def _paused(live: Live) -> Iterator[Concern]:
    if live.is_paused:
        yield Concern(
            severity="note",
            text="The operator has paused the run: no new round begins.",
            hint="To go on: atoll admin RUN resume.",
        )


def _nobody(view: Overview, live: Live, sync: SyncConfig) -> Iterator[Concern]:
    num_in = len(live.members)
    if num_in < sync.min_peers and not live.open_rounds:
        here = f"{num_in} {'peer is' if num_in == 1 else 'peers are'} here" if num_in else ""
        yield Concern(
            severity="warning" if view.committed else "note",  # a run begins by waiting
            text=f"{here or 'Nobody is here'}: a round begins with {sync.min_peers}.",
            hint="Let others join: atoll join INVITE.",
        )
    elif not num_in:
        yield Concern(
            severity="alarm",
            text="Nobody trains: the open round waits.",
            hint="Peers that were cut off come back by themselves; others can join.",
        )
    if not live.built_in_is_in:
        yield Concern(
            severity="warning",
            text="The host's built-in member is not there. It keeps the model, and averages if "
            "no peer can.",
            hint="The host starts it again by itself; its log is built-in/built-in.log in the "
            "run's directory.",
        )


def _stuck(live: Live, names: dict[PeerId, str]) -> Iterator[Concern]:
    for rnd in live.open_rounds:
        if not rnd.reducers:
            yield Concern(
                severity="alarm",
                text=f"Round {rnd.round} has nobody who averages.",
                hint="It goes on when a peer that can be dialled, or the built-in member, is back.",
            )
        elif rnd.usual_s and rnd.open_s > LONG * rnd.usual_s:
            waits = f"; it waits for {named(rnd.waits_for, names=names)}" if rnd.waits_for else ""
            yield Concern(
                severity="warning",
                text=f"Round {rnd.round} has been open for {format_seconds(rnd.open_s)}, "
                f"and rounds usually take {format_seconds(rnd.usual_s)}{waits}.",
                hint="It closes without those that are late as soon as a quorum has delivered.",
            )


def _few_reduce(view: Overview, live: Live, sync: SyncConfig) -> Iterator[Concern]:
    num_in = len(live.members)
    num_able = sum(peer.is_in and peer.trains and peer.reachable for peer in view.peers)
    least = enough_reducers(num_in, sync.region_size)
    if num_able < least:
        who = f"only {num_able} average" if num_able > 1 else "one averages"
        who = who if num_able else "the host's built-in member averages"
        yield Concern(
            severity="warning",
            text=f"{num_able or 'None'} of {num_in} peers can be dialled: {who} for all of them.",
            hint=f"At least {least} should have an open port: atoll join --port, and the router "
            "forwards that port.",
        )


def _members(
    view: Overview, live: Live, names: dict[PeerId, str], *, at: float
) -> Iterator[Concern]:
    if away := [peer for peer in live.away if peer != live.built_in]:
        yield Concern(
            severity="warning",
            text=f"Cut off for now: {named(away, names=names)}.",
            hint="What they were leased is given to others if they stay away.",
        )
    agreeing = {member.peer for member in live.members if member.agrees}
    for peer in view.peers:
        if peer.state_differs and peer.is_in and peer.peer not in agreeing:
            yield Concern(
                severity="warning",
                text=f"{peer.name} holds another state than the others, and fetches the agreed "
                "one.",
                hint="If it happens again and again, its memory or its disk is bad: remove it.",
            )
        elif _has_just_left(peer, at=at) and peer.peer not in live.away:
            yield Concern(
                severity="note",
                text=f"{peer.name} is gone: {peer.left_reason}.",
            )


def _has_just_left(peer: PeerView, *, at: float) -> bool:
    return not peer.is_in and 0.0 < peer.left_at > at - LEFT_S


def _often_late(rounds: list[RoundView], names: dict[PeerId, str]) -> Iterator[Concern]:
    recent = [rnd for rnd in rounds if rnd.committed_at][-RECENT_ROUNDS:]
    if len(recent) < RECENT_ROUNDS:
        return
    missed = {peer for rnd in recent for peer in rnd.missing}
    often = [p for p in sorted(missed) if 2 * sum(p in r.missing for r in recent) > len(recent)]
    if often:
        yield Concern(
            severity="note",
            text=f"Often late: {named(often, names=names)}. Their work comes a round later.",
            hint='sync.pace = "time" gives each peer as much as it manages.',
        )


def _loss(view: Overview) -> Iterator[Concern]:
    if len(view.losses) > RECENT_ROUNDS:
        recent = sum(view.losses[-RECENT_ROUNDS:]) / RECENT_ROUNDS
        best = min(view.losses)
        if recent > RISEN * best:
            yield Concern(
                severity="warning",
                text=f"The loss has risen: {recent:.3f} over the last {RECENT_ROUNDS} rounds, and "
                f"it has been {best:.3f}.",
                hint="A lower learning rate, or a longer warm-up, of the inner or outer step.",
            )
