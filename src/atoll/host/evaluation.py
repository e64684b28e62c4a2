"""Who finds out how good a committed state is: one peer after the other, until one has said. Pure.

    a state that is due is agreed on --> ask the quickest trainer that has it
    it cannot, is gone, or says nothing for too long --> ask the next one
    it has said --> Evaluated, in the journal

What it says is its claim alone: nobody else computes it, and nothing is decided by it.
"""

from itertools import takewhile

from atoll import events
from atoll.config import RunConfig
from atoll.host.effects import Append, Effect, Report, Send
from atoll.host.numbers import is_loss
from atoll.host.state import Asking, Run
from atoll.ids import INITIAL, PeerId, RoundId
from atoll.net import records, wire

ANSWER_S = 60.0  # a round's usual wait, if that is longer: between two steps it may be asked last


def is_due(config: RunConfig, round_id: RoundId) -> bool:
    """Return whether the state after this round is one that is evaluated: some, and the last."""
    every = config.evaluation.every_rounds
    return every > 0 and round_id > 0 and (round_id % every == 0 or round_id == config.sync.rounds)


def evaluate(run: Run, *, now: float) -> list[Effect]:
    """Ask for the newest state that is due, if nobody is at it."""
    round_id = _newest_due(run)
    if round_id == INITIAL:
        return []
    if run.asking is None or run.asking.round != round_id:
        run.asking = Asking(round_id)
    asking = run.asking
    if asking.peer is not None and run.membership.is_connected(asking.peer) and now < asking.until:
        return []
    able = (
        member
        for member in run.membership.connected()
        if member.trains and member.state is not None and member.round >= round_id
    )
    # The quickest has the most time to spare before a round waits for it.
    quickest = max(
        (member for member in able if member.peer not in asking.asked),
        key=lambda member: (member.samples_per_s or 0.0, member.peer),
        default=None,
    )
    asking.peer = None
    if quickest is None:
        return []
    asking.peer = quickest.peer
    asking.asked.add(quickest.peer)
    asking.until = now + max(ANSWER_S, run.usual_wait_s)
    return [Send(quickest.peer, wire.Evaluate(round=round_id, state=run.agreed[round_id]))]


def _newest_due(run: Run) -> RoundId:
    """Return the newest agreed state that is due and that nobody has judged; 0: none.

    This is asked at each event: it looks at what has been agreed on since, the newest first.
    """
    if not run.config.evaluation.every_rounds:
        return INITIAL
    since = takewhile(lambda round_id: round_id > run.evaluated, reversed(run.agreed))
    return next((r for r in since if is_due(run.config, r)), INITIAL)


def note(run: Run, peer: PeerId, said: wire.Evaluated) -> list[Effect]:
    """Put on record what a peer that was asked says, or let the next one be asked."""
    asking = run.asking
    if asking is None or said.round != asking.round or peer not in asking.asked:
        return []
    if said.loss is None or not is_loss(said.loss):
        asking.peer = None if asking.peer == peer else asking.peer
        return []
    run.evaluated, run.asking = said.round, None
    record = records.Evaluated(
        round=said.round,
        state=run.agreed[said.round],
        peer=peer,
        loss=said.loss,
        text=said.text,
    )
    report = events.Evaluated(round=said.round, peer=peer, loss=said.loss, text=said.text)
    return [Append((record,)), Report(report)]
