"""A network of real links on one machine: a namespace for each peer, and one for what joins them.

    peer 0                    switch
    wan   10.77.0.1 ==veth==  port0 --+
    admin 10.78.0.1 ==veth==  desk0   |-- bridge `air`   (with delay or loss: the relay, relay.py)
    peer 1                      |     |
    wan   10.77.0.2 ==veth==  port1 --+
    admin 10.78.0.2 ==veth==  desk1 ----- bridge `office`, 10.78.0.254

htb holds each link to its rate: what the peer sends on `wan`, what it receives on `port`. The admin
network has no limit; rendezvous and bookkeeping of the systems under test may go over it.

Nothing touches the namespace that we were started in. Names carry our process id; whatever a dead
process left is removed when the next lab is made.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

from lab.links import LabError, Link

LINK_NET, ADMIN_NET = "10.77.0", "10.78.0"
HUB_HOST = 254
MAX_PEERS = 200  # one byte of an address
QUEUE_S = 0.05  # what a full queue holds; ordinary routers have 50 to 100 ms
MIN_QUEUE_BYTES = 256_000  # four segments as the kernel hands them over, before it cuts them
BURST_S = 0.001  # the timer may be late by so much, and the link is still full
MIN_BURST_BYTES = 16_000
TAP_QUEUE_PACKETS = 4000
RELAY = Path(__file__).with_name("relay.py")


@dataclass(frozen=True, kw_only=True)
class Node:
    """Where one process lives: its namespace, and its addresses there."""

    namespace: str
    interface: str  # of its link
    address: str
    admin_address: str

    def inside(self, command: list[str]) -> list[str]:
        """Return the command that runs this one in the namespace; it keeps the process id."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def num_bytes(self) -> tuple[int, int]:
        """Return what the link has sent and received since it was made, in bytes."""
        shown = run("ip", "netns", "exec", self.namespace, "cat", "/proc/net/dev")
        fields = re.search(rf"(?m)^\s*{self.interface}:\s*(.*)$", shown)
        assert fields
        counters = fields[1].split()
        return int(counters[8]), int(counters[0])


@dataclass(frozen=True, kw_only=True)
class Lab:
    peers: list[Node]
    hub: Node  # on the admin network only; on loopback beside the peers


@contextmanager
def lab(link: Link, *, num_peers: int) -> Iterator[Lab]:
    """Make the network, and remove it at the end together with the processes still in it.

    Raises:
        LabError: this is not root, or the system cannot do it.
    """
    check(link, num_peers=num_peers)
    sweep()
    prefix = f"atoll{os.getpid()}"
    with ExitStack() as stack:
        hub = make_namespace(f"{prefix}-hub", stack=stack)
        if link.rate is None:
            here = Node(
                namespace=hub, interface="lo", address="127.0.0.1", admin_address="127.0.0.1"
            )
            yield Lab(peers=[here] * num_peers, hub=here)
            return
        make_bridge(hub, "office")
        run("ip", "-n", hub, "addr", "add", f"{ADMIN_NET}.{HUB_HOST}/24", "dev", "office")
        peers = [
            add_peer(number, make_namespace(f"{prefix}-{number}", stack=stack), hub)
            for number in range(num_peers)
        ]
        for number, peer in enumerate(peers):
            choose_congestion_control(peer, link.congestion)
            shape(peer.namespace, "wan", link.rate.up_bps)
            shape(hub, f"port{number}", link.rate.down_bps)
        if link.is_relayed:
            stack.enter_context(relay(link, hub, num_peers=num_peers))
        else:
            make_bridge(hub, "air")
            for number in range(num_peers):
                run("ip", "-n", hub, "link", "set", f"port{number}", "master", "air")
        admin = f"{ADMIN_NET}.{HUB_HOST}"
        yield Lab(
            peers=peers,
            hub=Node(namespace=hub, interface="office", address=admin, admin_address=admin),
        )


def check(link: Link, *, num_peers: int) -> None:
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces, which only root may: run it with sudo")
    if not 1 <= num_peers <= MAX_PEERS:
        raise LabError(f"{num_peers} peers: the lab has room for 1 to {MAX_PEERS}")
    if link.rate is None and link.is_relayed:
        raise LabError("a loopback has no delay and no loss: name a rate")


