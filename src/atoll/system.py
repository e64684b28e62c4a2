"""What operating systems do in different ways, or not at all: all calls of that kind stand here.

Linux, macOS and Windows are meant. What one of them cannot do is left undone there, and the
docstring says so. `tests/test_repo.py` sees to it that no other module makes such a call.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

if TYPE_CHECKING:  # it takes a while, and a --help does not need it
    from asyncio import AbstractEventLoop

TELLS_CONFIRMED: Final = sys.platform == "linux"  # how much of what was sent has arrived
HAS_PERMISSIONS: Final = os.name == "posix"  # files with an owner, and modes such as 0600
_SIOCGIFADDR = 0x8915  # netdevice(7): the address of an interface
_IFREQ_NAME = struct.Struct("256s")
# Of TCP_INFO, linux/tcp.h: tcpi_snd_mss, tcpi_sacked (packets), tcpi_bytes_acked.
_ACKED = struct.Struct("=16xI8xI88xQ")
_LEAST_ROUND_TRIP = struct.Struct("=148xI")  # tcpi_min_rtt, in microseconds
_NO_ROUND_TRIP = 2**32 - 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_IN_HEAP_BYTES = 32 * 2**20  # the most that glibc takes
ACCEPT_S: Final = 0.01  # between two looks for a connection where the event loop tells of none
# Who asks a process to end: a service manager, a terminal that closes, and both on Windows.
_REQUESTS = ("SIGTERM", "SIGHUP", "SIGBREAK")


class Signalled(Protocol):
    """A child process, of `subprocess` or of asyncio."""

    def send_signal(self, signal: int, /) -> None: ...


# --- signals and processes -----------------------------------------------------------------------


def on_request_to_end(do: Callable[[], object]) -> None:
    """Call `do` when somebody else than the user asks this process to end.

    Who was started so that it outlives its terminal (`nohup`) still does.
    """
    for name in _REQUESTS:
        request = getattr(signal, name, None)
        if request is not None and signal.getsignal(request) is not signal.SIG_IGN:
            signal.signal(request, lambda *_: do())


def on_interrupt(do: Callable[[], object]) -> None:
    """Call `do` at each Ctrl-C, from now on."""
    signal.signal(signal.SIGINT, lambda *_: do())


def end_in_peace() -> None:
    """Let neither Ctrl-C nor a request to end disturb a process that is ending."""
    on_interrupt(lambda: None)
    on_request_to_end(lambda: None)


def end_as_with_ctrl_c() -> None:
    """Let a request to end do what Ctrl-C does.

    A script's shell has those that it puts in the background ignore Ctrl-C. That is taken back:
    whoever ignores it could not be asked to end, either.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    on_request_to_end(lambda: signal.raise_signal(signal.SIGINT))


def ask_to_end(process: Signalled) -> None:
    """Ask a child, which was started with `apart`, to end in order."""
    if sys.platform == "win32":
        process.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        process.send_signal(signal.SIGTERM)


def kill(pid: int) -> None:
    """End a process at once, if it is there."""
    with suppress(ProcessLookupError):
        # Windows has no such signal: there, any other one ends a process at once.
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def apart() -> dict[str, Any]:
    """Return the options that start a child which Ctrl-C in this terminal does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def service_manager() -> str:
    """Return what keeps services running on this system: systemd, launchd, or nothing we know."""
    return {"linux": "systemd", "darwin": "launchd"}.get(sys.platform, "")


def give_way(niceness: int) -> None:
    """Let other programs go before this process, and before those that it starts from now on.

    From 0, no change, to 19, only when nobody else wants the processor; Windows knows two steps.
    """
    if niceness == 0:
        return
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        idle, below_normal = 0x40, 0x4000
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), idle if niceness > 9 else below_normal)
    else:
        os.nice(niceness)


def keep_freed_memory() -> None:
    """Let freed memory stay with this process, for what it allocates next: up to 32 MiB each.

    A step of training would give back most of its memory at its end, and a page that is given back
    and taken again costs as much as writing to it. With another C library than GNU's: nothing.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError):  # mallopt(3)
            adjust = ctypes.CDLL(None).mallopt
            adjust(_M_TRIM_THRESHOLD, -1)  # never
            adjust(_M_MMAP_THRESHOLD, _MOST_IN_HEAP_BYTES)


def start_with_line(command: Sequence[str], line: socket.socket) -> "subprocess.Popen[bytes]":
    """Start a process that takes this socket from us with `line_from_parent`; we may close ours."""
    if sys.platform == "win32":
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(line.share(process.pid))
        process.stdin.close()
        return process
    return subprocess.Popen(command, stdin=line.fileno())


def line_from_parent() -> socket.socket:
    """Return the socket that `start_with_line` gave us by our standard input."""
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    return socket.socket(fileno=sys.stdin.fileno())


