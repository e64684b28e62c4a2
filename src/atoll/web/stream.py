"""The live stream: one snapshot for each viewer who comes, then what has changed, for all alike.

    Board --document()--> Publisher --bytes, made once--> a short queue for each viewer --> SSE

A delta has at most `MAX_DELTA_BYTES`: who came and went, rounds and concerns first, then rows of
peers, those first that have waited longest. A viewer who does not keep up loses its queue and gets
a snapshot instead, so it costs the host nothing but that.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from math import inf

import msgspec

from atoll.web.board import Board, Document

TICK_S = 0.5  # so whatever happens is on the page within a second
MAX_DELTA_BYTES = 20_000  # 40 kB/s for each viewer, at most
LEAST_ROW_BYTES = 4_000  # of a delta: the rest may not starve the rows
BEAT_S = 5.0  # without news there is a sign of life
MAX_QUEUED = 6  # deltas that a viewer may be behind
MAX_VIEWERS = 500
TOLD_AT_ONCE = 10  # viewers: then the host has its turn, before the next ones are written to
# What changes all the time: a row where nothing else has changed may wait.
RESTLESS = frozenset({"tps", "mfu", "progress", "arrived", "formed", "up", "down", "loss", "share"})


class Publisher:
    """What all viewers have been told, and what is news compared with that. No I/O."""

    def __init__(self, read: Callable[[], Document]) -> None:
        self._read = read
        self._told: Document = {}
        self._told_at: list[int] = []  # of each row: the number of the delta that had it last
        self._seq = 0
        self._snapshot: tuple[int, bytes] = (-1, b"")
        self.begin()

    @property
    def seq(self) -> int:
        """The number of what viewers were told last."""
        return self._seq

    def begin(self) -> None:
        """Forget what was told: nobody watches who could have heard it."""
        self._told = self._read()
        self._told_at = [self._seq] * len(self._told["peers"])
        self._seq += 1

    def snapshot(self) -> bytes:
        """Return all that viewers have been told, as one event of the stream."""
        if self._snapshot[0] != self._seq:
            document = {**self._told, "seq": self._seq}
            document["rounds"] = list(document["rounds"].values())
            self._snapshot = (self._seq, event("snapshot", document))
        return self._snapshot[1]

    def delta(self) -> bytes | None:
        """Return what is news, as one event of the stream; None: nothing is."""
        told, fresh = self._told, self._read()
        changes: Document = {}
        if run := changed(told["run"], fresh["run"]):
            changes["run"] = run
        rounds = [line for key, line in fresh["rounds"].items() if told["rounds"].get(key) != line]
        if rounds:
            changes["rounds"] = rounds
        for key in ("open", "health", "curve", "checks"):
            if told[key] != fresh[key]:
                changes[key] = _appended(told[key], fresh[key]) if key == "curve" else fresh[key]
        newest = told["news"][-1]["id"] if told["news"] else 0
        if news := [each for each in fresh["news"] if each["id"] > newest]:
            changes["news"] = news
        told.update({key: fresh[key] for key in fresh if key != "peers"})
        room = max(LEAST_ROW_BYTES, MAX_DELTA_BYTES - len(msgspec.json.encode(changes)))
        if rows := self._rows(fresh["peers"], room=room):
            changes["peers"] = rows
        if not changes:
            return None
        self._seq += 1
        return event("delta", {**changes, "seq": self._seq})

    def _rows(self, fresh: list[Document], *, room: int) -> dict[int, msgspec.Raw]:
        """Return the changes of rows that fit, by number; note that viewers know them now."""
        rows: list[Document] = self._told["peers"]
        for _ in fresh[len(rows) :]:
            rows.append({})
            self._told_at.append(0)
        news = {}
        for number, row in enumerate(fresh):
            if changes := changed(rows[number], row):
                news[number] = changes
        chosen: dict[int, msgspec.Raw] = {}
        for number in sorted(news, key=lambda n: (news[n].keys() <= RESTLESS, self._told_at[n])):
            encoded = msgspec.json.encode(news[number])
            room -= len(encoded) + 8
            if room < 0 and chosen:
                break
            chosen[number] = msgspec.Raw(encoded)
            rows[number] = fresh[number]
            self._told_at[number] = self._seq
        return chosen


def changed(before: Document, after: Document) -> Document:
    """Return the keys of `after` that are new or have another value."""
    return {key: value for key, value in after.items() if before.get(key, changed) != value}


def _appended(before: list[object], after: list[object]) -> Document:
    """Return what was added to a list, or all of it, if it is another one by now."""
    if after[: len(before)] == before:
        return {"add": after[len(before) :]}
    return {"all": after}


def event(kind: str, document: Document) -> bytes:
    """Return an event as it goes over the wire (HTML Living Standard, 9.2 Server-sent events)."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(document))


BEAT = b"event: beat\ndata: {}\n\n"
END = b"event: end\ndata: {}\n\n"


class Viewer:
    """One open page: what it has not been sent yet."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        self.is_lost = True  # it needs a snapshot before any delta makes sense
        self.seq = 0  # of its snapshot

    def put(self, message: bytes, *, seq: float = inf) -> None:
        """Queue a message; `seq` is that of a delta."""
        if self.is_lost or seq <= self.seq:
            return  # its snapshot has it, or will have it
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.is_lost = True
            self.queue.put_nowait(b"")  # something to wake up for


class Stream:
    """All viewers. `run` has to be running for them to hear anything."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._publisher = Publisher(board.document)
        self._viewers: set[Viewer] = set()
        self._is_over = False

    @property
    def num_viewers(self) -> int:
        return len(self._viewers)

    @property
    def is_full(self) -> bool:
        return self.num_viewers >= MAX_VIEWERS

    async def run(self) -> None:
        """Tell all viewers what is new, until this task is cancelled."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        try:
            while True:
                await asyncio.sleep(TICK_S)
                if not self._viewers:
                    self._board.catch_up()
                    continue
                message = self._publisher.delta()
                if message is None and loop.time() - told_at >= BEAT_S:
                    message = BEAT
                if message is not None:
                    told_at = loop.time()
                    await self._tell(message)
        finally:
            self._is_over = True
            for viewer in self._viewers:
                viewer.put(END)

    async def _tell(self, message: bytes) -> None:
        seq = inf if message is BEAT else self._publisher.seq
        for number, viewer in enumerate(list(self._viewers)):
            viewer.put(message, seq=seq)
            if number % TOLD_AT_ONCE == TOLD_AT_ONCE - 1:
                await asyncio.sleep(0)

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield the events for one viewer: a snapshot first."""
        if not self._viewers:
            self._publisher.begin()
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            while not self._is_over:
                if viewer.is_lost:
                    viewer.is_lost, viewer.seq = False, self._publisher.seq
                    yield self._publisher.snapshot()
                if message := await viewer.queue.get():
                    yield message
        finally:
            self._viewers.discard(viewer)
