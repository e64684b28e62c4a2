"""How long one exchange takes: N peers average a vector over links of a given kind. Needs root.

    sudo python benchmarks/exchange.py --peers 4 --params 4e6 --link 100mbit --codec int8
    sudo python benchmarks/exchange.py --system hivemind --link 100mbit --rtt 80ms --loss 0.1%

Each peer is a process in a network namespace of its own (lab/network.py) and drives one system
(systems/). Prints one line of JSON. `wall_s`: from the moment when all have their vector in memory
until all have the mean, median of five after one that does not count. `link_limit_s`: what the
link needs for the encoded values alone. `bytes_per_peer`: sent and received, by the counters of the
interface. `cpu_s`: of one peer, for one exchange. `peak_mb`: of the largest peer, all processes.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from select import select
from statistics import mean, median
from subprocess import PIPE
from tempfile import TemporaryFile
from time import monotonic
from typing import IO, Any

from lab.links import LabError, Link, parse_loss, parse_rate, parse_rtt_s
from lab.network import Lab, Node, lab
from lab.usage import Usage, usage_of
from systems.peer import Setup

from atoll.exchange.codec import CODECS
from atoll.outer.layout import slice_bounds

ROOT = Path(__file__).parents[1]
SYSTEMS = ROOT / "benchmarks" / "systems"
BITS = {"gloo": 32, "torchft": 32, "hivemind": 8}  # per value; atoll takes a codec
TIMED = 5
TIMEOUT_S = 600.0
STOP_S = 5.0  # for a peer to remove what it wrote; what is left of it then, the lab kills
LAST_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is exchanged, by whom."""

    system: str
    num_peers: int
    num_values: int
    codec: str
    congestion: str  # the algorithm asked for by name; empty: none was
    num_joiners: int = 0  # who fetch a state from the peers meanwhile (joiner.py)

    @property
    def encoded_bytes(self) -> int:
        if self.system != "atoll":
            return self.num_values * BITS[self.system] // 8
        codec = CODECS[self.codec]
        return sum(codec.encoded_bytes(b - a) for a, b in slice_bounds(self.num_values))


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab is taken down
    arguments = parse()
    link = Link(
        rate=parse_rate(arguments.link),
        rtt_s=arguments.rtt,
        loss=arguments.loss,
        congestion=arguments.congestion or "cubic",
    )
    task = Task(
        system=arguments.system,
        num_peers=arguments.peers,
        num_values=round(arguments.params),
        codec=arguments.codec if arguments.system == "atoll" else f"{BITS[arguments.system]} bit",
        congestion=arguments.congestion,
    )
    try:
        figures = measure(task, link)
    except LabError as error:
        sys.exit(f"exchange.py: {error}")
    asked = {"link": arguments.link, "rtt_s": link.rtt_s, "loss": link.loss}
    print(json.dumps({**asdict(task), **asked, **figures}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--system", choices=("atoll", *BITS), default="atoll")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--params", type=float, default=4e6, help="values of the vector")
    parser.add_argument("--link", default="100mbit", help="1gbit, 15mbit/110mbit or loopback")
    parser.add_argument("--codec", choices=CODECS, default="int8", help="of atoll")
    parser.add_argument("--rtt", type=parse_rtt_s, default="0ms", help="for example 80ms")
    parser.add_argument("--loss", type=parse_loss, default="0%", help="for example 0.1%%")
    parser.add_argument("--congestion", choices=("cubic", "bbr"), default="")
    return parser.parse_args()


# --- the measurement -----------------------------------------------------------------------------


def measure(task: Task, link: Link) -> dict[str, object]:
    """Return the figures of one task over one kind of link.

    Raises:
        LabError: the lab or the system cannot do it.
    """
    python = interpreter(task.system)
    with lab(link, num_peers=task.num_peers) as network, ExitStack() as stack:
        setup = Setup(
            rank=0,
            addresses=[node.address for node in network.peers],
            admin_addresses=[node.admin_address for node in network.peers],
            interface=network.peers[0].interface,
            num_values=task.num_values,
            codec=task.codec,
            congestion=task.congestion,
            hub=stack.enter_context(hub(task, network.hub, network.peers, python=python)),
        )
        driver = [python, "-m", f"systems.{task.system}_peer"]
        peers = [
            stack.enter_context(started(node, driver, replace(setup, rank=rank)))
            for rank, node in enumerate(network.peers)
        ]
        for peer in peers:
            peer.reply()
        rounds = [exchange(peers, network, "gaussian") for _ in range(1 + TIMED)][1:]
        peak_bytes = max(usage_of(peer.pid).peak_bytes for peer in peers)
        error_gaussian = peers[0].ask("error")["error"]
        heavy_tailed = exchange(peers, network, "student_t")
        error_student_t = peers[0].ask("error")["error"]
        identical = all(len(each.digests) == 1 for each in (*rounds, heavy_tailed))
        for peer in peers:
            peer.stop()
    return {
        "wall_s": round(median(each.wall_s for each in rounds), 4),
        "walls_s": [round(each.wall_s, 4) for each in rounds],
        "link_limit_s": link_limit_s(task, link),
        "bytes_per_peer": round(mean(each.num_bytes for each in rounds) / task.num_peers),
        "cpu_s": round(mean(each.cpu_s for each in rounds) / task.num_peers, 3),
        "peak_mb": round(peak_bytes / 1e6),
        "error_gaussian": error_gaussian,
        "error_student_t": error_student_t,
        "identical": identical,
    }


def link_limit_s(task: Task, link: Link) -> float | None:
    """Return how long the encoded values alone need: 2 (N - 1) / N of them, each way, per peer."""
    if link.rate is None:
        return None
    num_bytes = 2 * (task.num_peers - 1) / task.num_peers * task.encoded_bytes
    return round(num_bytes * 8 / min(link.rate.up_bps, link.rate.down_bps), 4)


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """One exchange, over all peers."""

    wall_s: float
    digests: set[str]  # of all peers' results
    num_bytes: int
    cpu_s: float


def exchange(peers: "Sequence[Peer]", network: Lab, distribution: str) -> Exchanged:
    ask_all(peers, f"load {distribution}")
    bytes_before, cpu_before = counted(network), sum(used.cpu_s for used in usages(peers))
    # All start at once; the clock is that of the machine.
    started_at = monotonic()
    ended_at = max(reply["ended_at"] for reply in ask_all(peers, "exchange"))
    cpu_s = sum(used.cpu_s for used in usages(peers)) - cpu_before
    return Exchanged(
        wall_s=ended_at - started_at,
        num_bytes=counted(network) - bytes_before,
        cpu_s=cpu_s,
        digests={reply["digest"] for reply in ask_all(peers, "digest")},
    )


def ask_all(peers: "Sequence[Peer]", line: str) -> list[Any]:
    for peer in peers:
        peer.tell(line)
    return [peer.reply() for peer in peers]


def counted(network: Lab) -> int:
    """Return the bytes sent and received so far, by all peers."""
    return sum(sum(node.num_bytes()) for node in set(network.peers))


def usages(peers: "Sequence[Peer]") -> Iterator[Usage]:
    return (usage_of(peer.pid) for peer in peers)


# --- processes -----------------------------------------------------------------------------------


def interpreter(system: str) -> str:
    """Return the Python that has the system.

    Raises:
        LabError: it is not installed.
    """
    if not (SYSTEMS / f"{system}_peer.py").exists():
        raise LabError(f"there is no driver for {system}: benchmarks/systems/{system}_peer.py")
    if system in ("atoll", "gloo"):  # torch is there anyway
        return sys.executable
    python = ROOT / f".venv-bench-{system}" / "bin" / "python"
    if not python.exists():
        raise LabError(f"{system} is not installed: run `make bench-peers`")
    return str(python)


@dataclass(frozen=True)
class Peer:
    """The coordinator's end of one peer's pipes."""

    process: subprocess.Popen[str]
    errors: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise LabError(self.last_words()) from error

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def reply(self) -> Any:
        """Return the answer to the last command.

        Raises:
            LabError: the peer has ended, or is silent.
        """
        assert self.process.stdout
        if not select([self.process.stdout], [], [], TIMEOUT_S)[0]:
            raise LabError(f"a peer has not answered for {TIMEOUT_S:g} s\n{self.last_words()}")
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise LabError(self.last_words())

    def ask(self, line: str) -> Any:
        self.tell(line)
        return self.reply()

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().splitlines()
        return "a peer has failed:\n" + "\n".join(lines[-LAST_LINES:])


@contextmanager
def started(node: Node, command: list[str], setup: Setup) -> Iterator[Peer]:
    """Run a peer in its namespace; at the end its pipe closes, and it has some seconds to stop."""
    with TemporaryFile("w+") as errors, process_in(node, command, errors=errors) as process:
        peer = Peer(process, errors)
        peer.tell(json.dumps(asdict(setup)))
        yield peer


@contextmanager
def hub(task: Task, node: Node, peers: Sequence[Node], *, python: str) -> Iterator[str]:
    """Run what the system needs beside its peers, and yield the line that it prints; or nothing."""
    script = SYSTEMS / f"{task.system}_hub.py"
    if not script.exists():
        yield ""
        return
    with (
        TemporaryFile("w+") as errors,
        process_in(node, [python, "-m", f"systems.{script.stem}"], errors=errors) as process,
    ):
        peer = Peer(process, errors)
        where = {"address": node.admin_address, "addresses": [each.address for each in peers]}
        peer.tell(json.dumps({**where, **asdict(task)}))
        assert process.stdout
        address = process.stdout.readline().strip()
        if not address:
            raise LabError(peer.last_words())
        yield address


@contextmanager
def process_in(
    node: Node, command: list[str], *, errors: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        node.inside(command), stdin=PIPE, stdout=PIPE, stderr=errors, text=True, cwd=SYSTEMS.parent
    )
    try:
        yield process
    finally:
        assert process.stdin
        assert process.stdout
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_S)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
