"""Proof that a run is what its journal says, from the host's directory alone.

    entries --chain, signatures--> records --leases, rosters--> commits --updates--> states

Everything is recomputed: nothing that was decided or reported while the run went on is believed.
Nothing is written, so a run can be audited while it goes on.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum
from pathlib import Path
from typing import TypeAlias

from atoll.config import RunConfig, load_run_config, parse_canonical, run_digest
from atoll.errors import AtollError, DamagedError, RunError
from atoll.exchange.codec import CODECS
from atoll.exchange.sizes import slices_of
from atoll.exchange.tree import Tree
from atoll.host.retrace import Retraced, retrace
from atoll.host.stores import read_journal
from atoll.ids import Digest, Lease, LeaseId, PeerId, RoundId, digest_of
from atoll.model.layout import layout_of
from atoll.net.authority import Authority
from atoll.net.identity import verify
from atoll.net.records import (
    Admitted,
    Agreed,
    Committed,
    Entry,
    Genesis,
    Leased,
    Led,
    Record,
    Released,
)
from atoll.outer.saved import saved_rounds

SHARE_TOLERANCE = 1e-9  # of a sum of thousands of shares, each rounded
DISHONEST = "the host that wrote this was faulty or not honest: do not rely on this run"


@dataclass(frozen=True, slots=True)
class Proved:
    text: str


@dataclass(frozen=True, slots=True)
class Unproved:
    """What the files at hand do not tell: neither true nor false."""

    text: str


Finding: TypeAlias = Proved | Unproved


def audit(directory: Path) -> Iterator[Finding]:
    """Yield what holds of the run in this host's directory, as far as the files at hand prove it.

    Raises:
        AtollError: something does not hold. The message names the journal entry or the file.
    """
    # Listed first: what is on disk by now cannot be newer than the journal that is read next.
    home = directory / "built-in"
    kept = saved_rounds(home / "states")
    entries = _entries(directory)
    history = [(entry.seq, _record(entry)) for entry in entries]
    genesis = _genesis(directory, history)
    config = parse_canonical(genesis.config.encode())
    yield _prove_signatures(entries, genesis)
    yield Proved(f"config: run.toml is what the run was begun with, {genesis.run[:12]}")
    yield _prove_epochs(history)
    yield _prove_leases(history, config)
    commits = _commits(history, config, genesis)
    yield Proved(f"rounds: {len(commits)} of {config.sync.rounds} committed, shares adding up to 1")
    if divided := [round_id for round_id, commit in commits.items() if commit.partials]:
        text = "each names a partial sum of each slice of each region of its roster"
        yield Proved(f"regions: of rounds {_ranges(divided)}, {text}")
    agreed = _agreed(history, len(commits))
    if kept and kept[-1] > len(commits):
        raise RunError(
            f"state {kept[-1]} is on disk, but the journal ends with round {len(commits)}",
            hint="the journal was set back: restore the newest copy of it",
        )
    states = retrace(home, config, commits=commits, agreed=agreed, kept=kept)
    yield from _report(states, agreed=agreed)
    if len(commits) not in agreed:
        yield Unproved(f"states: the members have not agreed on state {len(commits)} yet")


def _report(states: Retraced, *, agreed: Collection[RoundId]) -> Iterator[Finding]:
    if states.updates:
        yield Proved(f"updates: those of rounds {_ranges(states.updates)} are what was committed")
    if states.saved:
        yield Proved(f"{_states(states.saved)} on disk: whole, and as agreed")
    if states.recomputed:
        yield Proved(f"{_states(states.recomputed)} computed anew: as agreed")
    if unknown := set(agreed) - {*states.saved, *states.recomputed}:
        text = _states(sorted(unknown))
        yield Unproved(f"{text} cannot be computed: updates before them are not at hand")


def _states(rounds: Sequence[RoundId]) -> str:
    return f"state{'s' if len(rounds) > 1 else ''} {_ranges(rounds)}"


# --- the journal ---------------------------------------------------------------------------------


def _entries(directory: Path) -> list[Entry]:
    if not (entries := read_journal(directory)):
        raise RunError(
            f"the run in {directory} has not begun: it has no journal",
            hint=f"serve it with: atoll host {directory}",
        )
    return entries


def _record(entry: Entry) -> Record:
    try:
        return entry.record
    except (ValueError, RecursionError) as error:
        raise _wrong(entry.seq, f"not a record: {error}") from error


def _genesis(directory: Path, history: Sequence[tuple[int, Record]]) -> Genesis:
    """Return the first record, which names the config and the authority of this directory."""
    genesis = history[0][1]
    if not isinstance(genesis, Genesis) or digest_of(genesis.config.encode()) != genesis.run:
        raise _wrong(0, "it does not say what the run is")
    authority = Authority.load(directory)
    named = (genesis.authority, genesis.public_key)
    if named != (authority.digest, authority.public_key.hex()):
        raise _wrong(0, f"it names another authority than {directory / 'authority.pem'}")
    path = directory / "run.toml"
    if run_digest(load_run_config(path)) != genesis.run:
        raise RunError(
            f"{path} has changed since the run began", hint="restore it: the journal has its values"
        )
    return genesis


def _prove_signatures(entries: Sequence[Entry], genesis: Genesis) -> Finding:
    key = bytes.fromhex(genesis.public_key)
    for entry in entries:
        if not verify(key, bytes.fromhex(entry.hash), entry.signature):
            raise _wrong(entry.seq, "the run's authority did not sign it")
    authority = genesis.authority[:12]
    return Proved(
        f"journal: {len(entries)} entries in one chain, all signed by authority {authority}"
    )


def _prove_epochs(history: Iterable[tuple[int, Record]]) -> Finding:
    epoch = num_leads = 0
    for seq, record in history:
        if isinstance(record, Led):
            if record.epoch <= epoch:
                raise _wrong(seq, f"epoch {record.epoch} follows epoch {epoch}")
            epoch, num_leads = record.epoch, num_leads + 1
    leads = "one lead" if num_leads == 1 else f"{num_leads} leads, one after the other"
    return Proved(f"epochs: {leads}, the last in epoch {epoch}")


@dataclass(slots=True)
class _Ledger:
    """Every lease, followed on its own, without the host's book."""

    sequence_length: int
    held: dict[LeaseId, tuple[PeerId, Lease]] = field(default_factory=dict)
    committed: list[tuple[int, int, int]] = field(default_factory=list)  # start, stop, entry
    newest: LeaseId = LeaseId(0)  # noqa: RUF009 - a plain number

    def note(self, seq: int, record: Record) -> None:
        match record:
            case Leased(peer=peer, leases=granted):
                for lease in granted:
                    if lease.id <= self.newest or lease.start >= lease.stop:
                        raise _wrong(seq, f"lease {lease.id} is not a new one")
                    self.held[lease.id] = (peer, lease)
                    self.newest = lease.id
            case Released(peer=peer, leases=ids):
                for lease_id in ids:
                    self._withdraw(seq, peer, lease_id)
            case Committed(roster=roster):
                for entry in roster:
                    leases = [self._withdraw(seq, entry.peer, i) for i in entry.leases]
                    num_samples = sum(lease.num_samples for lease in leases)
                    if entry.num_tokens != num_samples * self.sequence_length:
                        raise _wrong(seq, f"the tokens of {entry.peer} are not those of its leases")
                    self.committed += [(lease.start, lease.stop, seq) for lease in leases]
            case _:
                pass

    def _withdraw(self, seq: int, peer: PeerId, lease_id: LeaseId) -> Lease:
        holder, lease = self.held.pop(lease_id, ("", None))
        if lease is None or holder != peer:
            raise _wrong(seq, f"{peer} does not hold lease {lease_id}")
        return lease


