"""How long each phase of a round takes: a real run on this machine, with hardly any training.

    python benchmarks/round.py --peers 3 --params 4e6 --rounds 5 --codec int8

The host, its built-in member, agents and trainers are processes as in any run, joined by an invite
and TLS over the loopback. Prints one line of JSON for each phase, over all peers and rounds, and
then what the machine could do at best: copy memory, and send over one connection.

    train snapshot encode save_inner send reduce update     as peers report it; send ends when the
    outer_step hash merge checkpoint                        inner optimizer is saved as well
    round                                                   from plan to commit, by the host

Phases overlap: a slice is sent while the next is encoded, and the checkpoint is written beside the
next round. `num_bytes` is what a peer reads, writes or moves in that phase in one round.
"""

import argparse
import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import sqrt
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep
from typing import NamedTuple

import numpy as np

from atoll.cli.processes import POLL_S, Process, end
from atoll.clock import monotonic_s
from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
    template,
)
from atoll.errors import RunError
from atoll.events import BytesMoved, PhaseTimed, RoundCommitted, Stamped, read_events
from atoll.exchange.codec import CODECS
from atoll.ids import digest_of
from atoll.model.shapes import num_parameters
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.transport import Connection, TcpTransport
from atoll.outer.layout import slice_bounds
from atoll.units import MIB

LOOPBACK = "127.0.0.1"
START_S = 120.0  # for the host to be there
LAYERS = 4
PAYLOAD_BYTES = 256 * MIB  # for what the machine can do at best
TRIES = 5


class Interval(NamedTuple):
    start: float
    stop: float


def main() -> None:
    arguments = parse()
    config = run_config(arguments)
    with TemporaryDirectory(prefix="atoll-round-") as name:
        run(config, Path(name), num_peers=arguments.peers)
        homes = [Path(name) / f"peer-{number}" for number in range(arguments.peers)]
        for line in report(config, [read_events(h / "events.jsonl")[0] for h in homes]):
            print(json.dumps(line), flush=True)
        seconds = [
            stamped.event.seconds
            for stamped in read_events(Path(name) / "run" / "events.jsonl")[0]
            if isinstance(stamped.event, RoundCommitted)
        ]
        print(json.dumps(figures("round", seconds, num_bytes=0)))
    for line in limits():
        print(json.dumps(line))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--params", type=float, default=4e6, help="about so many parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", choices=CODECS, default="int8")
    return parser.parse_args()


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """Return a run of one short inner step in each round."""
    # Without the embedding, a layer has 13 w^2: 4 w^2 of attention, 9 w^2 of an FFN of width 3 w.
    width = max(16, 16 * round(sqrt(arguments.params / (13 * LAYERS)) / 16))
    return RunConfig(
        name="round",
        model=ModelConfig(
            vocab_size=300,
            num_layers=LAYERS,
            width=width,
            num_heads=4,
            num_kv_heads=4,
            ffn_width=3 * width,
            tied_embeddings=True,
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="path", name="text.txt"),),
            tokenizer=TokenizerConfig(vocab_size=300),
            sequence_length=16,
        ),
        inner=InnerConfig(lr=1e-3, batch_sequences=1),
        sync=SyncConfig(
            rounds=arguments.rounds,
            inner_steps=1,
            codec=arguments.codec,
            update_codec=arguments.codec,
            min_peers=arguments.peers,
            quorum=1.0,
        ),
    )


# --- the run -------------------------------------------------------------------------------------


def run(config: RunConfig, folder: Path, *, num_peers: int) -> None:
    """Let the run take place in the folder: the host in `run`, the peers in `peer-0`, ...

    Raises:
        RunError: the host does not come up, or ends with an error.
    """
    directory = folder / "run"
    directory.mkdir()
    chance = random.Random(0)
    words = (f"island {chance.randrange(1000)}" for _ in range(20_000))
    (directory / "text.txt").write_text(" ".join(words))
    (directory / "run.toml").write_text(template(config), encoding="utf-8")
    cache = ("--cache", str(folder / "cache"))
    address = ["--listen", LOOPBACK, "--advertise", LOOPBACK, "--port", "0", "--no-web"]
    address += ["--reducer-port", "0"]
    host = Process("host", ["host", str(directory), *address, *cache], directory=directory)
    processes = [host]
    try:
        host.start()
        invite = wait_for_invite(host, directory / "invite.txt")
        for number in range(num_peers):
            home = folder / f"peer-{number}"
            arguments = ["join", invite, "--dir", str(home), "--threads", "1", *cache]
            processes.append(Process(home.name, arguments, directory=home))
            processes[-1].start()
        # A peer may still be writing its last state when the host has ended.
        while any(process.is_running for process in processes):
            if failed := [process for process in processes if process.exit_code]:
                raise RunError(f"{failed[0].name} has failed: {failed[0].last_words}")
            sleep(POLL_S)
    finally:
        end(processes)


