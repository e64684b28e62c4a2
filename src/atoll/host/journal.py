"""The append-only record of a run. What is not in here did not happen.

The state of a run is a function of its records: `host/run.py` replays them. Where they are kept is
the business of a store.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from atoll.errors import DamagedError, DeposedError, RunError
from atoll.host.store import Store
from atoll.ids import Digest
from atoll.net.records import NO_HASH, Entry, Led, Record, decode, encode, entry_hash


class Journal:
    """The journal of one run: one host appends, others may read meanwhile.

    Raises:
        DamagedError: an entry is not what it was when it was written, or one is missing.
    """

    def __init__(self, store: Store, *, sign: Callable[[bytes], bytes]) -> None:
        self.store = store
        self._sign = sign
        self.entries: list[Entry] = []
        self.led: Entry | None = None  # the newest record of a host that became the leader
        self.refresh()

    @property
    def epoch(self) -> int:
        """How often a host became the leader."""
        return 0 if self.led is None else led_in(self.led).epoch

    @property
    def next_seq(self) -> int:
        return len(self.entries)

    def refresh(self) -> list[Entry]:
        """Return what others have appended since, after checking it.

        Raises:
            DamagedError: it does not follow what was there, or was not signed with our key.
        """
        news = self.store.read(start=self.next_seq)
        last = self.entries[-1].hash if self.entries else NO_HASH
        for entry in checked(news, place=self.store.place, start=self.next_seq, previous=last):
            # Ed25519 signs the same bytes the same way every time
            if self._sign(bytes.fromhex(entry.hash)) != entry.signature:
                raise damaged(self.store.place, entry.seq)
        self.note(news)
        return news

    def append(self, records: Sequence[Record]) -> list[Entry]:
        """Make the records durable, all or none, and return their entries.

        Raises:
            DeposedError: another host has become the leader. Nothing was appended.
            RunError: the disk is full or gone. Nothing was appended.
        """
        entries = self.signed(records)
        if entries and not self.store.append(entries):
            raise self.superseded()
        self.note(entries)
        return entries

    def signed(self, records: Sequence[Record]) -> list[Entry]:
        """Return the entries that these records would be, if nobody appends before."""
        entries: list[Entry] = []
        seq = self.next_seq
        previous = self.entries[-1].hash if self.entries else NO_HASH
        for record in records:
            body = encode(record)
            decode(body)  # JSON has no infinity, for one: what cannot be read again is not written
            digest = entry_hash(seq=seq, previous=previous, body=body)
            entries.append(Entry(seq, previous, body, digest, self._sign(bytes.fromhex(digest))))
            seq, previous = seq + 1, digest
        return entries

    def next_led(self, address: str, *, at: float, above: int = 0) -> Entry:
        """Return the entry with which a host becomes the leader, if nobody appends before.

        `above`: an epoch that some member knows of, though this journal does not.
        """
        epoch = max(self.epoch, above) + 1
        (entry,) = self.signed([Led(epoch=epoch, address=address, at=at)])
        return entry

    def close(self) -> None:
        self.store.close()

    def note(self, entries: Sequence[Entry]) -> None:
        """Have these as the newest entries: they are in the store."""
        self.entries += entries
        self.led = next((e for e in reversed(entries) if e.is_led), self.led)

    def superseded(self) -> RunError:
        """Return why the store has not taken our entries."""
        before = self.epoch
        self.refresh()
        if self.led is not None and self.epoch > before:
            return deposed(self.epoch, address=led_in(self.led).address)
        return RunError(
            f"another process writes to the journal {self.store.place}",
            hint="stop the one that should not: two hosts cannot share a run",
        )


def led_in(entry: Entry) -> Led:
    record = entry.record
    assert isinstance(record, Led), "kept because it is one"
    return record


def deposed(epoch: int, *, address: str) -> DeposedError:
    """Return what a host says that no longer leads, because another one does."""
    return DeposedError(
        f"the host at {address} leads this run by now, in epoch {epoch}: this one is deposed",
        hint="nothing is lost; with a shared journal, start this one with --standby; "
        "if it has the newest journal all the same: atoll takeover --help",
    )


def damaged(place: str, seq: int) -> DamagedError:
    return DamagedError(
        f"the journal {place} is damaged at entry {seq}", hint="restore it from a backup"
    )


def checked(
    entries: Iterable[Entry], *, place: str, start: int = 0, previous: Digest = NO_HASH
) -> Iterator[Entry]:
    """Yield the entries in order, each checked against the chain from `start` on.

    Raises:
        DamagedError: an entry is not what it was when it was written, or one is missing.
    """
    for seq, entry in enumerate(entries, start=start):
        if (entry.seq, entry.previous) != (seq, previous) or not is_whole(entry):
            raise damaged(place, seq)
        previous = entry.hash
        yield entry


def is_whole(entry: Entry) -> bool:
    """Return whether the entry's hash is that of its content, and the content is a record."""
    try:
        decode(entry.body)
        return entry_hash(seq=entry.seq, previous=entry.previous, body=entry.body) == entry.hash
    except (ValueError, TypeError, OverflowError):  # a damaged file holds any values
        return False
