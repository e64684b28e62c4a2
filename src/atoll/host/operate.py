"""What an operator may want of a run, decided as in `run.py`: (run, what, now) -> effects.

Each is a record of the journal first, so a host that is started again knows it. Nothing here
touches what is under way: open rounds end, and what a removed peer has delivered stays.
"""

from atoll import events
from atoll.host.admission import REMOVED
from atoll.host.due import advance
from atoll.host.effects import Append, Drop, Effect, Report, Send
from atoll.host.state import Run
from atoll.ids import PeerId
from atoll.net import records


def pause(run: Run, *, now: float) -> list[Effect]:
    """Let no new round begin. Those that are open come to their end."""
    if run.is_paused:
        return []
    run.is_paused = True
    return [Append((records.Paused(),)), Report(events.RunPaused()), *advance(run, now=now)]


def resume(run: Run, *, now: float) -> list[Effect]:
    """Let rounds begin again."""
    if not run.is_paused:
        return []
    run.is_paused = False
    return [Append((records.Resumed(),)), Report(events.RunResumed()), *advance(run, now=now)]


def remove(run: Run, peer: PeerId, reason: str, *, now: float) -> list[Effect]:
    """Put the peer out of the run for good: its leases go to others, its key is refused."""
    member = run.membership.get(peer)
    run.membership.remove(peer)
    run.departed.add(peer)
    run.unseen.discard(peer)
    effects: list[Effect] = [Append((records.Removed(peer=peer, reason=reason),))]
    if member is not None and member.connected:
        why = f"removed by the operator: {reason}" if reason else "removed by the operator"
        left = events.PeerLeft(peer=peer, name=member.name, reason=why)
        effects += [Report(left), Send(peer, REMOVED), Drop(peer, why)]
    return effects + advance(run, now=now)


def choose_reducers(run: Run, peers: tuple[PeerId, ...], *, now: float) -> list[Effect]:
    """Let only these average from the next round on, if any of them can; none: all that can."""
    run.chosen_reducers = frozenset(peers)
    record = records.ReducersChosen(peers=peers)
    chosen = events.ReducersChosen(peers=peers)
    return [Append((record,)), Report(chosen), *advance(run, now=now)]
