"""A swarm that comes and goes: larger than the other cases, so that what grows with it shows."""

from collections import Counter

from atoll.events import StateSynced
from atoll.sim.faults import AtTime, Leave
from atoll.sim.fleet import Fleet
from atoll.sim.judge import JUDGED
from atoll.sim.play import Case, play
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting

NUM_PEERS = 32
REGION_SIZE = 8


def swarm() -> Case:
    """Return a case in which every twelfth peer goes in each of the first rounds, and returns."""
    peers = tuple(
        PeerSpec(
            name=f"peer-{number:02}",
            link=("home-fibre", "home-dsl")[number % 2],
            step_s=2.0 + number % 5,
            has_dataset=number > 0,
        )
        for number in range(NUM_PEERS)
    )
    script = tuple(
        Leave(when=AtTime(10.0 + 3 * number), who=peer.name, back_s=10.0)
        for number, peer in enumerate(peers[::4])
    )
    run = RunSpec(
        rounds=4,
        inner_steps=2,
        codec="int8",
        update_codec="int8",
        vocab_size=300,
        quorum=0.9,
        heartbeat_s=30.0,
        region_size=REGION_SIZE,
    )
    return Case(setting=Setting(seed=3, peers=peers, run=run, model="idle"), script=script)


def test_all_members_of_a_swarm_end_with_one_state_and_the_host_says_little_to_each(tmp_path):
    said: Counter[str] = Counter()

    def look(fleet: Fleet) -> None:
        tamper = fleet.network.tamper

        def count(sender, receiver, message):
            if sender.name == HOST:
                said[type(message).__name__] += 1
            return tamper(sender, receiver, message)

        fleet.network.tamper = count
        fleet.keeps = lambda event: isinstance(event, (*JUDGED, StateSynced))

    outcome, wrong = play(swarm(), tmp_path, look=look)
    assert wrong == []
    # From the second round on nearly all are in; nobody is told anything twice without a reason.
    assert all(len(commit.roster) > 0.8 * NUM_PEERS for commit in outcome.commits[1:])
    num_told = NUM_PEERS * len(outcome.commits)
    assert said["Commit"] < 1.5 * num_told
    assert said["Plan"] < 1.75 * num_told  # who comes back is told again: 1.34 to 1.56 by the seed
    assert {type(event) for _, _, event in outcome.trace} <= {*JUDGED, StateSynced}
    # In regions from the first round on: a reducer has its region, those above and below, the host,
    # and nobody any more with whom it had to do in rounds before.
    assert all(len({entry.region for entry in commit.roster}) > 1 for commit in outcome.commits)
    machines = outcome.fleet.network.machines
    most = max(machine.most_connections for name, machine in machines.items() if name != HOST)
    assert most <= 2 * REGION_SIZE + 2
