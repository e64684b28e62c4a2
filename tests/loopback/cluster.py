"""A run of real processes on this machine: start them, wait for what they report, kill them.

    cluster = Cluster(folder, cache=...)
    cluster.write_run(config)
    host = cluster.start_host()
    anna = cluster.join("anna")
    host.wait_for(RoundCommitted, lambda event: event.round == 3)
    anna.kill()

Every process is a child of the test, and `close` ends all of them, whatever has happened.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll.config import RunConfig, template
from atoll.events import Event, HostStarted, RoundCommitted, read_events
from atoll.host.stores import read_journal
from atoll.ids import PeerId
from atoll.net.records import Admitted, Committed, Entry
from atoll.train.shared import vectors_path

SLOW = ("--max-upload", "0.8")  # Mb/s: what takes a moment otherwise takes two seconds
POLL_S = 0.02
PATIENCE_S = 120.0  # for anything to happen: most of it is torch being imported by several at once
LOG_CHARACTERS = 4000

E = TypeVar("E")
T = TypeVar("T")


class Process:
    """One command of atoll that runs beside the test."""

    def __init__(self, name: str, arguments: list[str], *, home: Path, env: Mapping[str, str]):
        self.name = name
        self.home = home
        self.log = home.with_name(f"{home.name}.log")
        self.orphans: list[int] = []  # children of ours, once we were killed
        self._events: list[Event] = []
        # What an earlier process reported in the same directory is not news.
        _, self._offset = read_events(home / "events.jsonl")
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "atoll.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def events(self) -> list[Event]:
        """All that this process has reported so far."""
        news, self._offset = read_events(self.home / "events.jsonl", offset=self._offset)
        self._events += [stamped.event for stamped in news]
        return self._events

    @property
    def output(self) -> str:
        """All that this process has written to its terminal."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def find(self, kind: type[E], which: Callable[[E], bool] = lambda _: True) -> list[E]:
        return [event for event in self.events if isinstance(event, kind) and which(event)]

    def wait_for(self, kind: type[E], which: Callable[[E], bool] = lambda _: True) -> E:
        """Return the first such event of this process, which may have come already."""
        wait_until(lambda: self.find(kind, which), f"{kind.__name__} of {self.name}", watch=self)
        return self.find(kind, which)[0]

    def wait_for_next(self, kind: type[E], which: Callable[[E], bool] = lambda _: True) -> E:
        """Return the first such event that this process reports from now on."""
        known = len(self.find(kind, which))
        wait_until(
            lambda: len(self.find(kind, which)) > known,
            f"another {kind.__name__} of {self.name}",
            watch=self,
        )
        return self.find(kind, which)[known]

    def wait(self, *, seconds: float = PATIENCE_S) -> int:
        """Return the exit code, when the process has ended by itself."""
        return self._popen.wait(timeout=seconds)

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def kill(self) -> None:
        """End the process as a power failure does; its children notice by themselves."""
        self.orphans += children_of(self.pid)
        self._popen.kill()
        self._popen.wait()

    def interrupt(self) -> None:
        """Let it end in order, and at once, as a service manager does."""
        self._popen.send_signal(signal.SIGTERM)

    def press_ctrl_c(self) -> None:
        self._popen.send_signal(signal.SIGINT)

    def freeze(self) -> None:
        """Stop the process and its children, as a closed lid does."""
        for pid in (self.pid, *children_of(self.pid)):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (*children_of(self.pid), self.pid):
            os.kill(pid, signal.SIGCONT)

    @property
    def trainers(self) -> list[int]:
        """The process id of this peer's trainer, if it has one now."""
        return [pid for pid in children_of(self.pid) if b"atoll.train.trainer" in command_of(pid)]

    @property
    def other_ranks(self) -> list[int]:
        """The process ids of the ranks that follow this peer's trainer, or that assist it."""
        return [
            pid
            for parent in (self.pid, *self.trainers)
            for pid in children_of(parent)
            if b"atoll.train.follower" in command_of(pid)
        ]

    @property
    def port(self) -> int:
        """The port of this host."""
        return int(self.wait_for(HostStarted).address.rpartition(":")[2])


