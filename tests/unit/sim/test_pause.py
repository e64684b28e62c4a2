"""An owner pauses a peer, or lets it leave in order: no round waits, and no work is lost."""

import pytest
from msgspec.structs import replace

from atoll import events
from atoll.sim.faults import InRound, Leave, Pause
from atoll.sim.judge import samples_of
from atoll.sim.play import Case, play
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

ROUNDS, INNER_STEPS, PAUSE_S = 10, 6, 24.0
BLOCKING = RunSpec(rounds=ROUNDS, inner_steps=INNER_STEPS, vocab_size=512)
OVERLAP = replace(BLOCKING, mode="overlap")
FRAGMENTS = replace(OVERLAP, fragments=2, rounds=2 * ROUNDS)
IN_FLIGHT = replace(OVERLAP, fragments=3, in_flight=2, rounds=3 * ROUNDS)
RUNS = {"blocking": BLOCKING, "overlap": OVERLAP, "fragments": FRAGMENTS, "in flight": IN_FLIGHT}
# Early in a round, in the middle of it, at its end, and while its exchange is under way.
CASES = [("blocking", 2.5), ("overlap", 5.7), ("fragments", 0.3), ("in flight", 6.4)]
PEERS = (PeerSpec(name="anna"), PeerSpec(name="ben"))


def setting(run: RunSpec) -> Setting:
    return Setting(seed=5, peers=PEERS, run=run, model="tally")


@pytest.mark.parametrize(("name", "after_s"), CASES)
def test_no_round_waits_for_a_paused_peer_and_its_work_is_carried(name, after_s, tmp_path):
    run = RUNS[name]
    pause = Pause(when=InRound(3, after_s=after_s), who="anna", seconds=PAUSE_S)
    outcome, wrong = play(Case(setting=setting(run), script=(pause,)), tmp_path)
    assert wrong == []

    rests = [(at, e.rests) for at, _, e in outcome.trace if isinstance(e, events.PeerRests)]
    assert [rests for _, rests in rests] == [True, True, False, False], "each says it, and the host"
    begins, ends = rests[1][0], rests[-1][0]
    assert ends - begins == pytest.approx(PAUSE_S, abs=1.0)

    step_s = 1.5  # the one that was under way
    steps = [
        at
        for at, who, event in outcome.trace
        if who == "anna" and isinstance(event, events.Training)
    ]
    assert not [at for at in steps if begins + step_s < at < ends], "she does nothing meanwhile"

    commits = [
        (at, event)
        for at, who, event in outcome.trace
        if who == HOST and isinstance(event, events.RoundCommitted)
    ]
    anna = outcome.fleet.peer_id("anna")
    quiet = [event for at, event in commits if begins + INNER_STEPS + 2 < at < ends]
    assert quiet, "rounds go on"
    assert [event.round for event in quiet if anna in event.roster] == []
    usual_s = INNER_STEPS / run.fragments * 2 + 1
    assert max(event.seconds for event in quiet) < usual_s + 2, "and nobody waits for her"
    later = [event for at, event in commits if at > ends]
    assert any(anna in event.roster for event in later), "the run goes on with her"


@pytest.mark.parametrize(("name", "after_s"), CASES)
def test_who_leaves_in_order_leaves_no_work_undone(name, after_s, tmp_path):
    leave = Leave(when=InRound(3, after_s=after_s), who="anna", back_s=25.0, in_order=True)
    outcome, wrong = play(Case(setting=setting(RUNS[name]), script=(leave,)), tmp_path)
    assert wrong == []

    anna = outcome.fleet.peer_id("anna")
    stopped = [e for _, who, e in outcome.trace if who == "anna" and isinstance(e, events.Stopped)]
    assert stopped[0].reason == "left after the round"
    samples = samples_of(outcome.records)
    committed = {
        sample
        for commit in outcome.commits
        for entry in commit.roster
        if entry.peer == anna
        for lease_id in entry.leases
        for sample in samples[lease_id]
    }
    assert set(outcome.fleet.devices["anna"].lives[0]) <= committed, "all that she did is committed"
    assert len(outcome.fleet.devices["anna"].lives) == 2, "and she is back"
