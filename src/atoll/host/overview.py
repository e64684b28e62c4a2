"""How a run stands, from its journal and from the events of its host. Pure.

    genesis -> begin, then each record -> note_record, each event -> note_event

The journal knows what counts: rounds, tokens, losses. The events know what is going on: who is in,
how fast they train, when they were last heard of. Either may come first.
"""

from collections.abc import Iterable

from msgspec import Struct, field

from atoll import events
from atoll.config import RunConfig, parse_canonical
from atoll.events import Stamped
from atoll.ids import INITIAL, Digest, PeerId, RoundId
from atoll.model.accounting import flops_per_token
from atoll.model.devices import peak_of_peer
from atoll.model.shapes import num_parameters
from atoll.net.records import (
    Admitted,
    Agreed,
    Committed,
    Evaluated,
    Genesis,
    Moved,
    PeerTraffic,
    Planned,
    Record,
)
from atoll.traffic import Traffic

KEPT_ROUNDS = 120  # with all that is known of them; of the others the loss curve tells
LARGEST_MFU = 2.0  # what a peer says that is more is not true; a peak that was measured may be low
UTILISED_OVER = 5  # commits, for the utilisation of a peer


class PeerView(Struct, kw_only=True):
    """One peer. Times are the host's wall clock, in seconds since 1970; 0: never."""

    peer: PeerId
    name: str
    is_in: bool = False
    trains: bool = True  # False: it reads along
    device: str = ""
    place: str = ""  # where its owner says that it is
    reachable: bool = False  # others can dial it, so it may reduce
    rounds: int = 0  # in whose rosters it was
    missed: int = 0  # rounds that waited for it, and closed without it
    num_tokens: int = 0  # committed
    token_share: float = 0.0  # of all committed tokens
    loss: float = 0.0  # of its newest contribution that was committed
    tokens_per_s: float = 0.0
    peak_flops: float = 0.0  # per second, of its devices; 0: unknown
    mfu: float | None = None  # of its devices; None: unknown
    step: int = 0  # inner steps that it has done in the run
    utilisation: float | None = None  # share of the last rounds that it trained; None: unknown
    state_differs: bool = False  # the one that it reported last is not the agreed one
    traffic: Traffic = field(default_factory=Traffic)
    seen_at: float = 0.0
    left_at: float = 0.0
    left_reason: str = ""


class Entry(Struct, kw_only=True):
    """What a peer brought to a round."""

    peer: PeerId
    share: float
    num_tokens: int
    mean_loss: float


class Note(Struct, kw_only=True):
    """Something that happened to a round on its way."""

    at: float
    text: str


class RoundView(Struct, kw_only=True):
    """One round. Times are the host's wall clock, in seconds since 1970; 0: unknown, or not yet."""

    round: RoundId
    fragment: int = 0
    waited: tuple[PeerId, ...] = ()  # whom it waited for when it was opened
    planned_at: float = 0.0
    closed_at: float = 0.0
    committed_at: float = 0.0
    agreed_at: float = 0.0
    exchange_s: float = 0.0  # from the last claim to the commit
    close_reason: str = ""
    missing: tuple[PeerId, ...] = ()  # waited for, and not in the roster
    reducers: tuple[PeerId, ...] = ()
    roster: tuple[Entry, ...] = ()  # once it is committed
    num_tokens: int = 0
    loss: float = 0.0
    update_bytes: int = 0
    state: Digest | None = None
    notes: list[Note] = field(default_factory=list)  # why it was planned anew


class Evaluation(Struct, frozen=True, kw_only=True):
    """How good a committed state is, as one peer says."""

    round: RoundId
    num_tokens: int  # committed up to then
    loss: float  # nats per token, on validation samples
    peer: PeerId


class Overview(Struct, kw_only=True):
    name: str
    run: Digest
    rounds: int  # of the whole run
    num_parameters: int = 0
    began_at: float = 0.0
    committed: RoundId = INITIAL
    agreed: RoundId = INITIAL
    agreed_state: Digest | None = None
    num_tokens: int = 0
    traffic: Traffic = field(default_factory=Traffic)  # of all members, the built-in one too
    bits: float = 0.0  # sent for contributions and updates, for each parameter and inner step
    num_steps: int = 0  # inner steps, of all peers
    losses: list[float]  # mean loss of rounds 1, 2, ...
    tokens: list[int] = field(default_factory=list)  # committed with and before them
    evaluations: list[Evaluation] = field(default_factory=list)  # in order, the newest last
    sample: str = ""  # what the model of the newest evaluation writes
    peers: list[PeerView]
    seen_at: float = 0.0  # the newest event

    @property
    def tokens_per_s(self) -> float:
        """What those that are in train on, as they last said."""
        return sum(peer.tokens_per_s for peer in self.peers if peer.is_in)


