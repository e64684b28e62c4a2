"""All that can be seen of a run: the fold of its journal and events, and the host's own state.

    journal entries --.                        .--> document(): what the page shows
    events ---------> Fold (host/overview.py) -+--> the API, the metrics
    the host's Run -> live (host/live.py) -----'    (plain values, for JSON)

A peer is a row, numbered in the order of admission; row -1 is the host's built-in member. Nothing
here is secret: no address of a peer, no token, nothing of a machine but what it says of itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from atoll import __version__, events
from atoll.clock import wall_s
from atoll.config import RunConfig
from atoll.events import Event, Stamped
from atoll.host.health import Concern, concerns
from atoll.host.live import Live, OpenRound, live
from atoll.host.overview import Fold, Overview, PeerView, RoundView
from atoll.host.state import Run
from atoll.ids import PeerId, RoundId
from atoll.net.records import Entry, Genesis
from atoll.sentences import sentence

Document: TypeAlias = dict[str, Any]

MAX_HEARD = 50_000  # events that nobody has looked at yet
KEPT_NEWS = 200
SHOWN_ROUNDS = 40
SHOWN_NEWS = 60
SHOWN_MISSING = 24  # rows that a round names; of the others it tells how many
CURVE_POINTS = 400  # longer curves are means of neighbours
BUILT_IN_ROW = -1


class News(Struct, frozen=True, kw_only=True):
    """Something that happened, in words."""

    id: int  # counts up
    at: float
    tone: str  # good, bad, alarm or plain
    text: str


class Board:
    """What is seen of one run. `entries` is the host's own list, which grows."""

    def __init__(
        self, entries: Sequence[Entry], *, run: Callable[[], Run], now: Callable[[], float]
    ) -> None:
        genesis = entries[0].record
        assert isinstance(genesis, Genesis), "a journal begins with its genesis"
        self.entries = entries
        self.fold = Fold(genesis)
        self.news: deque[News] = deque(maxlen=KEPT_NEWS)
        self._num_news = 0
        self._run = run
        self._now = now
        self._num_folded = 1
        self._heard: deque[Stamped] = deque(maxlen=MAX_HEARD)
        self.catch_up()

    @property
    def config(self) -> RunConfig:
        return self.fold.config

    @property
    def rounds(self) -> list[RoundView]:
        """The newest rounds, in order."""
        return [self.fold.rounds[round_id] for round_id in sorted(self.fold.rounds)]

    def catch_up(self) -> Overview:
        """Take up what there is in the journal, and was heard, since; return how the run stands."""
        self._take_up()
        return self.fold.finish()

    def _take_up(self) -> None:
        while self._num_folded < len(self.entries):
            self.fold.note_record(self.entries[self._num_folded].record)
            self._num_folded += 1
        while self._heard:
            self._note(self._heard.popleft())

    def hear(self, event: Event) -> None:
        """Keep what the host reports now, until somebody looks: the host is not to wait for us."""
        self._heard.append(Stamped(at=wall_s(), event=event))

    def replay(self, lines: Iterable[Stamped]) -> None:
        """Take up what the host has reported, also in an earlier life."""
        self._take_up()
        for line in lines:
            self._note(line)

    def _note(self, line: Stamped) -> None:
        self.fold.note_event(line)
        if tone := _tone(line.event):
            text = sentence(line.event, names=self.fold.names) or ""
            self._num_news += 1
            self.news.append(
                News(id=self._num_news, at=line.at, tone=tone, text=text.lstrip("+-! "))
            )

    def live(self) -> Live:
        return live(self._run(), now=self._now())

    def health(self, now_live: Live) -> list[Concern]:
        view, sync = self.fold.view, self.config.sync
        return concerns(view, now_live, self.rounds, sync=sync, at=wall_s())

    def document(self) -> Document:
        """Return all that the page shows, as plain values."""
        view, now_live = self.catch_up(), self.live()
        index = {peer: number for number, peer in enumerate(self.fold.peers)}
        index[self.fold.built_in] = BUILT_IN_ROW
        return {
            "run": _run_line(view, now_live, num_entries=len(self.entries), config=self.config),
            "peers": self._rows(now_live),
            "rounds": {rnd.round: _round_line(rnd, index) for rnd in self.rounds[-SHOWN_ROUNDS:]},
            "open": [_open_line(rnd, index) for rnd in now_live.open_rounds],
            "curve": curve(view.tokens, view.losses),
            "checks": [
                (each.round, each.num_tokens, significant(each.loss, 5))
                for each in view.evaluations[-CURVE_POINTS:]
            ],
            "news": [msgspec.to_builtins(news) for news in list(self.news)[-SHOWN_NEWS:]],
            "health": [msgspec.to_builtins(each) for each in self.health(now_live)],
        }

    def _rows(self, now_live: Live) -> list[Document]:
        members = {m.peer: m for m in now_live.members}
        away = set(now_live.away)
        oldest = now_live.open_rounds[0] if now_live.open_rounds else None
        arrived = {c.peer: c.arrived for c in oldest.contributors} if oldest else {}
        reducing = {r.peer: r for r in oldest.reducers} if oldest else {}
        rows = []
        for peer, view in self.fold.peers.items():
            row = _row(view)
            member, reduces = members.get(peer), reducing.get(peer)
            row["in"] = member is not None
            row["doing"] = self._doing(view, oldest, arrived) if member else "gone"
            if view.is_in and not view.trains:
                row["doing"] = "reads along"
            elif peer in away:
                row["doing"] = "away"
            elif member and not member.is_ready:
                row["doing"] = "catching up"
            elif member and member.rests and row["doing"] != "exchanging":
                row["doing"] = "paused"
            row["state"] = member.round if member and member.is_ready else None
            row["agrees"] = member.agrees if member else None
            row["differs"] = bool(member and view.state_differs and not member.agrees)
            row["arrived"] = round(arrived.get(peer, 0.0), 2)
            row["progress"] = self._progress(view, oldest)
            row["reduces"] = reduces.num_slices if reduces else 0
            row["formed"] = reduces.formed if reduces else 0
            row["up"] = significant(member.up) if member else 0
            row["down"] = significant(member.down) if member else 0
            rows.append(row)
        return rows

    def _doing(self, view: PeerView, rnd: OpenRound | None, arrived: dict[PeerId, float]) -> str:
        if rnd is None:
            return "waiting"
        if view.peer not in arrived:
            return "training"
        return "delivered" if arrived[view.peer] >= 1.0 else "exchanging"

    def _progress(self, view: PeerView, rnd: OpenRound | None) -> float:
        """Return which part of the open round's inner steps the peer has done."""
        if rnd is None or not view.step:
            return 0.0
        steps = self.config.steps_per_round
        return round(max(0.0, min(1.0, (view.step - (rnd.round - 1) * steps) / steps)), 2)