def wait_for_invite(host: Process, path: Path) -> str:
    """Return the invite, once the host has written it.

    Raises:
        RunError: it does not.
    """
    give_up_at = monotonic_s() + START_S
    while not path.exists():
        if not host.is_running or monotonic_s() > give_up_at:
            raise RunError(f"the host does not come up: {host.last_words}")
        sleep(POLL_S)
    return path.read_text(encoding="utf-8").strip()


# --- its figures ---------------------------------------------------------------------------------


def report(config: RunConfig, peers: Iterable[list[Stamped]]) -> Iterator[dict[str, object]]:
    """Yield a line for each phase, from the events of each peer."""
    intervals: dict[str, dict[tuple[int, int], list[Interval]]] = defaultdict(
        lambda: defaultdict(list)
    )
    moved: dict[str, list[int]] = defaultdict(list)
    for number, stamped_events in enumerate(peers):
        for at, event in ((stamped.at, stamped.event) for stamped in stamped_events):
            if isinstance(event, PhaseTimed):
                key = (number, event.round)
                intervals[event.phase][key].append(Interval(at - event.seconds, at))
            elif isinstance(event, BytesMoved):
                moved["send"].append(event.traffic.contributions_sent)
                moved["update"].append(event.traffic.updates_received)
    num_values = num_parameters(config.model)
    codec = CODECS[config.sync.codec]
    encoded = sum(codec.encoded_bytes(stop - start) for start, stop in slice_bounds(num_values))
    num_bytes = {
        "train": 0,
        "snapshot": 4 * num_values,
        "encode": encoded,
        "send": round(median(moved["send"])),
        "reduce": encoded,  # its part of the slices, from every peer
        "update": round(median(moved["update"])),
        "outer_step": 8 * num_values,
        "hash": 8 * num_values,
        "merge": 4 * num_values,
        "save_inner": 8 * num_values,
        "checkpoint": 8 * num_values,
    }
    for phase, moved_bytes in num_bytes.items():
        seconds = [covered(found) for found in intervals[phase].values()]
        yield figures(phase, seconds, num_bytes=moved_bytes)


def covered(intervals: Iterable[Interval]) -> float:
    """Return how many seconds lie in an interval, or in several: slices are reduced in parallel."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def figures(phase: str, seconds: list[float], *, num_bytes: int) -> dict[str, object]:
    return {
        "phase": phase,
        "median_s": round(median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "num_bytes": num_bytes,
    }


# --- what the machine can do ---------------------------------------------------------------------


def limits() -> Iterator[dict[str, object]]:
    """Yield how fast this machine copies memory, and sends over one connection to itself."""
    source, target = (np.ones(PAYLOAD_BYTES, np.uint8) for _ in range(2))
    copies = []
    for _ in range(TRIES):
        started_at = monotonic_s()
        np.copyto(target, source)
        copies.append(monotonic_s() - started_at)
    yield {"limit": "memory_copy", "bytes_per_s": round(PAYLOAD_BYTES / min(copies))}
    sends = asyncio.run(send_to_self(source.tobytes()))
    yield {"limit": "tls_loopback", "bytes_per_s": round(PAYLOAD_BYTES / min(sends))}


async def send_to_self(payload: bytes) -> list[float]:
    """Return the seconds of each try; both ends are in this process, so both are in the figure."""
    anna, ben = members()
    blob = wire.Blob(digest=digest_of(payload), num_bytes=len(payload))

    async def serve(connection: Connection) -> None:
        for _ in range(TRIES):
            await connection.receive()
            await connection.receive_payload(len(payload))
            await connection.send(wire.Taken(slice=0))

    listener = await TcpTransport(ben).listen(serve, host=LOOPBACK, port=0)
    connection = await TcpTransport(anna).dial(
        LOOPBACK, listener.port, expect=ben.peer_id, timeout_s=10.0
    )
    seconds = []
    for _ in range(TRIES):
        started_at = monotonic_s()
        await connection.send(blob, payload)
        await connection.receive()
        seconds.append(monotonic_s() - started_at)
    await connection.close()
    await listener.close()
    return seconds


def members() -> list[Identity]:
    """Return two members of a run of their own."""
    authority = Authority.create(run=digest_of(b"benchmark"))
    identities = [Identity.create() for _ in range(2)]
    for identity in identities:
        certificate = authority.sign_member(identity.public_key, "member")
        identity.certify(certificate, authority.certificate)
    return identities


if __name__ == "__main__":
    main()
