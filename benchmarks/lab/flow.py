"""How fast the lab's links really are: plain TCP between the peers, one line of JSON.

    sudo python benchmarks/lab/flow.py --peers 4 --link 100mbit [--rtt 80ms --loss 0.1%]

Every peer sends to the next one for some seconds, all at once, so that each link is full both ways.
`share` is what arrived, headers not counted, over what the slower end of the way can carry; the
first second, in which TCP finds the rate, does not count. `connect_ms`: how long a connection takes
to be there, a round trip. `--one-way`: only the first peer sends.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.links import Link, parse_loss, parse_rate, parse_rtt_s
from lab.network import Node, lab

PORT = 7000
CHUNK_BYTES = 1 << 18
WARM_UP_S = 1.0
TIMEOUT_S = 30.0
NICE = -15  # what is asked is what the link can do, not how busy the machine is


def main() -> None:
    arguments = parse()
    if arguments.role:
        os.nice(NICE)
    if arguments.role == "send":
        send(arguments.address)
    elif arguments.role == "receive":
        receive(arguments.address, seconds=arguments.seconds)
    else:
        link = Link(
            rate=arguments.link,
            rtt_s=arguments.rtt,
            loss=arguments.loss,
            congestion=arguments.congestion,
        )
        print(json.dumps(measure(link, arguments)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--link", type=parse_rate, default="100mbit")
    parser.add_argument("--rtt", type=parse_rtt_s, default="0ms")
    parser.add_argument("--loss", type=parse_loss, default="0%")
    parser.add_argument("--congestion", choices=("cubic", "bbr"), default="cubic")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--one-way", action="store_true")
    parser.add_argument("--role", choices=("send", "receive"), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(link: Link, arguments: argparse.Namespace) -> dict[str, object]:
    """Return the rate of each flow in bits per second, and of the slowest the share of its link."""
    with lab(link, num_peers=arguments.peers) as network:
        ways = list(zip(network.peers, network.peers[1:] + network.peers[:1], strict=True))
        ways = ways[:1] if arguments.one_way else ways
        seconds = ["--seconds", str(arguments.seconds)]
        receivers = [start(to, "receive", to.address, *seconds) for _, to in ways]
        for receiver in receivers:
            line_of(receiver)
        senders = [start(source, "send", to.address) for source, to in ways]
        rates = [float(line_of(receiver)) for receiver in receivers]
        connects = [float(line_of(sender)) for sender in senders]
        for process in (*receivers, *senders):
            process.wait(timeout=TIMEOUT_S)
    limit = min(link.rate.up_bps, link.rate.down_bps) if link.rate else float("nan")
    return {
        "flows_mbit": [round(rate / 1e6, 1) for rate in rates],
        "connect_ms": [round(1000 * seconds, 1) for seconds in connects],
        "share": round(min(rates) / limit, 4),
    }


def start(node: Node, role: str, address: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", role, "--address", address, *more]
    return subprocess.Popen(node.inside(command), stdout=PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def receive(address: str, *, seconds: float) -> None:
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
    buffer = bytearray(CHUNK_BYTES)
    with connection:
        drain(connection, buffer, seconds=WARM_UP_S)
        started_at = monotonic()
        num_bytes = drain(connection, buffer, seconds=seconds)
        print(num_bytes * 8 / (monotonic() - started_at), flush=True)


def drain(connection: socket.socket, buffer: bytearray, *, seconds: float) -> int:
    """Return how many bytes came within so many seconds."""
    num_bytes, ends_at = 0, monotonic() + seconds
    while monotonic() < ends_at:
        num_bytes += connection.recv_into(buffer)
    return num_bytes


def send(address: str) -> None:
    """Send until the other side closes."""
    chunk = bytes(CHUNK_BYTES)
    dialled_at = monotonic()
    with socket.create_connection((address, PORT), timeout=TIMEOUT_S) as connection:
        print(monotonic() - dialled_at, flush=True)
        try:
            while True:
                connection.sendall(chunk)
        except ConnectionError:
            return


if __name__ == "__main__":
    main()