def significant(value: float, digits: int = 3) -> float:
    """Return the value with so many digits that count: what changes less is not news."""
    return float(f"{value:.{digits}g}")


def curve(tokens: Sequence[int], losses: Sequence[float]) -> list[tuple[int, int, float]]:
    """Return (round, committed tokens, mean loss) of all rounds, or of groups of neighbours."""
    total = len(losses)
    every = -(-total // CURVE_POINTS) or 1
    stops = [*range(every, total, every), total] if total else []
    return [
        (stop, tokens[stop - 1], significant(sum(losses[start:stop]) / (stop - start), 5))
        for start, stop in zip([0, *stops], stops, strict=False)
    ]


def _tone(event: Event) -> str:
    """Return how the news is to be read; empty: it is none."""
    match event:
        case events.PeerJoined():
            return "good"
        case events.PeerLeft() | events.Warned() | events.TrainerDied():
            return "bad"
        case events.RoundClosed(missing=missing) if missing:
            return "bad"
        case events.StateDiffers():
            return "alarm"
        case (
            events.PeerRests() | events.RunPaused() | events.RunResumed() | events.ReducersChosen()
        ):
            return "plain"
        case events.HostStarted() | events.RoundCommitted() | events.Stopped() | events.Evaluated():
            return "plain"
        case _:
            return ""


def _run_line(view: Overview, now: Live, *, num_entries: int, config: RunConfig) -> Document:
    sent = view.traffic.sent
    return {
        "name": view.name,
        "run": view.run,
        "version": __version__,
        "rounds": view.rounds,
        "committed": view.committed,
        "agreed": view.agreed,
        "agreed_state": view.agreed_state or "",
        "num_tokens": view.num_tokens,
        "tokens_per_s": significant(view.tokens_per_s),
        "num_parameters": view.num_parameters,
        "bytes_sent": sent,
        "bits": significant(view.bits),
        "num_in": len(now.members),
        "num_ever": sum(peer.trains for peer in view.peers),
        "min_peers": config.sync.min_peers,
        "inner_steps": config.steps_per_round,
        "mode": config.sync.mode,
        "codec": config.sync.codec,
        "began_at": view.began_at,
        "built_in_is_in": now.built_in_is_in,
        "is_paused": now.is_paused,
        "sample": view.sample,
        "num_entries": num_entries,
        "is_complete": view.committed >= view.rounds,
    }


def _row(view: PeerView) -> Document:
    return {
        "id": view.peer,
        "name": view.name,
        "device": view.device,
        "place": view.place,
        "reachable": view.reachable,
        "rounds": view.rounds,
        "missed": view.missed,
        "tokens": view.num_tokens,
        "share": significant(view.token_share),
        "loss": significant(view.loss, 4),
        "tps": significant(view.tokens_per_s),
        "mfu": None if view.mfu is None else significant(view.mfu, 2),
        "utilisation": None if view.utilisation is None else round(view.utilisation, 2),
        "sent": view.traffic.sent,
        "received": view.traffic.received,
        "left": view.left_reason,
    }


def _round_line(rnd: RoundView, index: dict[PeerId, int]) -> Document:
    missing = [index[peer] for peer in rnd.missing if peer in index]
    return {
        "round": rnd.round,
        "fragment": rnd.fragment,
        "waited": len(rnd.waited),
        "planned_at": _moment(rnd.planned_at),
        "closed_at": _moment(rnd.closed_at),
        "committed_at": _moment(rnd.committed_at),
        "agreed_at": _moment(rnd.agreed_at),
        "exchange_s": round(rnd.exchange_s, 2),
        "num_in": len(rnd.roster),
        "missing": missing[:SHOWN_MISSING],
        "num_missing": len(missing),
        "reason": rnd.close_reason,
        "notes": [note.text for note in rnd.notes[-5:]],
        "tokens": rnd.num_tokens,
        "loss": significant(rnd.loss, 5),
        "bytes": rnd.update_bytes,
        "state": (rnd.state or "")[:24],
    }


def _open_line(rnd: OpenRound, index: dict[PeerId, int]) -> Document:
    reducers = [index.get(each.peer) for each in rnd.reducers]
    return {
        "round": rnd.round,
        "fragment": rnd.fragment,
        "phase": rnd.phase,
        "usual_s": significant(rnd.usual_s),
        "num_slices": rnd.num_slices,
        "num_formed": sum(each.formed for each in rnd.reducers),
        "num_holders": rnd.num_holders,
        "num_waited_for": len(rnd.waits_for),
        "built_in_reduces": BUILT_IN_ROW in reducers,
    }


def _moment(at: float) -> float:
    return round(at, 2)


def find_round(board: Board, round_id: int) -> RoundView | None:
    """Return what is known of a round; None: it is not among the newest."""
    return board.fold.rounds.get(RoundId(round_id))
