"""A sound run is proved; what was changed in it, or was wrong from the start, is found."""

import shutil
import sqlite3

import pytest
from msgspec.structs import replace
from tests.unit.host.conftest import CONFIG

from atoll.config import run_digest
from atoll.errors import AtollError
from atoll.host.audit import Proved, Unproved, audit, fault_of_regions
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net.records import Committed, Led, RosterEntry
from atoll.outer.checkpoint import MANIFEST_FILE, STATE_FILE, StateStore
from atoll.outer.manifest import manifest_of


@pytest.fixture
def run(recorded):
    for _ in range(3):
        recorded.commit_round()
    return recorded


def texts(kind, findings) -> str:
    return "\n".join(finding.text for finding in findings if isinstance(finding, kind))


def flip(path, *, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def blobs_of(run, *, round_id: int):
    records = [entry.record for entry in run.opened.journal.entries]
    commits = [record for record in records if isinstance(record, Committed)]
    return [run.home / "blobs" / update.digest for update in commits[round_id - 1].updates]


# --- what is sound -------------------------------------------------------------------------------


def test_a_whole_run_is_proved_from_state_0_to_the_newest(run):
    findings = list(audit(run.path))
    proved = texts(Proved, findings)
    assert "rounds: 3 of 5 committed" in proved
    assert "leases: 48 samples" in proved
    assert "updates: those of rounds 1 to 3" in proved
    assert "states 2 to 3 on disk" in proved
    assert "states 0 to 3 computed anew" in proved
    assert texts(Unproved, findings) == ""


def test_where_updates_are_gone_it_goes_on_from_the_next_state_on_disk(run):
    blobs_of(run, round_id=1)[0].unlink()
    findings = list(audit(run.path))
    assert "states 0, 3 computed anew" in texts(Proved, findings)
    assert "state 1 cannot be computed" in texts(Unproved, findings)


def test_a_run_without_a_round_is_proved(recorded):
    findings = list(audit(recorded.path))
    assert "rounds: 0 of 5 committed" in texts(Proved, findings)
    assert "state 0 computed anew" in texts(Proved, findings)


def test_an_audit_changes_nothing(run):
    (run.home / "blobs" / ".tmp-1").write_bytes(b"half of a blob")
    before = {path: path.stat().st_mtime_ns for path in run.home.rglob("*")}
    list(audit(run.path))
    assert {path: path.stat().st_mtime_ns for path in run.home.rglob("*")} == before


def test_a_state_that_is_not_agreed_on_yet_is_open(run):
    run.agree = lambda: None
    run.commit_round()
    findings = list(audit(run.path))
    assert "state 3 on disk" in texts(Proved, findings)
    assert "not agreed on state 4 yet" in texts(Unproved, findings)


# --- files that changed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "at"), [(STATE_FILE, -1), (STATE_FILE, 3_000), (STATE_FILE, 30), (MANIFEST_FILE, -9)]
)
def test_a_flipped_bit_in_a_state_is_found(run, file, at):
    flip(run.home / "states" / "000002" / file, at=at)
    with pytest.raises(AtollError, match=r"states.000002"):
        list(audit(run.path))


def test_a_flipped_bit_in_an_update_is_found(run):
    blob = blobs_of(run, round_id=2)[0]
    flip(blob)
    with pytest.raises(AtollError, match=blob.name):
        list(audit(run.path))


def test_a_state_under_the_name_of_another_round_is_found(run):
    states = run.home / "states"
    shutil.rmtree(states / "000002")
    shutil.copytree(states / "000003", states / "000002")
    with pytest.raises(AtollError, match="000002"):
        list(audit(run.path))


def test_a_whole_state_that_is_not_the_agreed_one_is_found(run):
    shutil.rmtree(run.home / "blobs")  # so that it is not computed anew
    run.state.params_N[0] += 1
    manifest = manifest_of(run.state, run=run_digest(CONFIG))
    StateStore(run.home / "states", keep=2).save(run.state, manifest, now=0.0)
    with pytest.raises(AtollError, match="000003 is not the state that the members agreed on"):
        list(audit(run.path))


def test_a_journal_that_was_set_back_is_found(run):
    with sqlite3.connect(run.path / "journal.sqlite") as db:
        db.execute("DELETE FROM journal WHERE seq > 8")
    db.close()
    with pytest.raises(AtollError, match="state 3 is on disk, but the journal ends with round 1"):
        list(audit(run.path))


def test_a_signature_of_another_is_found(run):
    with sqlite3.connect(run.path / "journal.sqlite") as db:
        db.execute("UPDATE journal SET signature = zeroblob(64) WHERE seq = 5")
    db.close()
    with pytest.raises(AtollError, match="journal entry 5: the run's authority did not sign it"):
        list(audit(run.path))


