"""A swarm in virtual time: N peers that only take time, home lines, some of them coming and going.

    benchmarks/swarm.py 10 30 100    a line of JSON for each: wall time, and what the host has to do

The host, agents and exchange are the real code. Per round: messages of the host, seconds of its
callbacks, and processor seconds for all, where `start_cpu_s` is what it takes until the first round
is committed. So what stops a larger swarm shows in how these grow. How far it is goes to stderr.
Numba compiles for the first of them: name a small number first.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from atoll.events import Event, RoundCommitted
from atoll.net.wire import Message
from atoll.sim.faults import AtTime, Leave
from atoll.sim.fleet import Fleet
from atoll.sim.judge import JUDGED
from atoll.sim.network import Machine, Tampering
from atoll.sim.play import Case, play
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting
from atoll.system import allow_many_files, most_files

CHURN = 0.05  # of the peers leave in each round, and come back
HEARTBEAT_S = 30.0
FILES = 1  # that a peer keeps open: its lock
SPARE_FILES = 500  # of peers that leave while others come, and of the host
ROUND_S = 20.0  # of virtual time, about


class Meter:
    """Counts the host's messages, and the seconds that its callbacks take.

    `committed_at` are the processor seconds at each commit.
    """

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.host_s = 0.0
        self.committed_at: list[float] = []

    def watch(self, fleet: Fleet) -> None:
        judge_message = fleet.network.tamper

        def count(sender: Machine, receiver: Machine, message: Message) -> Tampering | None:
            if HOST in (sender.name, receiver.name):
                self.messages[type(message).__name__] += 1
            return judge_message(sender, receiver, message)

        fleet.network.tamper = count
        fleet.keeps = lambda event: isinstance(event, JUDGED)
        note_event = fleet.watch

        def tell(name: str, event: Event) -> None:
            if isinstance(event, RoundCommitted):
                self.committed_at.append(time.process_time())
                now_s, cpu_s = fleet.loop.time(), self.committed_at[-1]
                print(f"round {event.round} at {now_s:.0f} s, {cpu_s:.0f} s", file=sys.stderr)
            note_event(name, event)

        fleet.watch = tell
        fleet.host.condition.within = self._timed

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began_at = time.perf_counter()  # a processor's own clock takes longer than most callbacks
        yield
        self.host_s += time.perf_counter() - began_at


def swarm(num_peers: int, *, rounds: int, region_size: int, seed: int) -> Case:
    rng = Random(seed)
    peers = tuple(
        PeerSpec(
            name=f"peer-{number:05}",
            link=rng.choice(("home-fibre", "home-dsl")),
            step_s=rng.uniform(2.0, 8.0),
            joins_at_s=rng.uniform(0.0, 5.0),
            has_dataset=True,
        )
        for number in range(num_peers)
    )
    script = tuple(
        Leave(when=AtTime(rng.uniform(5.0, rounds * ROUND_S)), who=peer.name, back_s=ROUND_S)
        for peer in rng.choices(peers, k=round(CHURN * num_peers * rounds))
    )
    run = RunSpec(
        rounds=rounds,
        codec="int8",
        update_codec="int8",
        vocab_size=300,
        quorum=0.9,
        region_size=region_size,
        heartbeat_s=HEARTBEAT_S,
        inner_steps=2,
    )
    return Case(setting=Setting(seed=seed, peers=peers, run=run, model="idle"), script=script)


def measured(num_peers: int, *, rounds: int, region_size: int) -> dict[str, object]:
    meter, case = Meter(), swarm(num_peers, rounds=rounds, region_size=region_size, seed=1)
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="atoll-swarm-") as directory:
        began_at, cpu_at = time.monotonic(), time.process_time()
        outcome, wrong = play(case, Path(directory), look=meter.watch)
    num_rounds = max(1, len(outcome.commits))
    total = sum(meter.messages.values())
    first, last = meter.committed_at[0], meter.committed_at[-1]
    return {
        "peers": num_peers,
        "rounds": len(outcome.commits),
        "wrong": wrong[:3],
        "wall_s": round(time.monotonic() - began_at, 1),
        "cpu_s": round(time.process_time() - cpu_at, 1),
        "start_cpu_s": round(first - cpu_at, 1),
        "cpu_s_per_round": round((last - first) / max(1, num_rounds - 1), 2),
        "host_s_per_round": round(meter.host_s / num_rounds, 3),
        "host_messages_per_round": round(total / num_rounds),
        "host_messages_per_peer_and_round": round(total / num_rounds / num_peers, 1),
        "regions": [len({entry.region for entry in commit.roster}) for commit in outcome.commits],
        "most_connections": most_connections(outcome.fleet),
        "contributors": [len(commit.roster) for commit in outcome.commits],
        "by_kind": dict(meter.messages.most_common(6)),
    }


def most_connections(fleet: Fleet) -> dict[str, int]:
    """Return how many connections members had at once, those with the most and the median."""
    machines = fleet.network.machines
    counts = sorted(m.most_connections for name, m in machines.items() if name != HOST)
    at = {"most": -1, "99 %": -1 - len(counts) // 100, "median": len(counts) // 2}
    return {
        "of_a_peer": counts[at["most"]],
        "of_one_in_a_hundred": counts[at["99 %"]],
        "median": counts[at["median"]],
        "of_the_host": machines[HOST].most_connections,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--region-size", type=int, default=64, help="0: one region")
    given = parser.parse_args()
    allow_many_files()
    needed, allowed = FILES * max(given.peers) + SPARE_FILES, most_files()
    if allowed is not None and needed > allowed:
        parser.error(f"so many peers keep {needed} files open, and this system allows {allowed}")
    for num_peers in given.peers:
        line = measured(num_peers, rounds=given.rounds, region_size=given.region_size)
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
