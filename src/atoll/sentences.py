"""Events as sentences for people: the lines of a terminal, and the news of the dashboard."""

from collections.abc import Mapping, Sequence

from atoll import events
from atoll.ids import PeerId
from atoll.units import format_bytes, format_count, format_seconds, plural

MOST_NAMES = 12  # in a sentence


def sentence(event: events.Event, *, names: Mapping[PeerId, str]) -> str | None:
    """Return the event in words, for any terminal; None: it is nothing to read about."""
    words = _in_words(event, names)
    return None if words is None else plain(words)


def _in_words(event: events.Event, names: Mapping[PeerId, str]) -> str | None:  # noqa: C901, PLR0912 - one case for each event
    match event:
        case events.HostStarted():
            return f"serving {event.run} at {event.address}, {event.committed} rounds committed"
        case events.HostStandsBy():
            return f"standing by at {event.address}"
        case events.DashboardServed(url=url):
            return f"dashboard: {url}"
        case events.PeerJoined():
            return _joined(event)
        case events.PeerLeft():
            return f"- {event.name} is gone: {event.reason}"
        case events.PeerRests(name=name, rests=rests):
            return f"{name} is paused: no round waits for it" if rests else f"{name} goes on"
        case events.RoundPlanned():
            reducers = named(event.reducers, names=names) or "nobody who is here"
            return f"round {event.round}: {plural(len(event.peers), 'peer')}, reduced by {reducers}"
        case events.RoundClosed():
            late = f", without {named(event.missing, names=names)}" if event.missing else ""
            return f"round {event.round}: closed with {plural(len(event.roster), 'peer')}{late}"
        case events.RoundCommitted():
            return _committed(event)
        case events.StateAgreed():
            members = plural(len(event.peers), "member")
            return f"state {event.round} is {event.digest[:12]} on {members}"
        case events.StateDiffers():
            who = named((event.peer,), names=names)
            return f"! {who} has another state {event.round}: it fetches"
        case events.Evaluated():
            who = named((event.peer,), names=names)
            return f"state {event.round}: validation loss {event.loss:.3f}, says {who}"
        case events.RunPaused():
            return "paused by the operator: no new round begins"
        case events.RunResumed():
            return "resumed by the operator: rounds begin again"
        case events.ReducersChosen():
            return _reducers_chosen(event, names)
        case events.Training():
            return (
                f"  {named((event.peer,), names=names)}: round {event.round}, step {event.step}, "
                f"loss {event.loss:.3f}, {event.tokens_per_s:.0f} tokens/s"
            )
        case events.Warned():
            return f"! {'; '.join(filter(None, (event.text, event.hint)))}"
        case events.Stopped():
            return event.reason
        case _:
            return _of_a_peer(event)


def _of_a_peer(event: events.Event) -> str | None:
    """Return in words what a member tells of itself."""
    match event:
        case events.Connected(host=host, committed=committed):
            return f"connected to {host}, {committed} rounds committed"
        case events.TrainerStarted(device=device):
            return f"ready to train on {device}"
        case events.RoundTaken():
            return _taken(event)
        case events.StateSynced():
            return fetched_state(event)
        case events.MomentsFetched(num_bytes=num_bytes, seconds=seconds):
            size, time = format_bytes(num_bytes), format_seconds(seconds)
            return f"fetched the moments of another peer: {size} in {time}"
        case events.MachineCame() | events.MachineLost():
            return _machine(event)
        case events.TrainerDied():
            return f"! the trainer died ({event.reason}); starting it again"
        case events.Disconnected(reason=reason):
            return f"! no connection to the host, trying again ({reason})"
        case _:
            return None


def fetched_state(event: events.StateSynced) -> str:
    """Return what a peer has fetched, and of how much that was the rest."""
    size, time = format_bytes(event.num_bytes), format_seconds(event.seconds)
    if event.kept_bytes:
        size += f", the rest of {format_bytes(event.num_bytes + event.kept_bytes)},"
    return f"fetched state {event.round}: {size} in {time}"


def _committed(event: events.RoundCommitted) -> str:
    tokens, seconds = format_count(event.num_tokens), format_seconds(event.seconds)
    return f"round {event.round}: committed, {tokens} tokens, loss {event.mean_loss:.3f}, {seconds}"


def _taken(event: events.RoundTaken) -> str:
    if not event.num_tokens:
        return f"round {event.round}: taken, with the others' work"
    own, tokens = format_count(event.num_tokens), format_count(event.round_tokens)
    return f"round {event.round}: taken, with {own} tokens of our own among {tokens}"


def _reducers_chosen(event: events.ReducersChosen, names: Mapping[PeerId, str]) -> str:
    who = named(event.peers, names=names) or "all that can be dialled"
    return f"chosen to average, from the next round on: {who}"


def _machine(event: events.MachineCame | events.MachineLost) -> str:
    if isinstance(event, events.MachineLost):
        return f"machine {event.name} of this peer is gone: {event.reason}"
    missing = f"; still missing: {event.num_missing}" if event.num_missing else ""
    return f"machine {event.name} of this peer is there{missing}"


def _joined(event: events.PeerJoined) -> str:
    said = [event.device or "no trainer"]
    if not event.reachable:
        said.append("cannot be dialled: it will not reduce")
    place = f" from {event.place}" if event.place else ""
    return f"+ {event.name} joined{place} ({', '.join(said)})"


def plain(text: str) -> str:
    """Return the text without what a terminal would obey: others may have written parts of it."""
    return "".join(c if c.isprintable() else " " for c in text)


def one_line(text: str) -> str:
    """Return a text that a peer wrote as plain words in one line."""
    return " ".join(plain(text).split())


def named(peers: Sequence[PeerId], *, names: Mapping[PeerId, str]) -> str:
    """Return the names of these peers, of the first ones; of strangers, the start of their ids."""
    shown = [names.get(peer, peer[:8]) for peer in peers[:MOST_NAMES]]
    rest = len(peers) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
