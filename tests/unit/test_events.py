"""The log of a process: what is emitted comes back, and a reader can follow a log that grows."""

import resource
from pathlib import Path

import msgspec
import pytest

from atoll.errors import RunError
from atoll.events import (
    Event,
    EventLog,
    GrowingLog,
    HostStarted,
    PhaseTimed,
    Stamped,
    StateAgreed,
    Warned,
    newest_events,
    put_aside,
    read_events,
)
from atoll.ids import Digest, PeerId, RoundId

EVENTS: tuple[Event, ...] = (
    HostStarted(run="a-run", address="[::1]:7000", committed=RoundId(0)),
    PhaseTimed(round=RoundId(1), phase="encode", seconds=0.5),
    StateAgreed(round=RoundId(1), digest=Digest("0" * 64), peers=(PeerId("a" * 32),)),
    Warned(text='"a"\nb\u2028'),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not-yet-there" / "events.jsonl"


def emit(path: Path, *events: Event) -> list[Event]:
    """Append the events to the log, and return what it showed."""
    shown: list[Event] = []
    log = EventLog(path, show=shown.append)
    for event in events:
        log.emit(event)
    log.close()
    return shown


def test_events_are_shown_and_written_and_come_back_in_order(path: Path):
    assert emit(path, *EVENTS) == list(EVENTS)
    lines, end = read_events(path)
    assert tuple(line.event for line in lines) == EVENTS
    assert end == path.stat().st_size
    assert [line.at for line in lines] == sorted(line.at for line in lines)


def test_one_event_is_one_line(path: Path):
    emit(path, *EVENTS)
    assert len(path.read_bytes().splitlines()) == len(EVENTS)


def test_a_line_that_a_full_disk_has_torn_is_gone_after_a_restart(path: Path):
    emit(path, *EVENTS[:2])
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])
        emit(path, EVENTS[2])
        left = EVENTS[:1] if keep >= first_line else ()
        assert [line.event for line in read_events(path)[0]] == [*left, EVENTS[2]]


def test_a_disk_that_fills_up_takes_no_half_of_a_line_and_later_it_goes_on(path: Path):
    log = EventLog(path, show=lambda _: None)
    log.emit(EVENTS[0])
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1, 40):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
        try:
            with pytest.raises(RunError, match="cannot write"):
                log.emit(EVENTS[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size
    log.emit(EVENTS[2])
    log.close()
    assert [line.event for line in read_events(path)[0]] == [EVENTS[0], EVENTS[2]]


def test_a_restarted_process_appends(path: Path):
    emit(path, EVENTS[0])
    emit(path, EVENTS[1])
    assert [line.event for line in read_events(path)[0]] == [EVENTS[0], EVENTS[1]]


def test_a_reader_goes_on_where_it_stopped(path: Path):
    assert read_events(path) == ([], 0)
    emit(path, EVENTS[0])
    _, offset = read_events(path)
    assert read_events(path, offset=offset) == ([], offset)
    emit(path, *EVENTS[1:])
    lines, _ = read_events(path, offset=offset)
    assert tuple(line.event for line in lines) == EVENTS[1:]


def test_a_line_that_is_half_written_is_read_when_it_is_whole(path: Path):
    emit(path, *EVENTS[:2])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        lines, offset = read_events(path)
        assert (len(lines), offset) == ((0, 0) if cut < first else (1, first))
        path.write_bytes(whole)
        rest, end = read_events(path, offset=offset)
        assert [line.event for line in lines + rest] == list(EVENTS[:2])
        assert end == len(whole)


def test_every_event_has_a_tag_of_its_own_that_is_its_name():
    kinds = msgspec.inspect.type_info(Stamped)
    assert isinstance(kinds, msgspec.inspect.StructType)
    event = next(field.type for field in kinds.fields if field.name == "event")
    assert isinstance(event, msgspec.inspect.UnionType)
    for kind in event.types:
        assert isinstance(kind, msgspec.inspect.StructType)
        words = kind.cls.__name__
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")
        assert kind.tag == snake


LARGE = Warned(text="x" * 400)


def test_a_log_that_is_large_is_put_aside_and_its_size_stays_bounded(path: Path):
    log = EventLog(path, show=lambda _: None, most_bytes=2000)
    for _ in range(50):
        log.emit(LARGE)
        assert path.stat().st_size <= 2000
    log.close()
    assert put_aside(path).stat().st_size <= 2000
    assert sorted(p.name for p in path.parent.iterdir()) == ["events.1.jsonl", "events.jsonl"]
    kept = GrowingLog(path).read()
    assert 4 <= len(kept) <= 8
    assert len(newest_events(path, num_bytes=4000)) == len(kept)
    line = path.stat().st_size // len(read_events(path)[0])
    assert len(newest_events(path, num_bytes=5 * line + 9)) == 5


def test_who_follows_a_log_misses_nothing_when_it_is_put_aside(path: Path):
    """In each place between two reads."""
    for reads_every in (1, 2, 3):
        directory = path.with_name(f"every-{reads_every}")
        log = EventLog(directory / "events.jsonl", show=lambda _: None, most_bytes=2000)
        growing, seen = GrowingLog(directory / "events.jsonl"), []
        for number in range(40):
            log.emit(Warned(text=f"{number} " + "x" * 400))
            if number % reads_every == 0:
                seen += growing.read()
        seen += growing.read()
        log.close()
        assert [int(s.event.text.split()[0]) for s in seen] == list(range(40))
