"""What a peer's link is like: rate, delay, loss, and what TCP makes of them."""

import re
from dataclasses import dataclass

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class LabError(Exception):
    """One line for whoever runs the benchmark: what it needs, and does not have."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Bits per second, in each direction, as seen from the peer."""

    up_bps: float
    down_bps: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """How every peer is connected. `rate` None: all peers on one loopback, not shaped."""

    rate: Rate | None
    rtt_s: float = 0.0  # between any two peers, on top of what the queues add
    loss: float = 0.0  # probability, for each packet and direction
    congestion: str = "cubic"  # what a socket has that asks for nothing else

    @property
    def is_relayed(self) -> bool:
        return self.rtt_s > 0 or self.loss > 0


def parse_rate(text: str) -> Rate | None:
    """Return the rate of `100mbit`, `15mbit/110mbit` (up/down), or None of `loopback`.

    Raises:
        ValueError: it is none of these.
    """
    if text == "loopback":
        return None
    up, _, down = text.partition("/")
    return Rate(up_bps=_bps(up), down_bps=_bps(down or up))


def _bps(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text)
    if not match:
        raise ValueError(f"not a rate: {text!r}, which should look like 100mbit")
    return float(match[1]) * UNITS[match[2]]


def parse_rtt_s(text: str) -> float:
    """Return the seconds of `80ms`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)ms", text)
    if not match:
        raise ValueError(f"not a time: {text!r}, which should look like 80ms")
    return float(match[1]) / 1000


def parse_loss(text: str) -> float:
    """Return the probability of `0.1%`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not match or float(match[1]) >= 100:
        raise ValueError(f"not a share: {text!r}, which should look like 0.1%")
    return float(match[1]) / 100
