"""How a run stands, from its journal and from the events of its host. Pure.

The journal knows what counts: rounds, tokens, losses. The events know what is going on: who is in,
how fast they train, when they were last heard of.
"""

from collections.abc import Iterable

from msgspec import Struct, field

from atoll import events
from atoll.config import RunConfig, parse_canonical
from atoll.events import Stamped
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.model.shapes import num_parameters
from atoll.net.records import (
    Admitted,
    Agreed,
    Committed,
    Genesis,
    Moved,
    PeerTraffic,
    Record,
)
from atoll.traffic import Traffic


class PeerView(Struct, kw_only=True):
    """One peer. Times are the host's wall clock, in seconds since 1970; 0: never."""

    peer: PeerId
    name: str
    is_in: bool = False
    rounds: int = 0  # in whose rosters it was
    num_tokens: int = 0  # committed
    token_share: float = 0.0  # of all committed tokens
    loss: float = 0.0  # of its newest contribution that was committed
    tokens_per_s: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    seen_at: float = 0.0


class Overview(Struct, kw_only=True):
    name: str
    run: Digest
    rounds: int  # of the whole run
    committed: RoundId = INITIAL
    agreed: RoundId = INITIAL
    agreed_state: Digest | None = None
    num_tokens: int = 0
    traffic: Traffic = field(default_factory=Traffic)  # of all members, the built-in one too
    bits: float = 0.0  # sent for contributions and updates, for each parameter and inner step
    num_steps: int = 0  # inner steps, of all peers
    losses: list[float]  # mean loss of rounds 1, 2, ...
    peers: list[PeerView]
    seen_at: float = 0.0  # the newest event


def overview(records: Iterable[Record], stamped: Iterable[Stamped]) -> Overview:
    """Return how the run of this journal and these events stands."""
    history = iter(records)
    genesis = next(history)
    assert isinstance(genesis, Genesis), "a journal begins with its genesis"
    config: RunConfig = parse_canonical(genesis.config.encode())
    view = Overview(
        name=config.name, run=genesis.run, rounds=config.sync.rounds, losses=[], peers=[]
    )
    peers: dict[PeerId, PeerView] = {}
    for record in history:
        _note_record(view, peers, record)
    for line in stamped:
        _note_event(peers, line)
        view.seen_at = line.at
    view.peers = list(peers.values())
    for peer in view.peers:
        peer.token_share = peer.num_tokens / max(1, view.num_tokens)
    sent = view.traffic.contributions_sent + view.traffic.updates_sent
    view.bits = 8 * sent / max(1, num_parameters(config.model) * view.num_steps)
    return view


def _note_record(view: Overview, peers: dict[PeerId, PeerView], record: Record) -> None:
    match record:
        case Admitted(peer=peer, name=name):
            peers[peer] = PeerView(peer=peer, name=name)
        case Agreed(round=round_id, state=state, traffic=traffic):
            view.agreed, view.agreed_state = round_id, state
            _note_traffic(view, peers, traffic)
        case Moved(traffic=traffic):
            _note_traffic(view, peers, traffic)
        case Committed(round=round_id, roster=roster):
            num_tokens = sum(entry.num_tokens for entry in roster)
            view.committed = round_id
            view.num_tokens += num_tokens
            view.num_steps += sum(entry.num_steps for entry in roster)
            view.losses.append(sum(e.mean_loss * e.num_tokens for e in roster) / max(1, num_tokens))
            for entry in roster:
                peers[entry.peer].rounds += 1
                peers[entry.peer].num_tokens += entry.num_tokens
                peers[entry.peer].loss = entry.mean_loss
        case _:
            pass


def _note_traffic(
    view: Overview, peers: dict[PeerId, PeerView], traffic: Iterable[PeerTraffic]
) -> None:
    for each in traffic:
        view.traffic += each.traffic
        if each.peer in peers:  # the built-in member was admitted by nobody
            peers[each.peer].traffic += each.traffic


def _note_event(peers: dict[PeerId, PeerView], line: Stamped) -> None:
    match line.event:
        case events.HostStarted() | events.Stopped():
            for view in peers.values():  # those that are still there will connect anew
                view.is_in, view.tokens_per_s = False, 0.0
        case events.PeerJoined(peer=peer, name=name) if peer in peers:
            peers[peer].name, peers[peer].is_in, peers[peer].seen_at = name, True, line.at
        case events.PeerLeft(peer=peer) if peer in peers:
            peers[peer].is_in, peers[peer].tokens_per_s = False, 0.0
        case events.Training(peer=peer, tokens_per_s=speed) if peer in peers:
            peers[peer].tokens_per_s, peers[peer].seen_at = speed, line.at
        case _:
            pass