class Cluster:
    """A host, its peers, and the folder where all of them live."""

    def __init__(self, folder: Path, *, cache: Path) -> None:
        self.run = folder / "run"
        self.peers = folder / "peers"
        self.cache = cache
        self.processes: list[Process] = []
        self.run.mkdir(exist_ok=True)
        self.peers.mkdir(exist_ok=True)

    def start(self, config: RunConfig, **options: tuple[str, ...]) -> list[Process]:
        """Return a host, and a peer for each keyword, once all are in a round that is committed."""
        self.write_run(config)
        host = self.start_host()
        peers = [self.join(name, *more) for name, more in options.items()]
        host.wait_for(RoundCommitted, lambda event: len(event.roster) == len(peers))
        return [host, *peers]

    def write_run(self, config: RunConfig) -> None:
        (self.run / "run.toml").write_text(template(config), encoding="utf-8")

    def start_host(self, *options: str, port: int = 0) -> Process:
        """Start the host, again perhaps, and return once it can be joined."""
        (self.run / "invite.txt").unlink(missing_ok=True)
        host = self.launch_host(*options, port=port)
        wait_until((self.run / "invite.txt").exists, "the invite", watch=host)
        return host

    def launch_host(
        self,
        *options: str,
        port: int = 0,
        run: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start the host, or the one of another directory; it may not come up."""
        home = run or self.run
        arguments = ["host", str(home), "--listen", "127.0.0.1", "--advertise", "127.0.0.1"]
        arguments += ["--port", str(port), "--reducer-port", "0", "--web", "0"]
        arguments += ["--cache", str(self.cache)]
        arguments += options
        return self._start("host" if run is None else run.name, arguments, home=home, env=env)

    def command(self, *arguments: str) -> str:
        """Run a command of atoll to its end, and return what it printed; it must succeed."""
        ran = subprocess.run(
            [sys.executable, "-m", "atoll.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    @property
    def invite(self) -> str:
        return (self.run / "invite.txt").read_text(encoding="utf-8").strip()

    def join(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a peer, again perhaps; options later in the line have the last word."""
        return self._join(name, self.invite, *options, env=env)

    def join_by(self, invite: str, name: str, *options: str) -> Process:
        """Start a peer, again perhaps, with an invite of one's own."""
        return self._join(name, invite, *options)

    def assist(self, name: str, key: str, *options: str) -> Process:
        """Start another machine of the peer with this site's key."""
        arguments = ["assist", key, "--name", name, "--threads", "1"]
        arguments += ["--cache", str(self.cache.with_name(f"{name}-cache")), *options]
        return self._start(name, arguments, home=self.peers / name)

    def join_again(self, name: str) -> Process:
        """Start a peer that has been here before, without an invite."""
        return self._join(name)

    def _join(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> Process:
        home = self.peers / name
        arguments = ["join", "--dir", str(home), "--name", name, "--threads", "1"]
        arguments += ["--cache", str(self.cache), *options]
        return self._start(name, arguments, home=home, env=env)

    def run_command(self, name: str, *arguments: str) -> Process:
        """Start any other command of atoll, which goes on beside the test."""
        return self._start(name, list(arguments), home=self.peers / name)

    def _start(
        self, name: str, arguments: list[str], *, home: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        process = Process(name, arguments, home=home, env=env or {})
        self.processes.append(process)
        return process

    # --- what is on record ----------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return the journal; reading it checks the chain."""
        return read_journal(self.run)

    def records(self, kind: type[T]) -> list[T]:
        return [entry.record for entry in self.entries() if isinstance(entry.record, kind)]

    def id_of(self, name: str) -> PeerId:
        (admitted,) = [record for record in self.records(Admitted) if record.name == name]
        return admitted.peer

    def committed(self) -> int:
        """Return how many rounds are committed."""
        return len(self.records(Committed))

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process, and theirs."""
        for process in self.processes:
            if not process.has_ended():
                process.kill()
        for orphan in chain.from_iterable(process.orphans for process in self.processes):
            if b"atoll" in command_of(orphan):  # still there, and not another's by now
                with suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
        for home in self.peers.glob("*"):
            vectors_path(home, 1).unlink(missing_ok=True)  # of a peer that never came back

    def report(self) -> str:
        """Return the ends of all logs, for a test that failed."""
        inner = sorted(chain(self.peers.glob("*/trainer.log"), self.run.glob("built-in/*.log")))
        logs = dict.fromkeys([*(process.log for process in self.processes), *inner])
        return "\n".join(
            f"--- {path}\n{path.read_text(encoding='utf-8', errors='replace')[-LOG_CHARACTERS:]}"
            for path in logs
            if path.exists()
        )


def with_sync(config: RunConfig, **changes: object) -> RunConfig:
    """Return the config with other values in its table `sync`."""
    return msgspec.structs.replace(config, sync=msgspec.structs.replace(config.sync, **changes))


def wait_until(look: Callable[[], object], what: str, *, watch: Process | None = None) -> None:
    """Return when `look` finds something true; fail if that takes too long, or cannot come."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < give_up_at, f"no {what} within {PATIENCE_S:.0f} s"
        assert watch is None or not watch.has_ended() or look(), f"no {what}: {watch.output}"
        time.sleep(POLL_S)


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started and that still are."""
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
