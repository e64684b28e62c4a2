"""What this machine does for a run, as its owner would tell it, from what its peer reports. Pure.

(event, when) -> what it is doing, how fast, how much so far; and news: lines in words
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from atoll import events
from atoll.cli.story import Tone
from atoll.config import RunConfig
from atoll.events import Event
from atoll.ids import INITIAL, RoundId
from atoll.sentences import plain, sentence
from atoll.units import format_bytes, format_count, format_seconds

SAY_DOWNLOAD_S: Final = 10.0  # between two lines about a download
SAY_TRAINING_S: Final = 60.0  # and about the steps of one round
RATE_S: Final = 5.0  # that a rate is the mean of
IF_CUT_OFF: Final = (
    "it tries again, and goes on as soon as the host is there: check this machine's line if "
    "it lasts"
)

Doing = Literal[
    "connecting",
    "downloading",
    "starting",
    "waiting for a round",
    "training",
    "exchanging",
    "paused",
    "resting",
    "done",
]


@dataclass(frozen=True, slots=True)
class News:
    """A line; `at` by the wall clock."""

    at: float
    text: str
    tone: Tone


@dataclass(slots=True)
class Flow:
    """Bytes that come or go: how many so far, and how many per second of late."""

    num_bytes: int = 0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, num_bytes: int, *, at: float) -> None:
        self.num_bytes = num_bytes
        self._seen.append((at, num_bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= at - RATE_S:
            self._seen.popleft()

    @property
    def bytes_per_s(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


@dataclass(slots=True)
class Download:
    what: str
    total_bytes: int
    began_at: float
    flow: Flow = field(default_factory=Flow)
    said_at: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.flow.num_bytes >= self.total_bytes

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the rate of late; None: too early to tell."""
        rate = self.flow.bytes_per_s
        return (self.total_bytes - self.flow.num_bytes) / rate if rate > 0 else None

    def in_words(self) -> str:
        rate = self.flow.bytes_per_s
        speed = f", {format_bytes(rate)}/s" if rate else ""
        done, total = format_bytes(self.flow.num_bytes), format_bytes(self.total_bytes)
        return f"{self.what}: {done} of {total}{speed}"


