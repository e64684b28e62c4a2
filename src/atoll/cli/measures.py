"""What is worth a curve, out of the events of one process: numbers by name, each at a round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from atoll import events
from atoll.events import Stamped
from atoll.ids import RoundId


class Point(NamedTuple):
    """`at`: seconds since 1970."""

    at: float
    round: RoundId
    values: Mapping[str, float]


@dataclass(slots=True)
class Measures:
    """`point` is called with each event, in order."""

    num_tokens: int = 0  # committed so far, as far as the events go back

    def point(self, stamped: Stamped) -> Point | None:
        """Return what the event adds to the curves; None: nothing."""
        event = stamped.event
        match event:
            case events.RoundCommitted():
                self.num_tokens += event.num_tokens
                values = {
                    "loss": event.mean_loss,
                    "tokens": self.num_tokens,
                    "tokens_per_s": event.num_tokens / event.seconds if event.seconds else 0.0,
                    "peers": len(event.roster),
                    "round_s": event.seconds,
                    "exchange_s": event.exchange_s,
                    "update_bytes": event.update_bytes,
                }
            case events.RoundClosed():
                values = {"late": len(event.missing)}
            case events.Evaluated():
                values = {"validation_loss": event.loss}
            case events.StateAgreed():
                values = {"agreed": len(event.peers)}
            case events.RoundTaken():
                values = {
                    "own/tokens": event.num_tokens,
                    "own/total_tokens": event.total_tokens,
                    "own/share": event.num_tokens / max(1, event.round_tokens),
                }
            case events.PhaseTimed():
                values = {f"phase_s/{event.phase}": event.seconds}
            case events.BytesMoved():
                traffic = event.traffic
                values = {
                    "bytes/sent": traffic.sent,
                    "bytes/received": traffic.received,
                    "bits": event.bits,
                }
            case _:
                return None
        return Point(stamped.at, event.round, values)
