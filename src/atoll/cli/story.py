"""A run as a person would tell it, from the events of its host and of its peers. Pure.

(who reported it, event) -> who does what by now, and news: lines in words
"""

from dataclasses import dataclass, field
from typing import Literal

from atoll import events
from atoll.config import RunConfig
from atoll.events import Stamped
from atoll.ids import INITIAL, PeerId, RoundId
from atoll.units import format_bytes, format_count, format_seconds

Tone = Literal["plain", "good", "bad", "alarm"]
Doing = Literal["starting", "training", "exchanging", "gone", "done"]


@dataclass(slots=True)
class Actor:
    """A member of the run; `loss` and `tokens_per_s` are those of its newest inner step."""

    name: str
    doing: Doing = "starting"
    step: int = 0  # inner steps done in the open round
    loss: float | None = None
    tokens_per_s: float = 0.0
    num_sent: int = 0  # bytes of its contributions
    num_received: int = 0  # bytes of updates and states
    was_in: bool = False


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
    news: list[News] = field(default_factory=list)
    is_complete: bool = False
    _names: dict[PeerId, str] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of the run's inner steps that is done."""
        sync = self.config.sync
        steps = [actor.step for actor in self.actors.values() if actor.doing == "training"]
        open_round = sum(steps) / (len(steps) * sync.inner_steps) if steps else 0.0
        return min(1.0, (self.committed + open_round) / sync.rounds)

    @property
    def num_exchanged(self) -> int:
        """Bytes that went from one member to another: each contribution, update and state."""
        return sum(actor.num_sent + actor.num_received for actor in self.actors.values())

    @property
    def tokens_per_s(self) -> float:
        return sum(actor.tokens_per_s for actor in self.actors.values())

    def say(self, at: float, text: str, tone: Tone = "plain") -> None:
        self.news.append(News(max(0.0, at - self.began_at), text, tone))

    def hear_host(self, line: Stamped) -> None:
        """Take in what the host reports: it knows who is in, and what is final."""
        match line.event:
            case events.PeerJoined(peer=peer, name=name):
                self._names[peer] = name
                self._join(self.actors[name], line)
            case events.PeerLeft(name=name, reason=reason) if not self.is_complete:
                self._leave(self.actors[name], reason, line.at)
            case events.Training():
                self._train(line.event)
            case events.RoundClosed(round=round_id, missing=missing) if missing:
                without = self._named(missing)
                self.say(line.at, f"round {round_id} goes on without {without}", "bad")
            case events.RoundPlanned(round=round_id, reason=reason) if round_id == self.committed:
                self.say(line.at, f"round {round_id} is planned anew: {reason}", "bad")
            case events.RoundCommitted():
                self._commit(line.event, line.at)
            case events.StateDiffers(peer=peer, round=round_id):
                self.say(line.at, f"{self._named((peer,))} has another state {round_id}", "alarm")
            case events.Stopped():
                self.is_complete = True
            case events.Warned(text=text):
                self.say(line.at, f"host: {text}", "bad")
            case _:
                pass

    def hear_peer(self, name: str, line: Stamped) -> None:
        """Take in what a peer reports: it knows what it sends, and how its trainer is."""
        actor = self.actors[name]
        match line.event:
            case events.PhaseTimed(phase="sent", num_bytes=num_bytes):
                actor.num_sent += num_bytes
            case events.PhaseTimed(phase="received", num_bytes=num_bytes):
                actor.num_received += num_bytes
            case events.PhaseTimed(phase="outer_step", round=round_id) if actor.doing == "gone":
                self.say(line.at, f"{name} catches up: it takes the outer step of round {round_id}")
            case events.StateSynced(round=round_id, num_bytes=num_bytes, seconds=seconds):
                actor.num_received += num_bytes
                size, time = format_bytes(num_bytes), format_seconds(seconds)
                if round_id > INITIAL:
                    self.say(line.at, f"{name} fetched state {round_id}: {size} in {time}")
            case events.TrainerDied(reason=reason):
                actor.tokens_per_s = 0.0
                self.say(line.at, f"{name} noticed: {reason}; it starts another", "bad")
            case events.TrainerStarted() if actor.doing == "training":
                self.say(line.at, f"{name} has a trainer again", "good")
            case events.Stopped() if self.is_complete:
                actor.doing, actor.tokens_per_s = "done", 0.0
            case events.Warned(text=text):
                self.say(line.at, f"{name}: {text}", "bad")
            case _:
                pass

    def _join(self, actor: Actor, line: Stamped) -> None:
        assert isinstance(line.event, events.PeerJoined)
        actor.doing = "training" if line.event.device else "exchanging"
        what = "is back" if actor.was_in else "joined"
        where = f", it trains on {line.event.device}" if line.event.device else ""
        self.say(line.at, f"{actor.name} {what}{where}", "good")
        actor.was_in = True

    def _leave(self, actor: Actor, reason: str, at: float) -> None:
        actor.doing, actor.tokens_per_s, actor.step = "gone", 0.0, 0
        self.say(at, f"{actor.name} is gone: {reason}", "bad")

    def _train(self, event: events.Training) -> None:
        actor = self.actors[self._names.get(event.peer, "")] if event.peer in self._names else None
        if actor is None or actor.doing == "gone":
            return
        inner_steps = self.config.sync.inner_steps
        done = event.step - (event.round - 1) * inner_steps
        actor.step = max(0, min(done, inner_steps))
        actor.doing = "training" if actor.step < inner_steps else "exchanging"
        actor.loss, actor.tokens_per_s = event.loss, event.tokens_per_s

    def _commit(self, event: events.RoundCommitted, at: float) -> None:
        self.committed = event.round
        self.losses.append(event.mean_loss)
        speed = format_count(event.num_tokens / event.seconds)
        peers = f"{len(event.roster)} peer{'s' if len(event.roster) > 1 else ''}"
        self.say(
            at,
            f"round {event.round} of {self.config.sync.rounds} committed: "
            f"loss {event.mean_loss:.3f}, {peers}, {speed} tokens/s",
        )

    def _named(self, peers: tuple[PeerId, ...]) -> str:
        return " and ".join(self._names.get(peer, peer[:8]) for peer in peers)
