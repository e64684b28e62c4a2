"""The links of the benchmarks' lab have the rate and the delay that they should (needs root)."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.lab.segments import TAP_HEADER, num_packets, without

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MOST = 0.956 * 1.1  # of the rate may be payload, the rest are headers; a burst is a little more


def can_make_links() -> bool:
    """Return whether this process may make network namespaces, and devices in them."""
    if os.geteuid() or not Path("/dev/net/tun").exists():
        return False
    name = f"atoll-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


needs_root = pytest.mark.skipif(not can_make_links(), reason="makes network namespaces")


def flow(*options: str) -> dict[str, list[float]]:
    command = [sys.executable, str(BENCHMARKS / "lab" / "flow.py"), "--seconds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, list[float]] = json.loads(done.stdout)
    return figures


# A busy machine may be slower than its links. What can be proved here is that no link is too fast;
# that they are full on a machine that is free is a figure of docs/benchmarks/exchange.md.


@needs_root
@pytest.mark.parametrize(
    ("options", "mbit"),
    [
        (("--peers", "2", "--link", "20mbit"), 20),
        (("--link", "20mbit/100mbit", "--one-way"), 20),
        (("--link", "20mbit", "--rtt", "60ms"), 20),
    ],
)
def test_a_link_carries_no_more_than_its_rate(options, mbit):
    rates = flow(*options)["flows_mbit"]
    assert all(0 < rate <= MOST * mbit for rate in rates)


@needs_root
def test_the_relay_delays_by_the_round_trip():
    assert min(flow("--link", "20mbit", "--rtt", "60ms")["connect_ms"]) >= 60


# --- losses --------------------------------------------------------------------------------------

MSS = 1448
TCP_AT = TAP_HEADER.size + 14 + 20
PAYLOAD_AT = TCP_AT + 20
PSH_ACK, ACK = 0x18, 0x10


def frame_of(payload: bytes) -> bytes:
    """A TCP segment that the kernel has not cut yet: no options, sequence 2^32 - 1000."""
    kind, packet_bytes = (1, MSS) if len(payload) > MSS else (0, 0)
    tap = TAP_HEADER.pack(1, kind, 54, packet_bytes, 34, 16)
    size = struct.pack("!H", 40 + len(payload))
    ip = b"\x45\0" + size + b"\0\x07\x40\0\x40\x06\0\0" + bytes([10, 77, 0, 1, 10, 77, 0, 2])
    tcp = struct.pack("!HHIIBBHHH", 7, 8, 2**32 - 1000, 1, 0x50, PSH_ACK, 100, 0, 0)
    return tap + bytes(12) + b"\x08\0" + ip + tcp + payload


def sum_of(words: bytes) -> int:
    return sum(struct.unpack(f"!{len(words) // 2}H", words)) % 0xFFFF


def test_what_is_not_lost_arrives_where_it_belongs():
    payload = bytes(range(256)) * 25  # 6400 bytes: four full packets and a short one
    frame = frame_of(payload)
    assert num_packets(frame) == 5
    left = without(frame, [False, False, True, False, False])
    assert [part[PAYLOAD_AT:] for part in left] == [payload[: 2 * MSS], payload[3 * MSS :]]
    sequences = [struct.unpack_from("!I", part, TCP_AT + 4)[0] for part in left]
    assert sequences == [2**32 - 1000, 3 * MSS - 1000]
    assert [part[TCP_AT + 13] for part in left] == [ACK, PSH_ACK]
    for part in left:
        ip = part[TCP_AT - 20 : TCP_AT]
        assert struct.unpack_from("!H", ip, 2)[0] == len(part) - TAP_HEADER.size - 14
        assert sum_of(ip) == 0  # which is what its checksum is for
        pseudo = ip[12:20] + struct.pack("!HH", 6, len(part) - TCP_AT)
        assert struct.unpack_from("!H", part, TCP_AT + 16)[0] % 0xFFFF == sum_of(pseudo)


def test_a_single_packet_is_no_longer_to_be_cut():
    frame = frame_of(bytes(3 * MSS))
    [part] = without(frame, [True, False, True])
    assert TAP_HEADER.unpack_from(part)[1:4:2] == (0, 0)
    assert len(part) == PAYLOAD_AT + MSS
    assert num_packets(part) == 1


def test_a_frame_goes_whole_or_not_at_all_where_that_is_what_happens():
    frame = frame_of(bytes(100))
    assert without(frame, [False]) == [frame]
    assert without(frame, [True]) == []