class Fold:
    """An overview that goes on: it takes up records and events as they come."""

    def __init__(self, genesis: Genesis) -> None:
        config: RunConfig = parse_canonical(genesis.config.encode())
        self.config = config
        length = config.data.sequence_length
        self._token_flops = flops_per_token(config.model, sequence_length=length)
        self.view = Overview(
            name=config.name,
            run=genesis.run,
            rounds=config.sync.rounds,
            num_parameters=num_parameters(config.model),
            began_at=genesis.at,
            losses=[],
            peers=[],
        )
        self.built_in = genesis.built_in
        self.peers: dict[PeerId, PeerView] = {}  # also in view.peers, in the order of admission
        self.names: dict[PeerId, str] = {self.built_in: "the built-in member"}
        self.rounds: dict[RoundId, RoundView] = {}  # the newest ones
        self._commits_at: list[float] = []  # of the last ones that were seen
        self._trained: dict[PeerId, list[float]] = {}  # seconds, in those rounds

    # --- what counts ------------------------------------------------------------------------------

    def note_record(self, record: Record) -> None:
        view = self.view
        match record:
            case Admitted(peer=peer, name=name):
                self.peers[peer] = PeerView(peer=peer, name=name)
                self.names[peer] = name
                view.peers.append(self.peers[peer])
            case Planned(round=round_id, peers=peers):
                self._round(round_id).waited = peers
            case Agreed(round=round_id, state=state, traffic=traffic):
                view.agreed, view.agreed_state = round_id, state
                if round_id:
                    self._round(round_id).state = state
                self._note_traffic(traffic)
            case Evaluated():
                self._note_evaluation(record)
            case Moved(traffic=traffic):
                self._note_traffic(traffic)
            case Committed():
                self._note_commit(record)
            case _:
                pass

    def _note_commit(self, record: Committed) -> None:
        view, rnd = self.view, self._round(record.round)
        rnd.fragment = record.fragment
        rnd.roster = tuple(
            Entry(peer=e.peer, share=e.share, num_tokens=e.num_tokens, mean_loss=e.mean_loss)
            for e in record.roster
        )
        rnd.num_tokens = sum(entry.num_tokens for entry in record.roster)
        weighted = sum(e.mean_loss * e.num_tokens for e in record.roster)
        rnd.loss = weighted / max(1, rnd.num_tokens)
        rnd.update_bytes = sum(update.num_bytes for update in record.updates)
        view.committed = record.round
        view.num_tokens += rnd.num_tokens
        view.num_steps += sum(entry.num_steps for entry in record.roster)
        view.losses.append(rnd.loss)
        view.tokens.append(view.num_tokens)
        for entry in record.roster:
            peer = self.peers[entry.peer]
            peer.rounds += 1
            peer.num_tokens += entry.num_tokens
            peer.loss = entry.mean_loss

    def _note_evaluation(self, record: Evaluated) -> None:
        view = self.view
        num_tokens = view.tokens[record.round - 1]
        view.evaluations.append(
            Evaluation(
                round=record.round, num_tokens=num_tokens, loss=record.loss, peer=record.peer
            )
        )
        view.sample = record.text or view.sample

    def _note_traffic(self, traffic: Iterable[PeerTraffic]) -> None:
        for each in traffic:
            self.view.traffic += each.traffic
            if each.peer in self.peers:  # the built-in member was admitted by nobody
                self.peers[each.peer].traffic += each.traffic

    def finish(self) -> Overview:
        """Return the view, with what follows from all of it brought up to date."""
        view = self.view
        for peer in view.peers:
            peer.token_share = peer.num_tokens / max(1, view.num_tokens)
        sent = view.traffic.contributions_sent + view.traffic.updates_sent
        view.bits = 8 * sent / max(1, view.num_parameters * view.num_steps)
        return view

    def _round(self, round_id: RoundId) -> RoundView:
        """Return what is known of this round; forget the oldest one instead."""
        if round_id not in self.rounds:
            self.rounds[round_id] = RoundView(round=round_id)
            if len(self.rounds) > KEPT_ROUNDS:
                del self.rounds[min(self.rounds)]
        return self.rounds.get(round_id) or RoundView(round=round_id)

    # --- what is going on -------------------------------------------------------------------------

    def note_event(self, line: Stamped) -> None:
        self.view.seen_at = line.at
        match line.event:
            case events.HostStarted() | events.Stopped():
                for view in self.view.peers:  # those that are still there will connect anew
                    view.is_in, view.tokens_per_s = False, 0.0
            case events.PeerJoined() as event if event.peer in self.peers:
                self._join(self.peers[event.peer], event, at=line.at)
            case events.PeerLeft(peer=peer, reason=reason) if peer in self.peers:
                view = self.peers[peer]
                view.is_in, view.tokens_per_s = False, 0.0
                view.left_at, view.left_reason = line.at, reason
            case events.PeerRests(peer=peer, rests=True) if peer in self.peers:
                self.peers[peer].tokens_per_s = 0.0
            case events.Training(peer=peer) as event if peer in self.peers:
                view = self.peers[peer]
                view.tokens_per_s, view.seen_at, view.step = (
                    event.tokens_per_s,
                    line.at,
                    event.step,
                )
                view.mfu = self._mfu(view)
            case events.StateDiffers(peer=peer) if peer in self.peers:
                self.peers[peer].state_differs = True
            case event:
                self._note_round_event(event, at=line.at)

    def _mfu(self, view: PeerView) -> float | None:
        """Return which part of its peak the peer reaches in a step, if that is known."""
        if not view.peak_flops:
            return None
        part = view.tokens_per_s * self._token_flops / view.peak_flops
        return part if part <= LARGEST_MFU else None

    def _join(self, view: PeerView, event: events.PeerJoined, *, at: float) -> None:
        view.name, view.is_in, view.seen_at = event.name, True, at
        self.names[event.peer] = event.name
        view.device, view.reachable, view.place = event.device, event.reachable, event.place
        view.trains = event.trains
        # Members of earlier releases do not say it; some of their devices are in the table.
        view.peak_flops = event.peak_flops or peak_of_peer(event.device) or 0.0

    def _note_round_event(self, event: events.Event, *, at: float) -> None:
        match event:
            case events.RoundPlanned(round=round_id, reducers=reducers, reason=reason):
                rnd = self._round(round_id)
                if rnd.planned_at:
                    rnd.notes.append(Note(at=at, text=reason))
                rnd.planned_at, rnd.reducers = rnd.planned_at or at, reducers
            case events.RoundClosed() as closed:
                self._close(closed, at=at)
            case events.RoundCommitted() as committed:
                rnd = self._round(committed.round)
                rnd.committed_at, rnd.exchange_s = at, committed.exchange_s
                if rnd.roster:
                    self._utilise(rnd, at=at)
            case events.StateAgreed() as agreed:
                self._agree(agreed, at=at)
            case _:
                pass

    def _close(self, event: events.RoundClosed, *, at: float) -> None:
        rnd = self._round(event.round)
        for peer in self._known(set(event.missing) - set(rnd.missing)):
            peer.missed += 1
        rnd.closed_at, rnd.missing, rnd.close_reason = at, event.missing, event.reason

    def _agree(self, event: events.StateAgreed, *, at: float) -> None:
        if event.round:
            self._round(event.round).agreed_at = at
        for peer in self._known(event.peers):
            peer.state_differs = False

    def _known(self, peers: Iterable[PeerId]) -> list[PeerView]:
        return [self.peers[peer] for peer in peers if peer in self.peers]

    def _utilise(self, rnd: RoundView, *, at: float) -> None:
        """Take from the committed tokens, and each peer's speed, how long it trained for them."""
        tokens = {e.peer: e.num_tokens for e in rnd.roster}
        self._commits_at = [*self._commits_at, at][-UTILISED_OVER - 1 :]
        passed_s = self._commits_at[-1] - self._commits_at[0]
        for peer, view in self.peers.items():
            trained_s = self._trained.setdefault(peer, [])
            trained_s.append(tokens.get(peer, 0) / view.tokens_per_s if view.tokens_per_s else 0.0)
            del trained_s[: -(len(self._commits_at) - 1) or len(trained_s)]
            if view.is_in and passed_s > 0 and any(trained_s):
                view.utilisation = min(1.0, sum(trained_s) / passed_s)


def overview(records: Iterable[Record], stamped: Iterable[Stamped]) -> Overview:
    """Return how the run of this journal and these events stands."""
    history = iter(records)
    genesis = next(history)
    assert isinstance(genesis, Genesis), "a journal begins with its genesis"
    fold = Fold(genesis)
    for record in history:
        fold.note_record(record)
    for line in stamped:
        fold.note_event(line)
    return fold.finish()