def test_another_run_toml_is_found(run):
    path = run.path / "run.toml"
    path.write_text(path.read_text().replace("lr = 0.001", "lr = 0.002"))
    with pytest.raises(AtollError, match=r"run.toml has changed"):
        list(audit(run.path))


def test_a_directory_without_a_journal_is_no_run(run):
    (run.path / "journal.sqlite").unlink()
    with pytest.raises(AtollError, match="has not begun"):
        list(audit(run.path))


# --- what a host must not write ------------------------------------------------------------------


def unfair(commit):
    first, *others = commit.roster
    return replace(commit, roster=(replace(first, share=0.6), *others))


def twice(commit):
    first, second = commit.roster
    return replace(commit, roster=(first, replace(second, leases=first.leases)))


def longer(commit):
    first, *others = commit.roster
    return replace(commit, roster=(replace(first, num_tokens=2 * first.num_tokens), *others))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unfair, "shares of its roster add up to 1.1"),
        (twice, "does not hold lease 1"),
        (longer, "are not those of its leases"),
        (lambda commit: replace(commit, round=2), "round 2 follows round 0"),
        (lambda commit: replace(commit, roster=commit.roster[::-1]), "members in their order"),
        (lambda commit: replace(commit, roster=()), "shares of its roster add up to 0"),
        (lambda commit: replace(commit, fragment=1), "not the turn of fragment 1"),
        (lambda commit: replace(commit, update_codec="fp32"), "not those of the run"),
        (lambda commit: replace(commit, updates=commit.updates[1:]), "not one for each slice"),
        (
            lambda commit: replace(commit, updates=commit.updates[::-1]),
            "not one for each slice|computed anew",
        ),
    ],
)
def test_a_commit_that_breaks_a_rule_is_found(recorded, change, message):
    recorded.change = change
    recorded.commit_round()
    with pytest.raises(AtollError, match=message):
        list(audit(recorded.path))


def test_a_sample_that_is_leased_again_after_its_commit_is_found(run):
    run.next_sample = 0
    run.commit_round()
    with pytest.raises(AtollError, match="sample 0 is committed for the second time"):
        list(audit(run.path))


def test_updates_that_lead_elsewhere_are_found(run):
    """The state that was agreed on is not what the committed updates give."""
    run.state.params_N[0] += 1
    run.commit_round()
    shutil.rmtree(run.home / "states")
    with pytest.raises(AtollError, match="state 4 computed anew"):
        list(audit(run.path))


def test_epochs_that_do_not_rise_are_found(run):
    for epoch in (1, 3):
        run.opened.journal.append([Led(epoch=epoch, address="reef:7", at=0.0)])
    assert "epochs: 2 leads, one after the other, the last in epoch 3" in texts(
        Proved, audit(run.path)
    )
    run.opened.journal.append([Led(epoch=3, address="lagoon:8", at=0.0)])
    with pytest.raises(AtollError, match="epoch 3 follows epoch 3"):
        list(audit(run.path))


# --- regions -------------------------------------------------------------------------------------


def divided(widths: tuple[int, ...], *, says_so: bool) -> Committed:
    """Return a commit of one slice whose tree has these widths, with somebody in each region."""
    entry = RosterEntry(
        peer=PeerId("a"),
        share=0.0,
        num_tokens=1,
        num_steps=1,
        mean_loss=0.0,
        leases=(),
        contribution=digest_of(b""),
    )
    return Committed(
        round=RoundId(1),
        fragment=0,
        codec="int8",
        update_codec="int8",
        roster=tuple(replace(entry, region=region) for region in range(widths[0])),
        updates=(),
        partials=((digest_of(b""),),) * (sum(widths) - 1),
        widths=widths if says_so else (),
    )


def fault_of(commit: Committed) -> str:
    return fault_of_regions(commit, 1, fan_in=4)


def test_a_roster_is_divided_as_the_journal_says_or_as_all_were_before_it_said_so():
    for widths in ((2, 1), (4, 1), (5, 2, 1)):  # with four at most, from the regions up
        assert fault_of(divided(widths, says_so=False)) == ""
    for widths in ((2, 1), (5, 1), (4, 2, 1), (5, 3, 2, 1)):
        assert fault_of(divided(widths, says_so=True)) == ""
    assert "not those of a tree" in fault_of(divided((4, 2, 1), says_so=False))


@pytest.mark.parametrize("widths", [(3, 2), (2, 2, 1), (2, 0, 1), (4, 1), (2, 1), (1,), (3, -1, 1)])
def test_what_is_no_tree_of_this_commit_is_none(widths):
    commit = replace(divided((3, 1), says_so=True), widths=widths)
    assert "not those of a tree" in fault_of(commit)
