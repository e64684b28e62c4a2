"""What lies between the peers: every packet arrives half a round trip later, or not at all.

    python relay.py --peers 4 --delay-s 0.04 --loss 0.001      (in the hub's namespace; network.py)

One tap device for each peer. The delay is the same for all frames, so one queue in the order of
arrival serves them all. There is no rate here: htb, before and behind, sets that.
"""

import argparse
import fcntl
import os
import random
import select
import struct
import sys
from collections import deque
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.segments import TAP_HEADER, num_packets, without

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02  # frames come uncut, and without their checksum
MAX_FRAME_BYTES = TAP_HEADER.size + 14 + 65_536
BROADCAST = 0xFF
ARP = b"\x08\x06"
BATCH = 64  # frames from one tap before the next has its turn
MIN_WAIT_S = 0.0005  # two thousand wake-ups a second are enough; it moves a frame by 1 % of 40 ms
NICE = -15  # a link does not wait because the peers are busy


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tap


class Relay:
    def __init__(self, taps: list[int], *, delay_s: float, loss: float) -> None:
        self.taps = taps
        self.delay_s = delay_s
        self.loss = loss
        self.chance = random.Random(0)
        self.underway: deque[tuple[float, int, bytes]] = deque()  # due at, to, what

    def run(self) -> None:
        """Carry frames for ever."""
        while True:
            wait_s = None
            if self.underway:
                wait_s = max(MIN_WAIT_S, self.underway[0][0] - monotonic())
            for source in select.select(self.taps, [], [], wait_s)[0]:
                self.take(source)
            now = monotonic()
            while self.underway and self.underway[0][0] <= now:
                _, target, frame = self.underway.popleft()
                os.write(target, frame)

    def take(self, source: int) -> None:
        """Read what a peer has sent, and put what is not lost on its way."""
        due_at = monotonic() + self.delay_s
        for frame in read_some(source):
            ethernet = frame[TAP_HEADER.size :][:14]
            for target in self.targets(ethernet[5], source=source):
                if ethernet[12:] == ARP:  # of this lab; on the internet nobody waits for it
                    os.write(target, frame)
                else:
                    self.underway.extend((due_at, target, left) for left in self.survivors(frame))

    def targets(self, number: int, *, source: int) -> list[int]:
        """Return where a frame goes: the last byte of its destination is the number of a peer."""
        if number == BROADCAST:
            return [tap for tap in self.taps if tap != source]
        return [self.taps[number]] if number < len(self.taps) else []

    def survivors(self, frame: bytes) -> list[bytes]:
        if not self.loss:
            return [frame]
        lost = [self.chance.random() < self.loss for _ in range(num_packets(frame))]
        return without(frame, lost)


def read_some(tap: int) -> list[bytes]:
    frames = []
    try:
        for _ in range(BATCH):
            frames.append(os.read(tap, MAX_FRAME_BYTES))
    except BlockingIOError:
        pass
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--delay-s", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    arguments = parser.parse_args()
    taps = [open_tap(f"tap{number}") for number in range(arguments.peers)]
    print("ready", flush=True)
    os.nice(NICE)
    Relay(taps, delay_s=arguments.delay_s, loss=arguments.loss).run()


if __name__ == "__main__":
    main()
