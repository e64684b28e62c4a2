"""A run as a person would tell it, from the events of its host and of its peers. Pure.

(who reported it, event) -> what everybody is doing, and news: lines in words
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from atoll import events
from atoll.config import RunConfig
from atoll.events import Stamped
from atoll.ids import INITIAL, PeerId, RoundId
from atoll.sentences import fetched_state, one_line
from atoll.units import format_count, plural

MIN_PROGRESS: Final = 0.04  # for a guess at when it will be over

Tone = Literal["plain", "good", "bad", "alarm"]
Doing = Literal["starting", "training", "exchanging", "serving", "paused", "gone", "done"]


@dataclass(slots=True)
class Actor:
    """A member of the run. `loss` and `tokens_per_s` are those of its newest inner step."""

    name: str
    trains: bool = True
    doing: Doing = "starting"
    step: int = 0  # inner steps done in the open round
    loss: float | None = None
    tokens_per_s: float = 0.0
    num_sent: int = 0  # bytes of its contributions
    num_received: int = 0  # bytes of updates and states
    was_in: bool = False
    trainer: int | None = None  # the process id of its newest one
    lacks_trainer: bool = False  # that one has died

    @property
    def is_in(self) -> bool:
        return self.doing not in ("starting", "gone")


@dataclass(frozen=True, slots=True)
class News:
    at_s: float  # since the story began
    text: str
    tone: Tone


@dataclass(slots=True)
class Story:
    config: RunConfig
    actors: dict[str, Actor]
    began_at: float  # by the wall clock, like the events
    committed: RoundId = INITIAL
    losses: list[float] = field(default_factory=list)  # mean of each round
    validation_loss: float | None = None  # of the newest state that a peer has evaluated
    news: list[News] = field(default_factory=list)
    is_complete: bool = False
    trains_since: float | None = None  # by the wall clock: the first inner step that we heard of
    _planned: RoundId = INITIAL
    _names: dict[PeerId, str] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of the run's inner steps that is done."""
        sync = self.config.sync
        steps = [a.step for a in self.actors.values() if a.doing in ("training", "exchanging")]
        of_open_round = sum(steps) / (len(steps) * sync.inner_steps) if steps else 0.0
        return min(1.0, (self.committed + of_open_round) / sync.rounds)

    @property
    def num_sent(self) -> int:
        """Bytes of all contributions."""
        return sum(actor.num_sent for actor in self.actors.values())

    @property
    def num_received(self) -> int:
        """Bytes of all updates and states that somebody fetched."""
        return sum(actor.num_received for actor in self.actors.values())

    @property
    def tokens_per_s(self) -> float:
        return sum(actor.tokens_per_s for actor in self.actors.values())

    def seconds_left(self, *, now: float) -> float | None:
        """Return how long the rest will take if it goes on like this; None: too early to tell."""
        if self.trains_since is None or self.progress < MIN_PROGRESS:
            return None
        return (now - self.trains_since) * (1 - self.progress) / self.progress

    def say(self, text: str, *, at: float, tone: Tone = "plain") -> None:
        self.news.append(News(max(0.0, at - self.began_at), text, tone))

    # --- what the host reports: who is in, and what is final --------------------------------------

    def hear_host(self, line: Stamped) -> None:  # noqa: C901, PLR0912 - one case for each event
        event, at = line.event, line.at
        match event:
            case events.DashboardServed(url=url):
                self.say(f"dashboard: {url}", at=at)
            case events.PeerJoined():
                self._join(event, at=at)
            case events.PeerLeft(name=name, reason=reason) if not self.is_complete:
                self._actor(name).doing = "gone"
                self._actor(name).step, self._actor(name).tokens_per_s = 0, 0.0
                self.say(f"{name} is gone: {reason}", at=at, tone="bad")
            case events.PeerRests(name=name, rests=rests):
                self._rest(self._actor(name), rests=rests, at=at)
            case events.Training(peer=peer, round=round_id) if round_id == self.committed + 1:
                self._train(self._actor(self._named(peer)), event)
                self.trains_since = self.trains_since or at
            case events.RoundPlanned(round=round_id, reason=reason):
                if round_id == self._planned:
                    self.say(f"round {round_id} is planned anew: {reason}", at=at, tone="bad")
                self._planned = round_id
            case events.RoundClosed(round=round_id, missing=missing) if missing:
                without = " and ".join(map(self._named, missing))
                self.say(f"round {round_id} goes on without {without}", at=at, tone="bad")
            case events.RoundCommitted():
                self._commit(event, at=at)
            case events.Evaluated():
                self._evaluate(event, at=at)
            case events.StateDiffers(peer=peer, round=round_id):
                self.say(f"{self._named(peer)} has another state {round_id}", at=at, tone="alarm")
            case events.Stopped():
                self.is_complete = True
                for actor in self.actors.values():
                    actor.tokens_per_s = 0.0
            case events.Warned(text=text):
                self.say(f"the host: {text}", at=at, tone="bad")
            case _:
                pass

    def _join(self, event: events.PeerJoined, *, at: float) -> None:
        self._names[event.peer] = event.name
        actor = self._actor(event.name)
        what = "is back" if actor.was_in else "joined"
        device = f", it trains on {event.device}" if actor.trains else ""
        self.say(f"{actor.name} {what}{device}", at=at, tone="good")
        actor.doing = "training" if actor.trains else "serving"
        actor.was_in = True

    def _rest(self, actor: Actor, *, rests: bool, at: float) -> None:
        actor.doing = "paused" if rests else "training"
        actor.tokens_per_s = 0.0
        self.say(f"{actor.name} {'is paused by its owner' if rests else 'goes on'}", at=at)

    def _train(self, actor: Actor, event: events.Training) -> None:
        if not actor.is_in or actor.doing == "paused":
            return
        inner_steps = self.config.sync.inner_steps
        before = (event.round - 1) * inner_steps
        actor.step = max(0, min(event.step - before, inner_steps))
        actor.doing = "training" if actor.step < inner_steps else "exchanging"
        actor.loss, actor.tokens_per_s = event.loss, event.tokens_per_s

    def _commit(self, event: events.RoundCommitted, *, at: float) -> None:
        self.committed = event.round
        self.losses.append(event.mean_loss)
        for actor in self.actors.values():
            actor.step = 0
        speed = format_count(event.num_tokens / event.seconds)
        peers = plural(len(event.roster), "peer")
        self.say(
            f"round {event.round} of {self.config.sync.rounds} committed: "
            f"loss {event.mean_loss:.3f}, {peers}, {speed} tokens/s",
            at=at,
        )

    def _evaluate(self, event: events.Evaluated, *, at: float) -> None:
        self.validation_loss = event.loss
        said = f"validation loss {event.loss:.3f}, says {self._named(event.peer)}"
        writes = f"; it writes: {one_line(event.text)}" if event.text else ""
        self.say(f"state {event.round}: {said}{writes}", at=at)

    # --- what a peer reports: what it sends, and how its trainer is -------------------------------

    def hear_peer(self, name: str, line: Stamped) -> None:
        actor, at = self._actor(name), line.at
        match line.event:
            case events.BytesMoved(traffic=traffic):
                actor.num_sent += traffic.sent
                actor.num_received += traffic.received
            case events.PhaseTimed(phase="outer_step", round=round_id) if round_id < self.committed:
                self.say(f"{name} catches up: round {round_id}", at=at)
            case events.StateSynced() as fetched:
                self.say(f"{name} {fetched_state(fetched)}", at=at)
            case events.TrainerDied(reason=reason):
                actor.tokens_per_s = 0.0
                actor.lacks_trainer = True
                self.say(f"{name} starts another trainer: {reason}", at=at, tone="bad")
            case events.TrainerStarted(pid=pid):
                if actor.lacks_trainer:
                    self.say(f"{name} has a trainer again", at=at, tone="good")
                actor.trainer, actor.lacks_trainer = pid, False
            case events.Stopped():
                actor.doing = "done"
            case events.Disconnected(reason=reason):
                self.say(f"{name} has no connection to the host: {reason}", at=at, tone="bad")
            case events.Warned(text=text):
                self.say(f"{name}: {text}", at=at, tone="bad")
            case _:
                pass

    def _actor(self, name: str) -> Actor:
        """Return the member of this name; others than those that we started may join too."""
        return self.actors.setdefault(name, Actor(name))

    def _named(self, peer: PeerId) -> str:
        return self._names.get(peer, peer[:8])
