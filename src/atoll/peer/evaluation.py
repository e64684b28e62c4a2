"""How good a committed state is, when the host asks us: from its file, in our trainer."""

import asyncio

from atoll.errors import RunError
from atoll.net import wire
from atoll.outer.checkpoint import STATE_FILE
from atoll.peer.member import Member


async def evaluated(asked: wire.Evaluate, member: Member) -> wire.Evaluated:
    """Return what our trainer finds, or that we cannot say."""
    unknown = wire.Evaluated(round=asked.round)
    if member.local is None:
        return unknown
    await member.has_saved()
    place = member.home.states.locate(asked.state, now=asyncio.get_running_loop().time())
    if place is None:
        return unknown
    try:
        found = await member.local.training.evaluate(place.path.parent / STATE_FILE)
    except RunError as error:
        member.accounts.warn(f"cannot evaluate state {asked.round}: {error}")
        return unknown
    if found is None:
        return unknown
    return wire.Evaluated(round=asked.round, loss=found.loss, text=found.text)
