"""The judge of a run finds what was planted: each kind of wrong, and nothing in a good run."""

import sqlite3

import pytest
from msgspec.structs import replace

from atoll.events import HostStarted, RoundCommitted
from atoll.host.stores import JOURNAL_FILE
from atoll.net.records import Committed
from atoll.sim.judge import judge, round_limit_s
from atoll.sim.play import Case, play
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

CASE = Case(
    setting=Setting(
        seed=1,
        peers=(PeerSpec(name="anna"), PeerSpec(name="ben")),
        run=RunSpec(rounds=2, vocab_size=512),
    )
)


@pytest.fixture
def outcome(tmp_path):
    outcome, wrong = play(CASE, tmp_path)
    assert wrong == []
    assert judge(outcome) == []
    return outcome


def only(wrong, text):
    return bool(wrong) and all(text in sentence for sentence in wrong)


def test_a_step_that_was_done_twice(outcome):
    (trained,) = outcome.fleet.devices["anna"].lives
    trained.append(trained[0])
    assert only(judge(outcome), "anna did the step with sample")


def test_a_step_in_vain(outcome):
    outcome.fleet.devices["ben"].lives[0].append(10**6)
    assert only(judge(outcome), "in vain")


def test_a_share_that_is_not_in_the_model(outcome):
    at = next(i for i, r in enumerate(outcome.records) if isinstance(r, Committed))
    commit = outcome.records[at]
    first = replace(commit.roster[0], share=commit.roster[0].share / 2)
    outcome.records[at] = replace(commit, roster=(first, *commit.roster[1:]))
    assert only(judge(outcome), "in the model")


def test_a_member_with_another_state(outcome):
    path = outcome.fleet.home("ben") / "states" / "000002" / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert only(judge(outcome), "ben does not hold the last state")


def test_a_journal_with_a_gap(outcome):
    with sqlite3.connect(outcome.fleet.directory / JOURNAL_FILE) as db:
        db.execute("DELETE FROM journal WHERE seq = 5")
    db.close()
    assert only(judge(outcome), "the audit")


def test_an_end_without_a_reason(outcome):
    outcome.fleet.members["anna"].ends.insert(0, "RunError: it had enough")
    assert only(judge(outcome), "anna ended: RunError")


def test_an_error_that_nobody_was_told_of(outcome):
    outcome.fleet.loop.bugs.append({"message": "lost", "exception": ValueError("x")})
    assert only(judge(outcome), "a bug: lost")


def test_a_round_that_took_too_long(outcome):
    outcome.over_at = -1e4
    assert only(judge(outcome), "are enough")


def test_a_peer_that_is_there_and_in_no_roster(outcome):
    ben, trace = outcome.fleet.peer_id("ben"), outcome.fleet.trace
    limit_s = round_limit_s(outcome.fleet)
    at, last = [(i, e) for i, (_, _, e) in enumerate(trace) if isinstance(e, RoundCommitted)][-1]
    without = replace(last, roster=tuple(peer for peer in last.roster if peer != ben))
    outcome.over_at = trace[at][0]  # else the round itself would be late
    trace[at + 1 :] = [(outcome.over_at + limit_s * k / 2, HOST, without) for k in (1, 2, 3)]
    assert only(judge(outcome), "ben is there, but in no roster for")


def test_a_round_that_a_second_host_commits_again(outcome):
    at, name, event = next(one for one in outcome.fleet.trace if isinstance(one[2], RoundCommitted))
    outcome.fleet.trace.append((at, name, event))
    assert only(judge(outcome), "round 1 was committed by reef, and again by reef")


def test_a_commit_that_is_not_the_one_of_the_journal(outcome):
    trace = outcome.fleet.trace
    k = next(k for k, (_, _, e) in enumerate(trace) if isinstance(e, RoundCommitted))
    at, name, event = trace[k]
    trace[k] = (at, name, replace(event, roster=event.roster[1:]))
    assert only(judge(outcome), "round 1 is in the journal otherwise than reef said")


def test_a_lead_that_changes_hands_without_a_reason(outcome):
    again = HostStarted(run="sim", address="lagoon:7777", committed=2, epoch=2)
    at = outcome.over_at + 2 * round_limit_s(outcome.fleet)
    outcome.fleet.trace.append((at, HOST, again))
    assert only(judge(outcome), "leads in epoch 2, though nothing went wrong any more")


def test_a_commit_that_is_missing(outcome):
    outcome.records = [
        record
        for record in outcome.records
        if not (isinstance(record, Committed) and record.round == 2)
    ]
    assert only(judge(outcome), "1 rounds of 2")
