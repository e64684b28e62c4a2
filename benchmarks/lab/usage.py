"""What a process and its descendants have used, from /proc."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CHILDREN = re.compile(r"\d+")
PEAK_KIB = re.compile(r"VmHWM:\s*(\d+) kB")


class Usage(NamedTuple):
    cpu_s: float  # user and system, with children that have ended
    peak_bytes: int  # sum of each one's largest resident set: pages that they share count twice


def usage_of(pid: int) -> Usage:
    """Return what the process and all that it started have used up to now."""
    cpu_s, peak_bytes = 0.0, 0
    for process in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended in the meantime
            # The name, in brackets, may hold spaces; field 14, utime, is the 12th after it.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            cpu_s += TICK_S * sum(int(ticks) for ticks in fields[11:15])
            peak_bytes += peak_bytes_of(process)
    return Usage(cpu_s, peak_bytes)


def peak_bytes_of(process: int) -> int:
    """Return the largest resident set that one process had, without its descendants."""
    peak = PEAK_KIB.search(Path(f"/proc/{process}/status").read_text())
    return 1024 * int(peak[1]) if peak else 0


def tree(pid: int) -> Iterator[int]:
    """Yield the process and its descendants."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in CHILDREN.findall((task / "children").read_text()):
                yield from tree(int(child))
