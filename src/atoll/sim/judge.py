"""Whether a run that had faults ended as it should have: what is wrong, a sentence for each.

journal      one chain, audited; whoever led, what it said is in it
                                      leases   every sample in one place, none committed twice
states       all members hold the agreed ones
work         the model has what the commits name, once; no survivor did anything in vain
rounds       each ends in time once the faults are over, and none who is there is left out for long
code         nobody ended without a reason, no task failed without anybody to tell
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atoll.config import run_digest
from atoll.data import leases
from atoll.errors import AtollError
from atoll.events import (
    Connected,
    Event,
    HostStarted,
    PeerLeft,
    PeerRests,
    RoundCommitted,
    StateDiffers,
    Stopped,
    TrainerDied,
)
from atoll.exchange.sizes import encoded_slices
from atoll.host import run as decisions
from atoll.host.audit import audit
from atoll.ids import PeerId, RoundId
from atoll.model.initial import initial_of
from atoll.model.layout import layout_of
from atoll.net.records import Agreed, Committed, Leased, Record, Released
from atoll.outer.saved import read_saved
from atoll.sim.faults import DiskFull, Fault
from atoll.sim.fleet import Fleet
from atoll.sim.seat import LEFT
from atoll.sim.setting import BUILT_IN, HOST, STANDBY, STANDBY_BUILT_IN
from atoll.sim.trainer import Tally

TOLERANCE = 1e-6
JUDGED = (  # the events that say something here
    *(Connected, HostStarted, PeerLeft, PeerRests, RoundCommitted, StateDiffers, Stopped),
    TrainerDied,
)


@dataclass
class Outcome:
    """What is left of a run once it has ended."""

    fleet: Fleet
    happened: list[Fault]
    over_at: float = 0.0  # the last fault is mended
    records: list[Record] = field(default_factory=list)

    @property
    def may_have_missed_the_end(self) -> bool:
        """Whether the run was complete while a fault may have kept a member away for too long."""
        sync = self.fleet.config.sync
        complete_at = next(
            (
                at
                for at, name, e in self.trace
                if name in self.fleet.hosts and isinstance(e, Stopped)
            ),
            0.0,
        )
        return complete_at <= self.over_at + sync.reconnect_s + sync.silent_s

    @property
    def trace(self) -> list[tuple[float, str, Event]]:
        return self.fleet.trace

    @property
    def commits(self) -> list[Committed]:
        return [record for record in self.records if isinstance(record, Committed)]

    def reported(self, kind: type[Event]) -> list[Event]:
        return [e for _, _, e in self.trace if isinstance(e, kind)]

    def reporters(self, kind: type[Event]) -> set[str]:
        """Return the names of those that have reported such an event."""
        return {name for _, name, e in self.trace if isinstance(e, kind)}

    def rosters(self) -> list[list[str]]:
        """Return who is in each commit, by name."""
        names = {self.fleet.peer_id(name): name for name in self.fleet.devices}
        return [sorted(names[entry.peer] for entry in c.roster) for c in self.commits]


def judge(outcome: Outcome) -> list[str]:
    """Return all that is wrong."""
    wrong = [*_ends(outcome), *_journal(outcome), *_rounds(outcome), *_left_out(outcome)]
    if not wrong:  # else what follows would only say so once more
        wrong += [
            *_history(outcome),
            *_states(outcome),
            *_leases(outcome),
            *_model(outcome),
            *_work(outcome),
        ]
    return wrong


# --- code ----------------------------------------------------------------------------------------


def _ends(outcome: Outcome) -> Iterator[str]:
    for context in outcome.fleet.loop.bugs:
        yield f"a bug: {context.get('message')}: {context.get('exception')!r}"
    excused = {fault.who for fault in outcome.happened if isinstance(fault, DiskFull)}
    for host, built_in in ((HOST, BUILT_IN), (STANDBY, STANDBY_BUILT_IN)):
        if host in excused:
            excused.add(built_in)  # they share a disk
    for name, seat in outcome.fleet.seats.items():
        for end in seat.ends:
            is_late = "the run is complete" in end and outcome.may_have_missed_the_end
            is_explained = name in excused or is_late or _lost_the_lead(outcome, name, end)
            if end not in ("", LEFT) and not is_explained:
                yield f"{name} ended: {end}"


def _lost_the_lead(outcome: Outcome, name: str, end: str) -> bool:
    """Return whether a host ended because of what had happened to it, or to its database."""
    is_host = outcome.fleet.database is not None and name in outcome.fleet.hosts
    reasons = ("DeposedError: ", "RunError: the database cannot be reached")
    return is_host and bool(outcome.happened) and end.startswith(reasons)


# --- journal and rounds --------------------------------------------------------------------------


def _journal(outcome: Outcome) -> Iterator[str]:
    try:
        list(audit(outcome.fleet.directory))
    except AtollError as error:
        yield f"the audit: {error}"


def _history(outcome: Outcome) -> Iterator[str]:
    """Whoever led: each round was committed by one host, as the journal has it, and leads last."""
    written = {commit.round: {entry.peer for entry in commit.roster} for commit in outcome.commits}
    committed_by: dict[RoundId, str] = {}
    quiet_at = outcome.over_at + round_limit_s(outcome.fleet)
    for at, name, event in outcome.trace:
        match event:
            case RoundCommitted(round=round_id, roster=roster) if name in outcome.fleet.hosts:
                if (other := committed_by.get(round_id)) is not None:
                    yield f"round {round_id} was committed by {other}, and again by {name}"
                if written.get(round_id) != set(roster):
                    yield f"round {round_id} is in the journal otherwise than {name} said"
                committed_by[round_id] = name
            case HostStarted(epoch=epoch) if at > quiet_at:
                yield f"{name} leads in epoch {epoch}, though nothing went wrong any more"


def _rounds(outcome: Outcome) -> Iterator[str]:
    config = outcome.fleet.config
    if len(outcome.commits) != config.sync.rounds:
        yield f"{len(outcome.commits)} rounds of {config.sync.rounds} are committed"
    limit_s = round_limit_s(outcome.fleet)
    before = outcome.over_at
    for at, _, event in outcome.trace:
        if isinstance(event, RoundCommitted) and at > outcome.over_at:
            if at - before > limit_s:
                yield f"round {event.round} took {at - before:.0f} s, {limit_s:.0f} are enough"
            before = at


def _left_out(outcome: Outcome) -> Iterator[str]:
    """Whoever is there and trains is in a roster now and then: not always too late, and why ever.

    In as much time as a round may take it has done a round's work, whatever it was at before.
    """
    limit_s = round_limit_s(outcome.fleet)
    since: dict[PeerId, float] = {}  # it came, or was in a roster, and nothing went wrong any more
    names = {outcome.fleet.peer_id(name): name for name in outcome.fleet.devices}
    for at, name, event in outcome.trace:
        match event:
            case HostStarted():
                since.clear()  # who is gone by then, nobody tells
            case Connected() if name in outcome.fleet.devices:
                since[outcome.fleet.peer_id(name)] = max(at, outcome.over_at)
            case PeerRests(peer=peer, rests=False):
                since[peer] = max(at, outcome.over_at)
            case PeerLeft(peer=peer) | PeerRests(peer=peer):
                since.pop(peer, None)
            case RoundCommitted(round=round_id, roster=roster) if name in outcome.fleet.hosts:
                since |= {peer: max(at, outcome.over_at) for peer in roster if peer in since}
                for peer in [peer for peer, then in since.items() if at - then > limit_s]:
                    left_out_s = at - since.pop(peer)
                    yield (
                        f"{names[peer]} is there, but in no roster for {left_out_s:.0f} s, "
                        f"up to round {round_id}"
                    )


def round_limit_s(fleet: Fleet) -> float:
    """Return how long a round may take when nothing goes wrong any more.

    The slowest peer has to do a round's work, perhaps twice, and every patience of the protocol
    may have to run out once: of the host with who went away, of a member with who does not answer.
    """
    sync, config = fleet.config.sync, fleet.config
    slowest_s = max(spec.step_s for spec in fleet.setting.peers) * config.steps_per_round * 1.2
    return 4 * slowest_s + 2 * (sync.reconnect_s + sync.silent_s) + 60.0


# --- states --------------------------------------------------------------------------------------


def _states(outcome: Outcome) -> Iterator[str]:
    fleet = outcome.fleet
    last = RoundId(fleet.config.sync.rounds)
    agreed = {r.round: r.state for r in outcome.records if isinstance(r, Agreed)}
    for event in outcome.reported(StateDiffers):
        yield f"a state differs: {event}"
    for name, seat in fleet.members.items():
        if not seat.is_done:
            continue
        try:
            _, digest = read_saved(fleet.home(name) / "states", last, run=run_digest(fleet.config))
        except AtollError as error:
            yield f"{name} does not hold the last state: {error}"
            continue
        if digest != agreed[last]:
            yield f"{name} holds {digest[:12]} as the last state, agreed is {agreed[last][:12]}"


# --- leases --------------------------------------------------------------------------------------


def _leases(outcome: Outcome) -> Iterator[str]:
    fleet = outcome.fleet
    layout, sync = layout_of(fleet.config), fleet.config.sync
    run = decisions.replay(outcome.records, slice_bytes=encoded_slices(layout, sync.update_codec))
    book = run.book
    spans = [*book.committed, *book.free]
    spans += [leases.Span(one.start, one.stop) for held in book.held.values() for one in held]
    place = 0
    for span in sorted(spans):
        if span.start != place:
            yield f"sample {min(span.start, place)} is lost, or in two places"
        place = span.stop
    if place != book.frontier:
        yield f"samples {place} to {book.frontier} are lost"


# --- work ----------------------------------------------------------------------------------------


def samples_of(records: list[Record]) -> dict[int, range]:
    """Return the samples of each lease."""
    granted = (record for record in records if isinstance(record, Leased))
    return {one.id: range(one.start, one.stop) for record in granted for one in record.leases}


def granted_to(records: list[Record]) -> dict[PeerId, set[int]]:
    """Return the samples that each peer ever leased."""
    granted: dict[PeerId, set[int]] = defaultdict(set)
    for record in records:
        if isinstance(record, Leased):
            for lease in record.leases:
                granted[record.peer].update(range(lease.start, lease.stop))
    return granted


def _model(outcome: Outcome) -> Iterator[str]:
    """Compare the final model with what the commits say that it contains."""
    fleet = outcome.fleet
    sync = fleet.config.sync
    if fleet.setting.model != "tally" or (sync.codec, sync.update_codec) != ("fp64", "fp64"):
        return
    layout = layout_of(fleet.config)
    done = next((name for name, seat in fleet.members.items() if seat.is_done), None)
    if done is None:
        return  # all may have missed the end: else somebody has ended with a reason, or not at all
    last, run = RoundId(sync.rounds), run_digest(fleet.config)
    state, _ = read_saved(fleet.home(done) / "states", last, run=run)
    initial_N = initial_of(layout, seed=fleet.config.seed)
    moved_N = (initial_N.astype(np.float64) - state.params_N) / Tally.STEP
    samples = samples_of(outcome.records)
    for commit in outcome.commits:
        first = layout.fragments[commit.fragment].start
        for entry in commit.roster:
            for lease_id in entry.leases:
                for sample in samples[lease_id]:
                    has = moved_N[first + sample]
                    if abs(has - entry.share) > TOLERANCE / Tally.STEP:
                        yield (
                            f"sample {sample}, committed in round {commit.round} with share "
                            f"{entry.share:.3f}, is in the model with {has:.3f}"
                        )
    yield from _surplus(outcome, moved_N)


def _surplus(outcome: Outcome, moved_N: NDArray[np.float64]) -> Iterator[str]:
    """Nothing else may be in the model: in each fragment, no sample but with its share, or not."""
    layout = layout_of(outcome.fleet.config)
    samples = samples_of(outcome.records)
    shares: dict[int, set[float]] = defaultdict(lambda: {0.0})
    for commit in outcome.commits:
        for entry in commit.roster:
            for lease_id in entry.leases:
                for sample in samples[lease_id]:
                    # Another fragment has it with the share that its peer has at that one's turn.
                    shares[sample] |= _shares(outcome, entry.peer)
    for fragment in layout.fragments:
        part_N = moved_N[fragment.start : fragment.stop]
        for sample in map(int, np.flatnonzero(np.abs(part_N) > TOLERANCE / Tally.STEP)):
            known = np.array(sorted(shares[sample]))
            if np.abs(known - part_N[sample]).min() > TOLERANCE / Tally.STEP:
                yield f"the model has sample {sample} with {part_N[sample]:.3f}, of {known}"


def _shares(outcome: Outcome, peer: PeerId) -> set[float]:
    return {e.share for commit in outcome.commits for e in commit.roster if e.peer == peer}


def _work(outcome: Outcome) -> Iterator[str]:
    """A survivor's steps are each taken once, and each is in a commit or still in its hands."""
    samples = samples_of(outcome.records)
    gone = {record.peer for record in outcome.records if isinstance(record, Released)}
    committed: Counter[int] = Counter()
    for commit in outcome.commits:
        for entry in commit.roster:
            committed.update(s for lease_id in entry.leases for s in samples[lease_id])
    granted = granted_to(outcome.records)
    unlucky = outcome.reporters(TrainerDied)
    for name, device in outcome.fleet.devices.items():
        seat = outcome.fleet.members[name]
        died = seat.num_deaths or len(seat.ends) > 1
        if died or name in unlucky or len(device.lives) != 1:
            continue
        peer = outcome.fleet.peer_id(name)
        if peer in gone:
            continue
        held = {sample for sample in granted[peer] if not committed[sample]}
        for sample, times in Counter(device.lives[0]).items():
            if times > 1:
                yield f"{name} did the step with sample {sample} {times} times"
            if not committed[sample] and sample not in held:
                yield f"{name} did the step with sample {sample} in vain"