def _prove_leases(history: Iterable[tuple[int, Record]], config: RunConfig) -> Finding:
    ledger = _Ledger(config.data.sequence_length)
    for seq, record in history:
        ledger.note(seq, record)
    spans = sorted(ledger.committed)
    for (_, stop, _), (start, _, seq) in pairwise(spans):
        if start < stop:
            raise _wrong(seq, f"sample {start} is committed for the second time", hint=DISHONEST)
    num_samples = sum(stop - start for start, stop, _ in spans)
    return Proved(f"leases: {num_samples} samples are committed, none of them twice")


# --- rounds --------------------------------------------------------------------------------------


def _commits(
    history: Iterable[tuple[int, Record]], config: RunConfig, genesis: Genesis
) -> dict[RoundId, Committed]:
    """Return the commits, rounds 1, 2, 3, ... without a gap, each of which is in order."""
    members = {genesis.built_in}
    commits: dict[RoundId, Committed] = {}
    for seq, record in history:
        match record:
            case Admitted(peer=peer):
                members.add(peer)
            case Committed():
                if record.round != len(commits) + 1:
                    raise _wrong(seq, f"round {record.round} follows round {len(commits)}")
                if problem := _fault_of(record, config, members):
                    raise _wrong(seq, f"round {record.round}: {problem}", hint=DISHONEST)
                commits[record.round] = record
            case _:
                pass
    return commits


