"""Events as lines for people, and progress on the terminal."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

from rich.console import Console

from atoll import events
from atoll.clock import monotonic_s
from atoll.ids import PeerId
from atoll.units import format_bytes, format_seconds

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
BARS = "▁▂▃▄▅▆▇█"


class Lines:
    """Turns events into plain lines; knows the names of peers from what it has seen."""

    def __init__(self) -> None:
        self.names: dict[PeerId, str] = {}
        self._trained_at = 0.0

    def show(self, event: events.Event) -> None:
        if line := self.line(event):
            console.print(line, markup=False, soft_wrap=True)

    def line(self, event: events.Event) -> str | None:  # noqa: C901, PLR0912 - one case for each event
        match event:
            case events.HostStarted():
                return f"serving {event.run} at {event.address}, {event.committed} rounds committed"
            case events.HostStandsBy():
                return f"standing by at {event.address}"
            case events.PeerJoined():
                self.names[event.peer] = event.name
                where = "" if event.reachable else ", cannot be dialled: it will not reduce"
                return f"+ {event.name} joined ({event.device or 'no trainer'}{where})"
            case events.PeerLeft():
                return f"- {event.name} is gone: {event.reason}"
            case events.RoundPlanned():
                reducers = self._named(event.reducers)
                return f"round {event.round}: {len(event.peers)} peers, reduced by {reducers}"
            case events.RoundClosed():
                late = f", without {self._named(event.missing)}" if event.missing else ""
                return f"round {event.round}: closed with {len(event.roster)} peers{late}"
            case events.RoundCommitted():
                return (
                    f"round {event.round}: committed, {event.num_tokens} tokens, "
                    f"loss {event.mean_loss:.3f}, {format_seconds(event.seconds)}"
                )
            case events.StateAgreed():
                return f"state {event.round} is {event.digest[:12]} on {len(event.peers)} members"
            case events.StateDiffers():
                return f"! {self._named((event.peer,))} has another state {event.round}: it fetches"
            case events.Training():
                return self._training(event)
            case events.StateSynced():
                size = format_bytes(event.num_bytes)
                return f"fetched state {event.round}: {size} in {format_seconds(event.seconds)}"
            case events.MomentsFetched(num_bytes=num_bytes, seconds=seconds):
                size, time = format_bytes(num_bytes), format_seconds(seconds)
                return f"fetched the moments of another peer: {size} in {time}"
            case events.TrainerDied():
                return f"! the trainer died ({event.reason}); starting it again"
            case events.Warned():
                return f"! {event.text}"
            case events.Stopped():
                return event.reason
            case _:
                return None

    def _training(self, event: events.Training) -> str | None:
        now = monotonic_s()
        if now - self._trained_at < 5.0:
            return None
        self._trained_at = now
        name = self._named((event.peer,))
        return (
            f"  {name}: round {event.round}, step {event.step}, loss {event.loss:.3f}, "
            f"{event.tokens_per_s:.0f} tokens/s"
        )

    def _named(self, peers: tuple[PeerId, ...]) -> str:
        return ", ".join(self.names.get(peer, peer[:8]) for peer in peers)


def progress(what: str) -> Callable[[str, int], None]:
    """Return a callback that shows a counter while something long is going on."""
    shown_at = monotonic_s()

    def note(doing: str, count: int) -> None:
        nonlocal shown_at
        if monotonic_s() - shown_at > 1.0:
            shown_at = monotonic_s()
            errors.print(f"{what}: {doing}, {count} done", markup=False)

    return note


def sparkline(values: Sequence[float], *, columns: int) -> str:
    """Return a curve of one character for each value, or for the mean of several neighbours."""
    width = min(columns, len(values))
    borders = [len(values) * column // width for column in range(width + 1)] if width else []
    means = [fmean(values[start:stop]) for start, stop in pairwise(borders)]
    least, most = min(means, default=0.0), max(means, default=0.0)
    steps = [(mean - least) / ((most - least) or 1.0) for mean in means]
    return "".join(BARS[round(step * (len(BARS) - 1))] for step in steps)
