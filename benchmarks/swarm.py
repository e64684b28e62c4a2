"""A swarm in virtual time: N peers that only take time, home lines, some of them coming and going.

    benchmarks/swarm.py 10 30 100    a line of JSON for each: wall time, and what the host has to do
    benchmarks/swarm.py 10 600 --places 3    peers of three places, far from each other

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
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from atoll.events import Event, RoundCommitted
from atoll.net.wire import Contribution, Message
from atoll.sim.faults import AtTime, Leave
from atoll.sim.fleet import Fleet
from atoll.sim.judge import JUDGED
from atoll.sim.network import Machine, Tampering
from atoll.sim.play import Case, play
from atoll.sim.setting import HOST, PeerSpec, RunSpec, Setting
from atoll.system import allow_many_files, most_files

CHURN = 0.05  # of the peers leave in each round, and come back
HEARTBEAT_S = 30.0
QUORUM = 0.9
BETWEEN_S = 0.09  # from place to place, one way
FILES = 1  # that a peer keeps open: its lock
SPARE_FILES = 500  # of peers that leave while others come, and of the host
ROUND_S = 20.0  # of virtual time, about


class Meter:
    """Counts the host's messages, seconds of its callbacks, and bytes that go from place to place.

    `committed_at` are the processor seconds at each commit; `exchanges_s` what passed in virtual
    time between the contributions of a quorum and the commit.
    """

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.host_s = 0.0
        self.committed_at: list[float] = []
        self.exchanges_s: list[float] = []
        self.far_bytes: Counter[int] = Counter()  # of payloads, by the commits before
        self.all_bytes: Counter[int] = Counter()
        self._claimed_at: defaultdict[int, list[float]] = defaultdict(list)

    def watch(self, fleet: Fleet) -> None:
        judge_message = fleet.network.tamper

        def count(sender: Machine, receiver: Machine, message: Message) -> Tampering | None:
            if HOST in (sender.name, receiver.name):
                self.messages[type(message).__name__] += 1
            if isinstance(message, Contribution):
                self._claimed_at[message.round].append(fleet.loop.time())
            num_bytes, round_id = getattr(message, "num_bytes", 0), len(self.committed_at)
            self.all_bytes[round_id] += num_bytes
            if sender.place and receiver.place and sender.place != receiver.place:
                self.far_bytes[round_id] += num_bytes
            return judge_message(sender, receiver, message)

        fleet.network.tamper = count
        fleet.keeps = lambda event: isinstance(event, JUDGED)
        note_event = fleet.watch

        def tell(name: str, event: Event) -> None:
            if isinstance(event, RoundCommitted):
                self.committed_at.append(time.process_time())
                now_s, cpu_s = fleet.loop.time(), self.committed_at[-1]
                claimed_at = sorted(self._claimed_at.pop(event.round))
                self.exchanges_s.append(now_s - claimed_at[int(QUORUM * (len(claimed_at) - 1))])
                print(f"round {event.round} at {now_s:.0f} s, {cpu_s:.0f} s", file=sys.stderr)
            note_event(name, event)

        fleet.watch = tell
        fleet.host.condition.within = self._timed

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began_at = time.perf_counter()  # a processor's own clock takes longer than most callbacks
        yield
        self.host_s += time.perf_counter() - began_at


def swarm(num_peers: int, run: RunSpec, *, num_places: int, is_blind: bool, seed: int) -> Case:
    rng, of_places = Random(seed), Random(seed)
    peers = tuple(
        PeerSpec(
            name=f"peer-{number:05}",
            link=rng.choice(("home-fibre", "home-dsl")),
            step_s=rng.uniform(2.0, 8.0),
            joins_at_s=rng.uniform(0.0, 5.0),
            has_dataset=True,
            place=f"place {of_places.randrange(num_places)}" if num_places else "",
        )
        for number in range(num_peers)
    )
    script = tuple(
        Leave(when=AtTime(rng.uniform(5.0, run.rounds * ROUND_S)), who=peer.name, back_s=ROUND_S)
        for peer in rng.choices(peers, k=round(CHURN * num_peers * run.rounds))
    )
    setting = Setting(
        seed=seed,
        peers=peers,
        run=run,
        model="idle",
        between_s=BETWEEN_S,
        tells_round_trips=not is_blind,
    )
    return Case(setting=setting, script=script)


def measured(case: Case) -> dict[str, object]:
    meter, num_peers = Meter(), len(case.setting.peers)
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
        "exchange_s": [round(seconds, 2) for seconds in meter.exchanges_s],
        "share_between_places": [
            round(meter.far_bytes[k] / (meter.all_bytes[k] or 1), 3) for k in range(num_rounds)
        ],
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
    parser.add_argument("--vocab", type=int, default=300, help="16 parameters for each")
    parser.add_argument("--places", type=int, default=0, help="0: all are near each other")
    parser.add_argument("--blind", action="store_true", help="nobody measures round trips")
    given = parser.parse_args()
    allow_many_files()
    needed, allowed = FILES * max(given.peers) + SPARE_FILES, most_files()
    if allowed is not None and needed > allowed:
        parser.error(f"so many peers keep {needed} files open, and this system allows {allowed}")
    run = RunSpec(
        rounds=given.rounds,
        codec="int8",
        update_codec="int8",
        vocab_size=given.vocab,
        quorum=QUORUM,
        region_size=given.region_size,
        heartbeat_s=HEARTBEAT_S,
        inner_steps=2,
    )
    for num_peers in given.peers:
        case = swarm(num_peers, run, num_places=given.places, is_blind=given.blind, seed=1)
        print(json.dumps(measured(case)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
