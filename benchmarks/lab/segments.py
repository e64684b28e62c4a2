"""What is left of a frame when the link loses some of its packets.

The kernel cuts a large TCP segment into packets as late as it can, and hands it over whole until
then: a header for the tap (virtio_net_hdr, linux/virtio_net.h), Ethernet, IPv4, TCP, and the bytes
of up to 45 packets. Carrying it whole is much less work; losses still strike single packets.
"""

import struct
from itertools import groupby

TAP_HEADER = struct.Struct(
    "=BBHHHH"
)  # flags, kind, header bytes, packet bytes, checksum start, offset
ETHERNET_BYTES = 14
PLAIN = 0  # kind: not to be cut
LAST_ONLY = 0x09  # FIN and PSH: flags that belong to the last packet alone
TCP = 6


def num_packets(frame: bytes) -> int:
    """Return in how many packets the frame travels."""
    kind: int
    packet_bytes: int
    _, kind, _, packet_bytes, _, _ = TAP_HEADER.unpack_from(frame)
    if kind == PLAIN:
        return 1
    return max(1, -(-(len(frame) - _payload_at(frame)) // packet_bytes))


def without(frame: bytes, lost: list[bool]) -> list[bytes]:
    """Return the frames that carry the packets that were not lost, one for each run of them."""
    if not any(lost):
        return [frame]
    if len(lost) == 1:
        return []
    frames, start = [], 0
    for is_lost, run in groupby(lost):
        stop = start + len(list(run))
        if not is_lost:
            frames.append(_cut(frame, start, stop, is_end=stop == len(lost)))
        start = stop
    return frames


def _payload_at(frame: bytes) -> int:
    tcp: int = TAP_HEADER.size + TAP_HEADER.unpack_from(frame)[4]
    return tcp + 4 * (frame[tcp + 12] >> 4)


def _cut(frame: bytes, start: int, stop: int, *, is_end: bool) -> bytes:
    """Return a frame of the packets `start` to `stop - 1`."""
    flags, kind, header_bytes, packet_bytes, tcp_start, check_at = TAP_HEADER.unpack_from(frame)
    payload_at, ip = _payload_at(frame), TAP_HEADER.size + ETHERNET_BYTES
    tcp = TAP_HEADER.size + tcp_start
    payload = frame[payload_at:][start * packet_bytes : stop * packet_bytes]
    head = bytearray(frame[:payload_at])
    how = (kind, header_bytes, packet_bytes) if stop - start > 1 else (PLAIN, header_bytes, 0)
    TAP_HEADER.pack_into(head, 0, flags, *how, tcp_start, check_at)
    identity, sequence = _u16(frame, ip + 4), int.from_bytes(frame[tcp + 4 : tcp + 8])
    struct.pack_into("!HH", head, ip + 2, len(head) - ip + len(payload), (identity + start) % 2**16)
    struct.pack_into("!H", head, ip + 10, 0)
    struct.pack_into("!H", head, ip + 10, _folded(head[ip:tcp]) ^ 0xFFFF)
    struct.pack_into("!I", head, tcp + 4, (sequence + start * packet_bytes) % 2**32)
    if not is_end:
        head[tcp + 13] &= ~LAST_ONLY & 0xFF
    # The kernel adds the rest of the checksum; it starts from the sum of the pseudo-header.
    pseudo = head[ip + 12 : ip + 20] + struct.pack("!HH", TCP, len(head) - tcp + len(payload))
    struct.pack_into("!H", head, tcp + check_at, _folded(pseudo))
    return bytes(head) + payload


def _u16(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 2])


def _folded(words: bytes | bytearray) -> int:
    """Return the one's complement sum of 16-bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