@dataclass(slots=True)
class Part:
    """`losses` are the last one of each round; `share` that of the newest round with our work."""

    config: RunConfig
    began_at: float  # by the wall clock, like the events
    doing: Doing = "connecting"
    host: str = ""
    device: str = ""
    download: Download | None = None
    committed: RoundId = INITIAL
    round: RoundId = INITIAL  # that it is at work for
    step: int = 0  # inner steps done in this round
    loss: float | None = None
    tokens_per_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    exchanges: set[RoundId] = field(default_factory=set)  # that are under way
    num_contributors: int = 0
    share: float | None = None
    num_tokens: int = 0  # of ours, committed since we began
    total_tokens: int = 0  # and ever
    num_rounds: int = 0  # that have work of ours, since we began
    sent: Flow = field(default_factory=Flow)
    received: Flow = field(default_factory=Flow)
    has_connected: bool = False  # once, at least
    is_cut_off: bool = False  # from the host, by now
    is_paused: bool = False  # it rests: by its owner's will, or until something is there
    is_leaving: bool = False
    news: list[News] = field(default_factory=list)
    _said_training_at: float = 0.0
    _behind: RoundId = INITIAL  # the rounds up to this one were over when it connected

    def say(self, text: str, *, at: float, tone: Tone = "plain") -> None:
        self.news.append(News(at, plain(text), tone))

    @property
    def exchanges_beside(self) -> bool:
        """Whether an exchange is under way while it trains."""
        return self.doing == "training" and bool(self.exchanges)

    # --- what the peer reports ------------------------------------------------------------------

    def hear(self, event: Event, *, at: float) -> None:  # noqa: C901, PLR0912 - one case for each event
        match event:
            case events.Connected():
                self._connect(event, at=at)
            case events.Downloading():
                self._download(event, at=at)
            case events.StateSynced():
                self.download = None  # its end has been said, unless some of it was here before
            case events.TrainerStarted(device=device):
                self.download = None
                self.device, self.doing = device, self._paused_or("waiting for a round")
                self.say(f"ready to train on {device}", at=at, tone="good")
            case events.TrainerDied(reason=reason):
                self.doing, self.tokens_per_s = "starting", 0.0
                text = f"the trainer died, and is started again by itself: {reason}"
                self.say(text, at=at, tone="bad")
            case events.Training():
                self._train(event, at=at)
            case events.PhaseTimed(round=round_id, phase="snapshot"):
                self.exchanges.add(round_id)
                self.doing = self._paused_or("exchanging")
            case events.RoundTaken():
                self._take(event, at=at)
            case events.PeerRests(rests=rests, why=why):
                self._rest(rests=rests, why=why, at=at)
            case events.Disconnected(reason=reason):
                self.is_cut_off = True
                self.say(f"no connection to the host ({reason}); {IF_CUT_OFF}", at=at, tone="bad")
            case events.Warned(text=text, hint=hint):
                self.say("; ".join(filter(None, (text, hint))), at=at, tone="bad")
            case events.Stopped(reason=reason):
                self.doing, self.tokens_per_s = "done", 0.0
                self.say(reason, at=at, tone="good")
            case _ if line := sentence(event, names={}):
                self.say(line, at=at)
            case _:
                pass

    def _connect(self, event: events.Connected, *, at: float) -> None:
        self.host, self.committed = event.host, event.committed
        self.has_connected, self.is_cut_off = True, False
        self._behind = event.committed
        if self.doing == "connecting":
            ready = self._paused_or("waiting for a round")
            self.doing = "starting" if not self.device else ready
        rounds = self.config.sync.rounds
        text = f"connected to {event.host}: {event.committed} of {rounds} rounds are done"
        self.say(text, at=at, tone="good")

    def _download(self, event: events.Downloading, *, at: float) -> None:
        if self.download is None or self.download.what != event.what:
            self.download = Download(event.what, event.total_bytes, began_at=at)
        download = self.download
        download.flow.note(event.num_bytes, at=at)
        self.doing = "starting" if download.is_whole else "downloading"
        if download.is_whole:
            size = format_bytes(download.total_bytes)
            took = format_seconds(at - download.began_at)
            self.say(f"downloaded {download.what}: {size} in {took}", at=at)
            self.download = None
        elif at >= download.said_at + SAY_DOWNLOAD_S:
            download.said_at = at
            left = download.seconds_left
            rest = "" if left is None else f", {format_seconds(left)} left"
            self.say(f"downloading {download.in_words()}{rest}", at=at)

    def _train(self, event: events.Training, *, at: float) -> None:
        steps = self.config.steps_per_round
        is_new = event.round != self.round
        before = (event.round - 1) * steps
        step = max(0, event.step - before)
        if (event.round, step, event.loss) == (self.round, self.step, self.loss):
            return  # no step since
        if self.is_paused:
            return  # it is the step that was under way
        self.round, self.step = event.round, step
        self.loss, self.tokens_per_s = event.loss, event.tokens_per_s
        self.doing = "training"
        if is_new:
            self._said_training_at = at  # its end is said soon, if it is a short one
        elif at >= self._said_training_at + SAY_TRAINING_S:
            self._said_training_at = at
            speed = format_count(event.tokens_per_s)
            text = f"round {event.round}: step {min(step, steps)} of {steps}"
            self.say(f"{text}, loss {event.loss:.3f}, {speed} tokens/s", at=at)

    def _take(self, event: events.RoundTaken, *, at: float) -> None:
        self.download = None  # of a state that rounds have overtaken
        self.exchanges.discard(event.round)
        self.committed, self.num_contributors = event.round, event.num_contributors
        self.round, self.step, self._said_training_at = RoundId(event.round + 1), 0, at
        if self.doing in ("training", "exchanging") and not self._overlaps:
            self.doing = "waiting for a round"
        text = f"round {event.round} of {self.config.sync.rounds}"
        if not event.num_tokens and event.round <= self._behind:
            if event.round == self._behind:
                self.say("caught up with the rounds before", at=at)
            return
        if not event.num_tokens:
            whose = "the others' work" if self.is_paused else "your work comes into a later one"
            self.say(f"{text}: {whose}", at=at)
            return
        self.num_rounds += 1
        self.num_tokens += event.num_tokens
        self.total_tokens = max(self.total_tokens, event.total_tokens)
        self.share = event.num_tokens / event.round_tokens if event.round_tokens else None
        if self.loss is not None:
            self.losses.append(self.loss)
            text += f": loss {self.loss:.3f}"
        share = "" if self.share is None else f", your share {self.share:.0%}"
        self.say(f"{text}{share}, {format_count(self.total_tokens)} tokens so far", at=at)

    @property
    def _overlaps(self) -> bool:
        return self.config.sync.mode == "overlap"

    def _rest(self, *, rests: bool, why: str, at: float) -> None:
        self.is_paused = rests
        self.doing = self._paused_or("waiting for a round")
        self.tokens_per_s = 0.0
        if why:
            self.say(f"it follows the run, and waits for {why}", at=at, tone="bad")
        elif rests:
            self.say("paused, its work is kept; go on with: atoll resume", at=at, tone="bad")
        else:
            self.say("it goes on with the work that it had", at=at, tone="good")

    def _paused_or(self, doing: Doing) -> Doing:
        return "paused" if self.is_paused else doing

    # --- what its owner wants -------------------------------------------------------------------

    def leave(self, *, at: float) -> None:
        """Note that it leaves once its work is in."""
        self.is_leaving = True
        text = "leaving after this round: its work counts; Ctrl-C again: at once"
        self.say(text, at=at, tone="bad")

    def rest_until(self, when: str, *, at: float) -> None:
        """Note that it has left for the hours in which it does not train."""
        self.doing, self.tokens_per_s = "resting", 0.0
        self.is_leaving = False
        self.say(f"resting until {when}; Ctrl-C ends it", at=at)
