"""The run as Prometheus reads it: text exposition format, version 0.0.4.

Names end in their unit, counters in `_total`. A peer's series carry its id and its name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import asdict

from atoll.host.live import Live
from atoll.host.overview import Overview, PeerView
from atoll.traffic import Traffic

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: str  # gauge or counter
    about: str
    samples: list[tuple[Labels, float]]

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"{self.name}{{{inner}}} {value!r}" if inner else f"{self.name} {value!r}"


def render(view: Overview, live: Live) -> bytes:
    """Return the page that a Prometheus server scrapes."""
    metrics = [*_of_run(view, live), *_of_peers(view.peers, live)]
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines()).encode()


def _of_run(view: Overview, live: Live) -> Iterator[Metric]:
    yield Metric(
        "atoll_run_info",
        "gauge",
        "The run: its name and the digest of its config.",
        [({"name": view.name, "run": view.run}, 1)],
    )
    single: list[tuple[str, str, str, float]] = [
        ("atoll_rounds_planned", "gauge", "Rounds of the whole run.", view.rounds),
        ("atoll_rounds_committed_total", "counter", "Committed rounds.", view.committed),
        ("atoll_rounds_open", "gauge", "Rounds that are open.", len(live.open_rounds)),
        ("atoll_tokens_committed_total", "counter", "Committed tokens.", view.num_tokens),
        ("atoll_inner_steps_total", "counter", "Committed inner steps.", view.num_steps),
        ("atoll_tokens_per_second", "gauge", "What peers train on now.", view.tokens_per_s),
        ("atoll_peers_connected", "gauge", "Peers that are connected.", len(live.members)),
        ("atoll_peers_away", "gauge", "Members cut off, expected back.", len(live.away)),
        ("atoll_peers_admitted_total", "counter", "Peers admitted so far.", len(view.peers)),
        (
            "atoll_built_in_member_connected",
            "gauge",
            "1 while the host's built-in member is there.",
            int(live.built_in_is_in),
        ),
    ]
    if view.evaluations:
        about = "Validation loss of the newest state that a peer has evaluated."
        single.append(("atoll_validation_loss", "gauge", about, view.evaluations[-1].loss))
    if view.losses:
        single.append(("atoll_loss", "gauge", "Mean loss of the newest round.", view.losses[-1]))
    for name, kind, about, value in single:
        yield Metric(name, kind, about, [({}, value)])
    yield Metric(
        "atoll_transferred_bytes_total",
        "counter",
        "Bytes that all members have sent and received, by what for.",
        list(_by_kind(view.traffic)),
    )


def _by_kind(traffic: Traffic) -> Iterator[tuple[Labels, float]]:
    for key, num_bytes in asdict(traffic).items():
        kind, _, direction = key.rpartition("_")
        yield {"kind": kind, "direction": direction}, num_bytes


def _of_peers(peers: Iterable[PeerView], live: Live) -> Iterator[Metric]:
    connected = {member.peer for member in live.members}
    labelled = [({"peer": peer.peer, "name": peer.name}, peer) for peer in peers]

    def metric(name: str, kind: str, about: str, values: list[float]) -> Metric:
        samples = [(labels, value) for (labels, _), value in zip(labelled, values, strict=True)]
        return Metric(f"atoll_peer_{name}", kind, about, samples)

    seen = [peer for _, peer in labelled]
    yield metric(
        "connected", "gauge", "1 while it is connected.", [int(p.peer in connected) for p in seen]
    )
    yield metric(
        "tokens_per_second", "gauge", "What it trains on now.", [p.tokens_per_s for p in seen]
    )
    yield metric(
        "tokens_committed_total", "counter", "Its committed tokens.", [p.num_tokens for p in seen]
    )
    yield metric(
        "rounds_total", "counter", "Rounds in whose rosters it was.", [p.rounds for p in seen]
    )
    yield metric(
        "rounds_missed_total", "counter", "Rounds that closed without it.", [p.missed for p in seen]
    )
    yield metric("sent_bytes_total", "counter", "Bytes sent.", [p.traffic.sent for p in seen])
    yield metric(
        "received_bytes_total", "counter", "Bytes received.", [p.traffic.received for p in seen]
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