def run(*command: str) -> str:
    """Return what the command printed.

    Raises:
        LabError: it failed, or is not there.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is missing: install iproute2") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


# --- namespaces ----------------------------------------------------------------------------------


def make_namespace(name: str, *, stack: ExitStack) -> str:
    """Return the name of a fresh namespace, which the stack removes."""
    run("ip", "netns", "add", name)
    stack.callback(remove, name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    settings = {
        "net.ipv6.conf.all.disable_ipv6": "1",  # no chatter beside what is measured
        "net.ipv6.conf.default.disable_ipv6": "1",
        "net.ipv4.tcp_no_metrics_save": "1",  # each connection starts anew
    }
    pairs = [f"{key}={value}" for key, value in settings.items()]
    run("ip", "netns", "exec", name, "sysctl", "-q", *pairs)
    return name


def remove(name: str) -> None:
    """Remove a namespace and the processes in it."""
    for pid in run("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run("ip", "netns", "delete", name)


def sweep() -> None:
    """Remove what labs of dead processes left."""
    for name in re.findall(r"(?m)^atoll\d+-\w+", run("ip", "netns", "list")):
        owner = re.match(r"atoll(\d+)-", name)
        assert owner
        if not Path("/proc", owner[1]).exists():
            remove(name)


# --- links ---------------------------------------------------------------------------------------


def add_peer(number: int, namespace: str, hub: str) -> Node:
    """Connect a namespace: its link ends at a port that is in no bridge yet."""
    connect(namespace, "wan", hub, f"port{number}", mac=mac_of(number))
    connect(namespace, "admin", hub, f"desk{number}")
    run("ip", "-n", hub, "link", "set", f"desk{number}", "master", "office")
    node = Node(
        namespace=namespace,
        interface="wan",
        address=f"{LINK_NET}.{number + 1}",
        admin_address=f"{ADMIN_NET}.{number + 1}",
    )
    for address, interface in ((node.address, "wan"), (node.admin_address, "admin")):
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", interface)
    return node


def mac_of(number: int) -> str:
    """Return a locally administered address; the relay reads the number from its last byte."""
    return f"02:00:00:00:00:{number:02x}"


def connect(namespace: str, name: str, hub: str, port: str, *, mac: str = "") -> None:
    address = ["address", mac] if mac else []
    run(
        *("ip", "-n", namespace, "link", "add", name, *address, "type", "veth"),
        *("peer", "name", port, "netns", hub),
    )
    run("ip", "-n", namespace, "link", "set", name, "up")
    run("ip", "-n", hub, "link", "set", port, "up")


def choose_congestion_control(node: Node, name: str) -> None:
    """Set what a connection over the link starts with; its socket may choose another later.

    By the route, since the setting of the whole namespace is closed to all but the algorithms that
    the first namespace allows.
    """
    subnet = f"{LINK_NET}.0/24"
    way = ("dev", "wan", "proto", "kernel", "scope", "link", "src", node.address)
    run("ip", "-n", node.namespace, "route", "replace", subnet, *way, "congctl", name)


def make_bridge(hub: str, name: str) -> None:
    run("ip", "-n", hub, "link", "add", name, "type", "bridge", "mcast_snooping", "0")
    run("ip", "-n", hub, "link", "set", name, "up")


def shape(namespace: str, device: str, bps: float) -> None:
    """Hold what leaves the device to so many bits per second, Ethernet headers included."""
    burst_bytes = max(MIN_BURST_BYTES, round(bps / 8 * BURST_S))
    queue_bytes = max(MIN_QUEUE_BYTES, round(bps / 8 * QUEUE_S))
    tc = ("tc", "-n", namespace)
    run(*tc, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1")
    run(
        *(*tc, "class", "add", "dev", device, "parent", "1:", "classid", "1:1", "htb"),
        *("rate", f"{round(bps)}bit", "burst", f"{burst_bytes}b", "cburst", f"{burst_bytes}b"),
        *("quantum", "60000"),  # one class shares with nobody; without it the kernel complains
    )
    run(*tc, "qdisc", "add", "dev", device, "parent", "1:1", "bfifo", "limit", f"{queue_bytes}b")


@contextmanager
def relay(link: Link, hub: str, *, num_peers: int) -> Iterator[None]:
    """Join the ports by a process that delays and drops, instead of by a bridge."""
    for number in range(num_peers):
        tap, bridge = f"tap{number}", f"air{number}"
        run("ip", "-n", hub, "tuntap", "add", "dev", tap, "mode", "tap")
        run("ip", "-n", hub, "link", "set", tap, "up", "txqueuelen", str(TAP_QUEUE_PACKETS))
        make_bridge(hub, bridge)
        for device in (f"port{number}", tap):
            run("ip", "-n", hub, "link", "set", device, "master", bridge)
    command = [sys.executable, str(RELAY), "--peers", str(num_peers)]
    command += ["--delay-s", str(link.rtt_s / 2), "--loss", str(link.loss)]
    in_hub = ["ip", "netns", "exec", hub, *command]
    with subprocess.Popen(in_hub, stdin=DEVNULL, stdout=PIPE, text=True) as process:
        try:
            assert process.stdout
            if not process.stdout.readline():
                raise LabError("the relay does not start: is there a /dev/net/tun?")
            yield
        finally:
            process.kill()
