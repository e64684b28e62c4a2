"""One round of DiLoCo (arXiv 2311.08105, algorithm 1), as one peer lives it.

    H inner steps -> pseudo-gradient -> encode, deliver, and fetch the mean meanwhile
    -> (the host closes, and commits) -> outer step -> merge

Where training does not wait, the next round's steps begin when the snapshot of this one is taken;
where several rounds may be open, so does the next round as a whole (`run_rounds`).

Nothing here decides anything: the plan, the roster and the commit come from the host, and whatever
of them changes on the way (a reducer is replaced, the host restarts) starts the part again that it
concerns.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TypeAlias

from atoll.errors import BadUpdateError, ConnectionLost, PeerError
from atoll.exchange.codec import CODECS
from atoll.exchange.contribute import EncodedContribution, deliver_to, deliver_to_self
from atoll.exchange.gather import Wanted
from atoll.exchange.links import fetch_from_any
from atoll.exchange.plan import send_order
from atoll.exchange.tasks import comes_first, group, running, together
from atoll.ids import Buffer, Digest, PeerId, RoundId
from atoll.net import wire
from atoll.net.records import Heard, SliceUpdate
from atoll.net.transport import Connection
from atoll.peer.gathering import RETRY_S, gather_all
from atoll.peer.home import KEEP_ROUNDS
from atoll.peer.member import Member, StateDiffers

PARALLEL_FETCHES = 4
Place: TypeAlias = tuple[int, int, PeerId]
TRIES = 10  # to fetch a blob that members should have: they may just be starting


async def run_rounds(first: RoundId, member: Member) -> None:
    """Live this round, and those after it that open before the one before them is over.

    Raises:
        StateDiffers: the host has another state for us; nothing has changed but the local weights.
        BadUpdateError: our own parameters are not fit to be shared.
    """
    before = asyncio.ensure_future(asyncio.sleep(0))
    async with group() as start:
        round_id, goes_on = first, True
        while goes_on:
            trained = asyncio.Event()
            before = start(run_round(round_id, member, before=before, trained=trained))
            await trained.wait()
            round_id = RoundId(round_id + 1)
            goes_on = await _opens_before(before, round_id, member)


async def run_round(
    round_id: RoundId, member: Member, *, before: "asyncio.Future[None]", trained: asyncio.Event
) -> None:
    """Train, contribute, and take the outer step of one round.

    `before` is the round before this one, which need not be over; `trained` is set once the trainer
    is free for the next. Raises as `run_rounds`.
    """
    async with _after(before):
        async with running(gather_updates(round_id, member)):
            is_whole = await member.train(until=round_id)
            trained.set()
            async with running(contribute(round_id, member)) if is_whole else nullcontext():
                await asyncio.shield(before)
                commit = await member.commit_of(round_id)
        await finish_round(commit, member)


@asynccontextmanager
async def _after(before: "asyncio.Future[None]") -> AsyncIterator[None]:
    """Hold back a failure until the round before is over: its outer step is not cut in two."""
    try:
        yield
    except (StateDiffers, BadUpdateError, PeerError):
        await asyncio.wait((before,))
        raise


async def _opens_before(end: "asyncio.Future[None]", round_id: RoundId, member: Member) -> bool:
    """Return whether the round opens for us before the other one, that before it, has ended."""
    opening = member.board.wait_for(lambda: member.goes_on_with(round_id) or None)
    return await comes_first(opening, end) and not end.done()


async def finish_round(commit: Heard, member: Member) -> None:
    """Take the outer step of a commit, and let the trainer go on from there."""
    await fetch_updates(commit, member)
    await member.take_outer_step(commit)


async def contribute(round_id: RoundId, member: Member) -> None:
    """Encode our contribution, and keep it where the plan wants it until the round is over."""
    local = member.local
    assert local is not None, "a member that trains has something to contribute"
    plan = await member.board.wait_for(lambda: member.plan_of(round_id))
    contribution = EncodedContribution(round_id, member.slices(round_id), member.links.buffers)
    # Slice -> which reducer has it, by which connection to the host and which plan. A reducer that
    # is named again may have lost everything: it says what it still has, and gets the rest.
    delivered_to: dict[int, Place] = {}
    announced = 0

    async def encode() -> tuple[Digest, ...]:
        order = send_order([(r.start, r.stop) for r in plan.reductions])
        rest = sorted(set(range(len(member.slices(round_id)))) - set(order))
        with member.accounts.timed("encode", round_id):
            return await contribution.encode(
                CODECS[plan.codec], local.vectors(), order=[*order, *rest]
            )

    async def announce(session: int) -> None:
        nonlocal announced
        digests = await asyncio.shield(encoding)
        # Before the host can commit our work, the moments that go with it are on disk: whoever is
        # killed after the commit goes on as if it had not been.
        await member.save_local(round_id, digests)
        if announced != session:
            member.announce(round_id, digests)
            announced = session

    async def deliver(key: tuple[int, wire.Plan]) -> None:
        session, plan = key
        with member.accounts.timed("send", round_id):
            await together(
                announce(session),
                *(
                    _deliver_run(
                        reduction,
                        (session, plan.version, reduction.reducer.peer),
                        contribution,
                        delivered_to,
                        member,
                    )
                    for reduction in plan.reductions
                ),
            )

    encoding = asyncio.ensure_future(encode())
    try:
        await member.board.follow(lambda: member.plan_key(round_id), deliver)
    finally:
        encoding.cancel()
        with suppress(asyncio.CancelledError):
            await encoding
        contribution.close()


async def _deliver_run(
    reduction: wire.Reduction,
    here: Place,
    contribution: EncodedContribution,
    delivered_to: dict[int, Place],
    member: Member,
) -> None:
    """Bring a run of slices to its reducer, however often that takes."""
    reducer = reduction.reducer

    def note(index: int) -> None:
        delivered_to[index] = here

    async def deliver(connection: Connection, indices: Sequence[int]) -> None:
        await deliver_to(
            connection, indices, contribution=contribution, links=member.links, delivered=note
        )

    while todo := [
        k for k in range(reduction.start, reduction.stop) if delivered_to.get(k) != here
    ]:
        try:
            if reducer.peer == member.peer_id:
                if (own := member.reducers.of(contribution.round_id)) is None:
                    return  # the round is over
                await deliver_to_self(
                    todo,
                    contribution=contribution,
                    reducer=own,
                    peer=member.peer_id,
                    delivered=note,
                )
                continue
            await member.links.share_out(reducer, todo, deliver)
        except PeerError as error:
            if isinstance(error, ConnectionLost):
                member.complain(contribution.round_id, reducer.peer)
            await asyncio.sleep(RETRY_S)


async def gather_updates(round_id: RoundId, member: Member) -> None:
    """Once a roster is known, put its updates on disk as they are formed, and tell the host."""
    # An update is a function of the roster: what is here stays good if its reducer is replaced.
    gathered: dict[int, dict[int, Digest]] = defaultdict(dict)

    async def gather(key: tuple[int, wire.Plan, wire.Closed]) -> None:
        _, plan, closed = key
        digests = gathered[closed.roster_version]
        wanted = Wanted(
            round=round_id,
            roster_version=closed.roster_version,
            codec=CODECS[plan.update_codec],
            sizes=member.slice_sizes(round_id),
        )

        async def get(reduction: wire.Reduction) -> None:
            await _gather_run(reduction, wanted, digests, member)
            member.tell_fetched(round_id, closed.roster_version, reduction)

        with member.accounts.timed("update", round_id):
            await together(*(get(reduction) for reduction in plan.reductions))
            await asyncio.to_thread(member.blobs.flush)
        member.tell_held(round_id, closed.roster_version, digests)

    await member.board.follow(lambda: member.closed_key(round_id), gather)


async def _gather_run(
    reduction: wire.Reduction, wanted: Wanted, digests: dict[int, Digest], member: Member
) -> None:
    """Get a run of updates from its reducer, however often that takes."""
    reducer, run = reduction.reducer, range(reduction.start, reduction.stop)
    if reducer.peer == member.peer_id:
        if (own := member.reducers.of(wanted.round)) is None:
            return  # the round is over
        for index in run:
            digest = await own.kept(roster_version=wanted.roster_version, index=index)
            if digest is not None:
                digests[index] = digest
        return

    def note(index: int, digest: Digest, payload: Buffer) -> None:
        digests[index] = digest
        member.traffic.updates_received += len(payload)

    await gather_all(
        lambda: [k for k in run if k not in digests],
        reducer,
        wanted=wanted,
        blobs=member.blobs,
        gathered=note,
        member=member,
    )


async def fetch_updates(commit: Heard, member: Member) -> None:
    """Make sure that all updates of a commit are on our disk, from whoever has them.

    Raises:
        PeerError: nobody has one of them any more.
    """
    todo = [
        (index, update)
        for index, update in enumerate(commit.updates)
        if await asyncio.to_thread(member.blobs.get, update.digest) is None
    ]

    async def drain() -> None:
        while todo:
            index, update = todo.pop()
            near = _passes_on(commit.round, index, member)
            payload = None if near is None else await _fetch_near(near, update, member)
            if payload is None:
                payload = await _fetch_anywhere(update, member)
            await asyncio.to_thread(member.blobs.put, update.digest, payload)
            member.traffic.updates_received += len(payload)

    await together(*(drain() for _ in range(min(PARALLEL_FETCHES, len(todo)))))


def _passes_on(round_id: RoundId, index: int, member: Member) -> wire.Address | None:
    """Return from whom we were to have the update of a slice, other than we."""
    plan = member.plan_of(round_id)
    for reduction in () if plan is None else plan.reductions:
        if index in range(reduction.start, reduction.stop):
            return None if reduction.reducer.peer == member.peer_id else reduction.reducer
    return None


async def _fetch_near(
    reducer: wire.Address, update: SliceUpdate, member: Member
) -> bytearray | None:
    """Return the update from whom we were to have it from; None: it fails, or takes too long.

    It may well have to fetch it from another one itself, and so is ahead of all others soon.
    """
    for _ in range(TRIES):
        if member.links.has_failed(reducer.peer):
            break
        payload = await fetch_from_any(
            member.links, [reducer], update.digest, at_most=update.num_bytes
        )
        if payload is not None:
            return payload
        await asyncio.sleep(RETRY_S)
    return None


async def _fetch_anywhere(update: SliceUpdate, member: Member) -> bytearray:
    for _ in range(TRIES):
        payload = await fetch_from_any(
            member.links, member.sources(), update.digest, at_most=update.num_bytes
        )
        if payload is not None:
            return payload
        if is_far_behind(member):
            break  # while we waited for one that does not answer, the others have dropped it
        await asyncio.sleep(RETRY_S)
    raise PeerError(f"no member has the update {update.digest[:12]} any more")


def is_far_behind(member: Member) -> bool:
    """Return whether there are more commits to replay than members keep updates of."""
    rounds = KEEP_ROUNDS * len(member.layout.fragments)
    newest = max(member.board.commits, default=member.state.round)
    return newest - member.state.round > rounds