def _fault_of(commit: Committed, config: RunConfig, members: set[PeerId]) -> str:
    """Return what is wrong with a commit, or nothing."""
    peers = [entry.peer for entry in commit.roster]
    shares = [entry.share for entry in commit.roster]
    if peers != sorted(set(peers)) or not members.issuperset(peers):
        return "its roster is not one of members in their order"
    if min(shares, default=0.0) < 0 or abs(fsum(shares) - 1) > SHARE_TOLERANCE:
        return f"the shares of its roster add up to {fsum(shares)!r}"
    if (commit.codec, commit.update_codec) != (config.sync.codec, config.sync.update_codec):
        return f"its codecs {commit.codec} and {commit.update_codec} are not those of the run"
    codec = CODECS[commit.update_codec]
    layout = layout_of(config)
    if commit.fragment != layout.fragment_of(commit.round).index:
        return f"it is not the turn of fragment {commit.fragment}"
    sizes = [codec.encoded_bytes(stop - start) for start, stop in slices_of(layout, commit.round)]
    if [update.num_bytes for update in commit.updates] != sizes:
        return "its updates are not one for each slice"
    return fault_of_regions(commit, len(sizes), fan_in=config.sync.region_size)


def fault_of_regions(commit: Committed, num_slices: int, *, fan_in: int) -> str:
    """Return what is wrong with how a roster is divided, and what its partial sums are, or nothing.

    Each group of the tree that has a contributor below it, and no other, has a partial sum of each
    slice. Where the journal does not say which tree it is, it is the lowest in which no group adds
    up more than `fan_in`.
    """
    tree: Tree | None
    if commit.widths:
        tree = Tree(num_slices, commit.widths)
        tree = tree if tree.is_one and tree.root == len(commit.partials) else None
    else:
        tree = Tree.below_root(num_slices, len(commit.partials), fan_in=fan_in)
    groups = {entry.region for entry in commit.roster}
    if tree is None or not groups <= set(range(tree.num_regions)):
        return "its regions are not those of a tree"
    summed = [group for group, digests in enumerate(commit.partials) if digests]
    if set(summed) != tree.with_parents(groups) - {tree.root}:
        return "its partial sums are not those of the regions of its roster"
    if any(len(commit.partials[group]) != num_slices for group in summed):
        return "its partial sums are not one for each slice"
    return ""


def _agreed(history: Iterable[tuple[int, Record]], num_rounds: int) -> dict[RoundId, Digest]:
    """Return the agreed state of each round that has one, which never changes."""
    agreed: dict[RoundId, Digest] = {}
    for seq, record in history:
        if isinstance(record, Agreed):
            if record.round > num_rounds or record.round in agreed:
                raise _wrong(seq, f"it is not for it to say what state {record.round} is")
            agreed[record.round] = record.state
    return agreed


def _ranges(rounds: Sequence[RoundId]) -> str:
    """Return e.g. `0 to 3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[RoundId]] = []
    for round_id in rounds:
        if runs and runs[-1][-1] + 1 == round_id:
            runs[-1].append(round_id)
        else:
            runs.append([round_id])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _wrong(seq: int, problem: str, *, hint: str = DISHONEST) -> AtollError:
    return DamagedError(f"journal entry {seq}: {problem}", hint=hint)
