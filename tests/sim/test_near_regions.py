"""Peers of two places far from each other: with regions, their slices stay where they are."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.sim.cast import well

from atoll.sim.fleet import Fleet
from atoll.sim.network import Machine
from atoll.sim.play import Case
from atoll.sim.setting import PeerSpec, RunSpec, Setting

NUM_PEERS, SIZE, ROUNDS = 20, 6, 5
PEERS = tuple(
    PeerSpec(
        name=f"peer-{n:02}",
        link=("home-fibre", "home-dsl")[n // 2 % 2],
        place=("here", "there")[n % 2],
        has_dataset=True,
    )
    for n in range(NUM_PEERS)
)


def case(*, tells_round_trips: bool) -> Case:
    run = RunSpec(rounds=ROUNDS, region_size=SIZE, min_peers=NUM_PEERS)
    setting = Setting(
        seed=2, peers=PEERS, run=run, between_s=0.09, tells_round_trips=tells_round_trips
    )
    return Case(setting=setting)


def played(*, tells_round_trips: bool) -> tuple[list[float], Counter[bool]]:
    """Return how many of each round are in a region of their place, and the bytes of slices.

    These by whether they went from place to place, in the last two rounds.
    """
    num_bytes: Counter[bool] = Counter()

    def look(fleet: Fleet) -> None:
        tamper = fleet.network.tamper

        def count(sender: Machine, receiver: Machine, message):
            if type(message).__name__ == "Slice" and message.round > ROUNDS - 2:
                num_bytes[sender.place != receiver.place] += message.num_bytes
            return tamper(sender, receiver, message)

        fleet.network.tamper = count

    with TemporaryDirectory() as directory:
        outcome = well(case(tells_round_trips=tells_round_trips), Path(directory), look=look)
    place = {outcome.fleet.peer_id(peer.name): peer.place for peer in PEERS}
    at_home = []
    for commit in outcome.commits:
        of_regions: dict[int, Counter[str]] = {}
        for entry in commit.roster:
            of_regions.setdefault(entry.region, Counter())[place[entry.peer]] += 1
        assert max(counts.total() for counts in of_regions.values()) <= SIZE
        at_home.append(sum(max(counts.values()) for counts in of_regions.values()) / NUM_PEERS)
    return at_home, num_bytes


def test_regions_follow_what_members_have_measured_and_so_do_their_slices():
    (by_id, bytes_by_id), (near, bytes_near) = (
        played(tells_round_trips=tells) for tells in (False, True)
    )
    assert near[0] == by_id[0] < 0.85, "nobody has measured anything yet"
    assert by_id[-1] < 0.85
    assert min(near[-2:]) > 0.9
    assert bytes_near[True] < bytes_by_id[True] / 3
