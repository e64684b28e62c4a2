"""The page that soak.py writes: what was done to a fleet, and what that cost."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True)
class Share:
    """What was committed in some time, and for how many seconds peers were there."""

    seconds: float
    tokens: int
    commits: int
    peer_seconds: float
    longest_s: float  # between two commits

    @property
    def tokens_per_peer_s(self) -> float:
        return self.tokens / self.peer_seconds

    @property
    def peers(self) -> float:
        return self.peer_seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What came of a run: in the calm, and disturbed by so many faults of each kind."""

    command: str  # what runs it again
    num_peers: int
    step_s: float
    inner_steps: int
    every_s: float  # between two faults of peers
    host_every_s: float
    faults: Mapping[str, int]
    calm: Share
    disturbed: Share

    @property
    def ratio(self) -> float:
        return self.disturbed.tokens_per_peer_s / self.calm.tokens_per_peer_s


def page(soaked: Soaked, *, asked: float) -> str:
    """Return the page, for a run with which nothing is wrong."""
    calm, disturbed, faults = soaked.calm, soaked.disturbed, soaked.faults
    rows = [
        ("seconds", f"{calm.seconds:.0f}", f"{disturbed.seconds:.0f}"),
        ("rounds committed", f"{calm.commits}", f"{disturbed.commits}"),
        ("longest time between two", f"{calm.longest_s:.1f} s", f"{disturbed.longest_s:.1f} s"),
        ("tokens committed", f"{calm.tokens}", f"{disturbed.tokens}"),
        ("peers that were there, on average", f"{calm.peers:.2f}", f"{disturbed.peers:.2f}"),
        (
            "tokens a second of each that was there",
            f"{calm.tokens_per_peer_s:.2f}",
            f"{disturbed.tokens_per_peer_s:.2f}",
        ),
    ]
    table = "\n".join(f"| {what} | {before} | {after} |" for what, before, after in rows)
    num_killed, num_frozen, num_restarted, num_hosts = (
        faults.get(kind, 0) for kind in ("kill", "freeze", "restart", "host")
    )
    return f"""# Soak

{soaked.num_peers} peers, a host and its built-in member, as processes of one machine with
{os.cpu_count()} cores, on {datetime.now(UTC):%Y-%m-%d}. `make soak` takes half an hour and \
writes this
page; `make soak SECONDS=300` is shorter.

    python benchmarks/soak.py {soaked.command}

Every {soaked.every_s:g} s a random peer is killed (SIGKILL), frozen (SIGSTOP) or restarted \
(Ctrl-C), and comes back
{soaked.every_s / 6:.0f} to {2 * soaked.every_s / 3:.0f} s later; every {soaked.host_every_s:g} s \
the host is killed, and started again after a second.
So often did it happen here: killed {num_killed}, frozen {num_frozen}, restarted {num_restarted}; \
the host killed {num_hosts}.

| | calm | disturbed |
|---|---|---|
{table}

**{100 * soaked.ratio:.1f} %** of what the same fleet commits undisturbed, for the share of its
peers that are there ({100 * disturbed.peers / soaked.num_peers:.1f} %). \
Asked for: {100 * asked:.0f} %.

- Peers train overlapped, a tiny model, {soaked.inner_steps} steps a round. \
Each step is stretched to {soaked.step_s:g} s by
  the clock: so many processes share the cores, and what is measured is atoll, not these.
- A peer is there from the moment at which the host counts it in (its trainer runs, its state is
  the agreed one) until it is killed, frozen or interrupted; and from its thaw on. While the host is
  away, all count as there. So a victim's work that was not committed counts against atoll, and so
  does whatever others wait for, and a host's absence. The start of a process does not: that is
  torch being imported.
- At the end all peers contributed to one round, which takes the agreed state; none ever had another
  one, and those on their disks are the agreed ones, hashed anew. The audit of the journal (`atoll
  verify`) found its chain whole, each sample committed at most once, and each state to be what the
  updates before it give.
"""