def write_what_can_be_written(*streams: TextIO) -> None:
    """Let a character that a stream cannot write be a question mark there, not an error.

    A file or a pipe on Windows has the letters of one part of the world, and no bars and boxes.
    """
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def unseen_keys() -> Iterator[None]:
    """Let the terminal not write what is typed, while the block runs; not on Windows.

    What a key does, it does: Ctrl-C interrupts, and what was typed is for whoever reads next.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    terminal = sys.stdin.fileno()

    def set_to(attributes: list[Any]) -> None:
        with suppress(OSError, termios.error):  # the terminal is gone
            # Who sets it from the background is stopped by the system.
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSANOW, attributes)

    before = termios.tcgetattr(terminal)
    set_to([*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    try:
        yield
    finally:
        set_to(before)


# --- files ---------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk.

    Windows opens no directories, and keeps their lists of names by itself.
    """
    if not HAS_PERMISSIONS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if HAS_PERMISSIONS else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def most_files() -> int | None:
    """Return how many files, and so connections, this process may have open; None: any number."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def allow_many_files() -> None:
    """Let this process have as many open files as the system allows it: a connection is one.

    Where the system sets no limits, or will not have them changed, they stay as they are.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow, as on a disk without room; not on Windows."""
    if sys.platform == "win32":
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- sockets -------------------------------------------------------------------------------------


def take_address(listening: socket.socket, address: tuple[str, int]) -> None:
    """Bind a socket, though the system still remembers connections of a process that was there.

    Windows never waits for those; what others call reuse there lets two processes have one port.
    """
    if sys.platform == "win32":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)


def when_dialled(
    loop: "AbstractEventLoop", listening: socket.socket, do: Callable[[], object]
) -> Callable[[], object]:
    """Call `do` whenever a connection may be waiting; return what ends that.

    The event loop of Windows tells only those who wait for one connection, and that cannot be
    cancelled without losing one: there it is looked for a hundred times a second.
    """
    try:
        loop.add_reader(listening, do)
    except NotImplementedError:
        return _Looking(loop, do).stop
    return partial(loop.remove_reader, listening)


class _Looking:
    """Calls `do` again and again, until it is stopped."""

    def __init__(self, loop: "AbstractEventLoop", do: Callable[[], object]) -> None:
        self._loop = loop
        self._do = do
        self._next = loop.call_later(ACCEPT_S, self._look)

    def _look(self) -> None:
        self._next = self._loop.call_later(ACCEPT_S, self._look)
        self._do()

    def stop(self) -> None:
        self._next.cancel()


def limit_unsent(connected: socket.socket, num_bytes: int) -> None:
    """Let the kernel take no more than this ahead of what it sends; not on Windows."""
    _set_if_known(connected, "TCP_NOTSENT_LOWAT", num_bytes)


def choose_congestion(connected: socket.socket, control: str) -> None:
    """Choose how TCP shares the line, where there is a choice: on Linux and FreeBSD."""
    _set_if_known(connected, "TCP_CONGESTION", control.encode())


def congestion_of(connected: socket.socket) -> str:
    """Return the name of what controls the congestion of this socket; empty: it is not told."""
    option: int | None = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return ""
    told = connected.getsockopt(socket.IPPROTO_TCP, option, 16)  # TCP_CA_NAME_MAX
    return told.rstrip(b"\0").decode("ascii")


def num_confirmed(connected: socket.socket) -> int:
    """Return how many bytes the other side's system has; 0 where ours does not tell.

    With those that came before others which were lost: when these are there at last, it is no news
    of the line. A byte or two may be counted again then, as packets are not all full.
    """
    if sys.platform != "linux":
        return 0
    told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
    packet_bytes, num_packets, num_bytes = _ACKED.unpack(told)
    return int(num_bytes + num_packets * packet_bytes)


def least_round_trip_s(connected: socket.socket) -> float | None:
    """Return the shortest round trip of the last minutes, in seconds; None: ours does not tell."""
    if sys.platform != "linux":
        return None
    told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LEAST_ROUND_TRIP.size)
    if len(told) < _LEAST_ROUND_TRIP.size:  # before Linux 4.6
        return None
    microseconds = int(_LEAST_ROUND_TRIP.unpack(told)[0])
    return None if microseconds == _NO_ROUND_TRIP else microseconds / 1e6


def interface_with(address: str) -> str:
    """Return the name of the network interface that has this IPv4 address.

    Empty: none has, or the system is not Linux.
    """
    if sys.platform != "linux":
        return ""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                told = fcntl.ioctl(asking, _SIOCGIFADDR, _IFREQ_NAME.pack(name.encode()))
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return ""


def _set_if_known(connected: socket.socket, name: str, value: int | bytes) -> None:
    option: int | None = getattr(socket, name, None)
    if option is not None:
        with suppress(OSError):  # its own ways are good enough
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
