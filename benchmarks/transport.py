"""How fast one connection is, between two processes with a core each.

    python benchmarks/transport.py --sizes-kib 64 256 1024 16384 --total-mib 512 --tries 3

Payloads are sent back to back over the loopback, with TLS 1.3, and received into a buffer that is
used again. Prints lines of JSON: what the machine could do at best (a copy in memory, AES-GCM on
the 16 KiB of a TLS record, each on one core); for each size the best of the tries, with the CPU
time at both ends; and how much of a limit of rate is used, with the headers that a limit counts.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from time import process_time

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.clock import monotonic_s
from atoll.ids import Digest, digest_of
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.listener import Limits
from atoll.net.rate import on_the_wire
from atoll.net.transport import Connection, TcpTransport
from atoll.units import KIB, MIB

LOOPBACK = "127.0.0.1"
ANY = Digest("00" * 32)
RECORD_BYTES = 16 * KIB
LIMITED_BYTES_PER_S = 12_500_000  # 100 Mb/s
GB = 1e9


def main() -> None:
    arguments = parsed()
    for line in machine():
        print(json.dumps(line), flush=True)
    total = arguments.total_mib * MIB
    for size in (kib * KIB for kib in arguments.sizes_kib):
        tries = [transfer(size, max(1, total // size)) for _ in range(arguments.tries)]
        print(json.dumps(max(tries, key=lambda line: line["mb_per_s"])), flush=True)
    for limits in (
        Limits(upload_bytes_per_s=LIMITED_BYTES_PER_S),
        Limits(download_bytes_per_s=LIMITED_BYTES_PER_S),
    ):
        print(json.dumps(limited(limits)), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes-kib", type=int, nargs="+", default=[64, 256, 1024, 16384])
    parser.add_argument("--total-mib", type=int, default=512, help="bytes of one try")
    parser.add_argument("--tries", type=int, default=3)
    return parser.parse_args()


# --- what the machine can do ---------------------------------------------------------------------


def machine() -> Iterator[dict[str, object]]:
    source, target = np.ones(64 * MIB, np.uint8), np.empty(64 * MIB, np.uint8)
    seconds = min(timed(lambda: np.copyto(target, source)) for _ in range(5))
    yield {"limit": "memory_copy", "mb_per_s": round(source.nbytes / seconds / 1e6)}
    cipher, nonce, record = AESGCM(bytes(16)), bytes(12), bytes(RECORD_BYTES)

    def encrypt() -> None:
        for _ in range(1000):
            cipher.encrypt(nonce, record, None)

    seconds = min(timed(encrypt) for _ in range(3))
    yield {"limit": "aes_128_gcm", "mb_per_s": round(1000 * RECORD_BYTES / seconds / 1e6)}


def timed(work: Callable[[], object]) -> float:
    started_at = monotonic_s()
    work()
    return monotonic_s() - started_at


# --- two processes -------------------------------------------------------------------------------


def transfer(size: int, times: int, limits: Limits | None = None) -> dict[str, float]:
    """Return the speed of so many payloads of this size from one process to another."""
    ours, theirs = get_context("spawn").Pipe()
    receiver = get_context("spawn").Process(
        target=receive_in_process, args=(theirs, size, times, limits)
    )
    receiver.start()
    theirs.close()  # so that a receiver that dies is the end of the file here
    pin(0)
    try:
        seconds, sender_s = asyncio.run(send_all(ours.recv(), size, times, limits))
        receiver_s = ours.recv()
    finally:
        receiver.join(timeout=10)
        receiver.kill()
    num_bytes = size * times
    return {
        "payload_kib": size / KIB,
        "mb_per_s": round(num_bytes / seconds / 1e6, 1),
        "sender_cpu_s_per_gb": round(sender_s / (num_bytes / GB), 3),
        "receiver_cpu_s_per_gb": round(receiver_s / (num_bytes / GB), 3),
    }


def limited(limits: Limits) -> dict[str, object]:
    """Return how near to its limit, headers included, a transfer of about two seconds comes."""
    size = MIB
    line = transfer(size, 24, limits)
    on_wire = line["mb_per_s"] * on_the_wire(size) / size * 1e6
    return {
        "limited": "upload" if limits.upload_bytes_per_s else "download",
        "limit_bytes_per_s": LIMITED_BYTES_PER_S,
        "share_of_limit": round(on_wire / LIMITED_BYTES_PER_S, 3),
    }


def pin(core: int) -> None:
    """Run on this core alone, where the system knows how; on a single core, both ends share it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


async def send_all(port: int, size: int, times: int, limits: Limits | None) -> tuple[float, float]:
    """Return the wall and CPU seconds from the first byte to the receiver's answer to the last."""
    connection = await TcpTransport(None, limits if uploads(limits) else None).dial(
        LOOPBACK, port, expect=None, timeout_s=10
    )
    payload, blob = bytes(size), wire.Blob(digest=ANY, num_bytes=size)
    started_at, cpu_s = monotonic_s(), process_time()
    for _ in range(times):
        await connection.send(blob, payload)
    await connection.receive()
    seconds, cpu_s = monotonic_s() - started_at, process_time() - cpu_s
    await connection.close()
    return seconds, cpu_s


def receive_in_process(pipe: Pipe, size: int, times: int, limits: Limits | None) -> None:
    pin(1)
    asyncio.run(receive_all(pipe, size, times, None if uploads(limits) else limits))


async def receive_all(pipe: Pipe, size: int, times: int, limits: Limits | None) -> None:
    received = asyncio.Event()

    async def serve(connection: Connection) -> None:
        buffer = bytearray(size)
        cpu_s = process_time()
        for _ in range(times):
            await connection.receive()
            await connection.receive_payload(size, into=buffer)
        await connection.send(wire.Missing())
        pipe.send(process_time() - cpu_s)
        received.set()

    listener = await TcpTransport(member(), limits).listen(serve, host=LOOPBACK, port=0)
    pipe.send(listener.port)
    await received.wait()
    await listener.close()


def uploads(limits: Limits | None) -> bool:
    return limits is not None and limits.upload_bytes_per_s > 0


def member() -> Identity:
    """Return a member of a run of its own; whoever dials it here is a stranger."""
    authority = Authority.create(run=digest_of(b"benchmark"))
    identity = Identity.create()
    certificate = authority.sign_member(identity.public_key, "member")
    identity.certify(certificate, authority.certificate)
    return identity


if __name__ == "__main__":
    main()
