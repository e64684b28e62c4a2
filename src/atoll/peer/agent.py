"""The life of a peer's agent: come in, catch up, take part in round after round, leave.

    open the directory -> listen, dial the host -> dataset, state, trainer -> rounds -> leave

The agent is asyncio and numpy; torch runs in the trainer's process. Everything it holds can be made
again from its directory and from other members, so it may be killed at any moment.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from atoll.config import PeerConfig
from atoll.data.shards import Dataset
from atoll.errors import BadUpdateError, PeerError, RunError
from atoll.events import Emit, PeerRests, Stopped, Training as Trains
from atoll.exchange.codec import CODECS
from atoll.exchange.links import Links
from atoll.exchange.serve import BlobServer
from atoll.exchange.statesync import fetch_dataset, fetch_tokenizer
from atoll.exchange.tasks import together
from atoll.ids import INITIAL, Digest, RoundId
from atoll.model.shapes import num_parameters
from atoll.net import wire
from atoll.net.transport import Listener, Transport
from atoll.peer.evaluation import evaluated
from atoll.peer.home import Home
from atoll.peer.hosts import Hosts
from atoll.peer.lending import Lending
from atoll.peer.link import HostLink, Manners
from atoll.peer.local import Local
from atoll.peer.member import Member, StateDiffers
from atoll.peer.reducing import Reducing
from atoll.peer.round import finish_round, is_far_behind, run_rounds
from atoll.peer.trainer import MakeVectors, StartTrainer
from atoll.peer.training import Training
from atoll.train.shared import SharedVectors

NO_STATE = Digest("0" * 64)
RETRY_S = 1.0
BY_ITSELF = "it tries again by itself"
LAST_RETRY_S = 5.0
LAST_S = 600.0  # for the last state to be had, once the run is complete: the host may be away
T = TypeVar("T")


class Agent:
    """`start_trainer` starts its trainer; None: it is a member that does not train.

    `make_vectors` makes what it shares with the trainer.
    """

    def __init__(
        self,
        home: Home,
        peer: PeerConfig,
        *,
        transport: Transport,
        start_trainer: StartTrainer | None,
        emit: Emit,
        make_vectors: MakeVectors = SharedVectors.for_peer,
    ) -> None:
        self._instance = token_hex(8)
        self._home = home
        self._peer = peer
        self._transport = transport
        self._emit = emit
        run_file = home.run_file
        self._hosts = Hosts(
            peer=run_file.host_id,
            public_key=home.host_key,
            first=(run_file.host, run_file.port),
            others=tuple((other.host, other.port) for other in run_file.others),
            led=home.led(),
            roams=start_trainer is not None,
            remember=home.remember_leader,
        )
        self._link = HostLink(
            peer=home.identity.peer_id, transport=transport, hosts=self._hosts, emit=emit
        )
        self._board = self._link.board
        training = None
        if start_trainer is not None:
            training = Training(
                home.config,
                peer,
                start_trainer=start_trainer,
                vectors=make_vectors(home.directory, num_parameters(home.config.model)),
                log_path=home.directory / "trainer.log",
                emit=emit,
            )
        try:
            self._member = Member(
                home, training=training, link=self._link, links=Links(transport), emit=emit
            )
        except RunError:  # of a damaged file: there will be no `run`, which cleans up
            if training is not None:
                training.vectors.unlink()
            raise
        self._port = 0
        self._lending = Lending(home, now=lambda: asyncio.get_running_loop().time())
        self._dataset: Dataset | None = None
        self._reads_along = False
        self._lost_state = False  # our state cannot be brought up to date: ask for a whole one
        self._reducing = Reducing(self._member)
        self._questions: asyncio.Queue[wire.Evaluate] = asyncio.Queue()
        self._unmeasured: asyncio.Queue[tuple[wire.Address, ...]] = asyncio.Queue()

    def pause(self, *, rests: bool, why: str = "") -> None:
        """Take no inner step after the one under way, or go on. A member that trains.

        It follows the run meanwhile, no round waits for it, and what it has done is carried. `why`:
        what it waits for, if it is not its owner's wish.
        """
        training = self._local.training
        if rests != training.is_paused:
            (training.pause if rests else training.resume)()
            self._link.send(wire.Resting(rests=rests))
            peer, name = self._member.peer_id, self._peer.name
            self._emit(PeerRests(peer=peer, name=name, rests=rests, why=why if rests else ""))
            self._board.notify()

    def leave(self) -> bool:
        """Let `run` end once all work that was begun is part of the model. A member that trains.

        After a few rounds it ends in any case. Returns whether there is such work, and it goes on:
        if not, nothing is won by waiting.
        """
        local = self._local
        if local.leave_by is None:
            rounds = 1 + self._home.config.sync.in_flight
            local.leave_by = RoundId(self._member.state.round + rounds)
            self._board.notify()
        return self._has_work and not local.training.is_paused

    @property
    def _local(self) -> Local:
        assert self._member.local is not None, "it trains"
        return self._member.local

    async def run(self) -> bool:
        """Take part until the run is complete, it may `leave`, or this task is cancelled.

        Returns whether the run is complete.

        Raises:
            ConfigError: the host turned us away for good.
            RunError: this machine cannot go on; what is on its disk is intact.
        """
        member, sync = self._member, self._home.config.sync
        server = BlobServer(
            reducers=member.reducers,
            updates=self._home.blobs.locate,
            states=self._locators(),
            inner=self._lending.offer,
            links=member.links,
        )
        listener: Listener | None = None
        try:
            if not self._reads_along:
                listener = await self._transport.listen(
                    server.serve, host=self._peer.listen_host, port=self._peer.listen_port
                )
                self._port = listener.port
            manners = Manners(
                hello=self._hello,
                heartbeat=self._heartbeat,
                goodbye=self._goodbye,
                hear=self._hear,
                every_s=sync.heartbeat_s,
                silent_s=sync.silent_s,
            )
            await together(
                self._live_and_stop(),
                self._link.run(manners),
                self._reducing.run(),
                self._evaluate(),
                self._measure(),
                *([] if member.local is None else [member.local.training.mind()]),
            )
        except Done as done:
            self._emit(Stopped(reason=str(done)))
            return done.is_complete
        finally:
            if listener is not None:
                await listener.close()
            await self._close()
        raise AssertionError("it takes part for ever")

    # --- the life -------------------------------------------------------------------------------

    async def _live_and_stop(self) -> None:
        await self._live()
        await self._member.saved()
        raise Done(is_complete=self._is_over())

    async def _live(self) -> None:
        member, loop = self._member, asyncio.get_running_loop()
        sync = self._home.config.sync
        give_up_at: float | None = None  # once the run is complete, and we cannot have its end
        behind_since: float | None = None
        await self._board.wait_for(lambda: self._board.dataset)
        await self._prepare()
        while not (self._is_over() or self._may_leave()):
            try:
                await self._next()
                behind_since = None
            except StateDiffers:
                pass  # the loop begins with fetching the right one
            except BadUpdateError as error:
                member.accounts.warn(
                    f"our own parameters are not fit to be shared: {error}",
                    hint="they are dropped, and it begins again from the run's own",
                )
                self._board.reset = True
                if member.local is not None:
                    await member.local.training.note_bad_work(error)
            except PeerError as error:
                is_complete = self._board.stop is not None and self._board.stop.complete
                if is_complete and give_up_at is None:
                    give_up_at = loop.time() + LAST_S
                elif give_up_at is not None and loop.time() >= give_up_at:
                    raise RunError(
                        f"the run is complete, but its last state cannot be had: {error}",
                        hint="ask its operator for an export of the model",
                    ) from error
                member.accounts.warn(f"cannot catch up yet: {error}", hint=BY_ITSELF)
                behind_since = loop.time() if behind_since is None else behind_since
                # Whoever has the updates may come back as we did, and a whole state costs our work.
                waits = self._has_work and loop.time() - behind_since < sync.reconnect_s
                self._lost_state = is_complete or not waits
                await asyncio.sleep(LAST_RETRY_S if is_complete else RETRY_S)
                # Last: where rounds are short, the state that the host now names is soon replaced.
                await self._link.reconnect()

    async def _next(self) -> None:
        """Do what comes next: another state, a commit that we missed, or a round."""
        member, board = self._member, self._board
        following = RoundId(member.state.round + 1)
        if member.differs():
            await member.sync()
            return
        if not member.has_begun:
            await member.begin()
            return
        if not member.is_prepared:
            await self._start_training()
            return
        await board.wait_for(
            lambda: (
                member.differs()
                or following in board.commits
                or member.plan_of(following)
                or self._is_over()
                or self._may_leave()
                or None
            )
        )
        if is_far_behind(member):
            if board.stop is not None and board.stop.complete:  # the host may be gone by now
                raise PeerError("members no longer keep the updates of what was missed")
            await self._link.reconnect()  # the host then names a newer state: that is quicker
        elif following in board.commits:
            await finish_round(board.commits[following], member)  # of a round that we missed
        elif member.may_begin(following) and not self._may_leave():
            await run_rounds(following, member)

    async def _prepare(self) -> None:
        """Get the dataset, if we train; its tokenizer alone, if we read along."""
        if self._member.local is not None:
            self._dataset = await self._fetched(self._fetch_dataset)
            return
        if self._reads_along:
            self._home.remember_tokenizer(await self._fetched(self._fetch_tokenizer))
        self._member.report_state()

    async def _fetched(self, fetch: Callable[[Digest], Awaitable[T]]) -> T:
        """Return what is fetched of the run's dataset, however long it takes to be had."""
        dataset = self._board.dataset
        assert dataset is not None
        self._home.remember_dataset(dataset)
        while True:
            try:
                self._member.accounts.begin_download("the dataset")
                return await fetch(dataset)
            except PeerError as error:
                self._member.accounts.warn(f"waiting for the dataset: {error}", hint=BY_ITSELF)
                await asyncio.sleep(RETRY_S)
                await self._link.reconnect()  # the host may know other sources by now

    async def _fetch_dataset(self, digest: Digest) -> Dataset:
        if self._dataset is not None:
            return self._dataset
        member, cache = self._member, Path(self._peer.cache_directory)
        return await fetch_dataset(
            digest, sources=member.sources(), links=member.links, cache=cache
        )

    async def _fetch_tokenizer(self, digest: Digest) -> bytes:
        member = self._member
        return await fetch_tokenizer(digest, sources=member.sources(), links=member.links)

    async def _start_training(self) -> None:
        member = self._member
        assert member.local is not None
        assert self._dataset is not None
        training = member.local.training
        training.inner = self._home.newest_inner(member.state.round)
        if training.inner is None and self._peer.fetch_moments:
            training.inner = await member.fetch_moments()
        await training.start(self._dataset.folder)
        member.is_prepared = True
        member.report_state()

    def _is_over(self) -> bool:
        """Return whether the run is complete, and we have all that the host sent us of it."""
        stop, member = self._board.stop, self._member
        missed = RoundId(member.state.round + 1) in self._board.commits or member.differs()
        return stop is not None and stop.complete and not missed

    @property
    def _has_work(self) -> bool:
        """Whether we have done work that is in no commit that we know."""
        return self._member.local is not None and bool(self._member.local.training.work.touched())

    def _may_leave(self) -> bool:
        local = self._member.local
        return local is not None and local.may_leave

    # --- what the host hears and says -----------------------------------------------------------

    def _hello(self) -> wire.Hello:
        member = self._member
        local = member.local
        has_state = member.has_begun and not self._lost_state
        member.said = member.held_state if has_state else (INITIAL, NO_STATE)
        round_id, state = member.said
        return wire.Hello(
            protocol=wire.PROTOCOL,
            run=self._home.run,
            name=self._peer.name,
            place=self._peer.place,
            arriving=self._home.arriving(),
            trains=local is not None,
            listen_host=self._peer.advertise_host,
            listen_port=self._port,
            codecs=tuple(sorted(CODECS)),
            round=round_id,
            state=state,
            trained=() if local is None else local.training.work.touched(),
            led=self._hosts.led,
            rests=local is not None and local.training.is_paused,
            instance=self._instance,
        )

    def _heartbeat(self) -> wire.Heartbeat:
        local = self._member.local
        step = None if local is None or local.training.is_paused else local.training.newest
        if step is None:
            return wire.Heartbeat()
        beat = wire.Heartbeat(
            round=RoundId(self._member.state.round + 1),
            step=step.step + 1,
            loss=step.loss,
            tokens_per_s=step.num_tokens / step.seconds if step.seconds else 0.0,
        )
        self._emit(
            Trains(
                peer=self._member.peer_id,
                round=beat.round,
                step=beat.step,
                loss=beat.loss,
                tokens_per_s=beat.tokens_per_s,
            )
        )
        return beat

    def _goodbye(self) -> wire.Leaving:
        member = self._member
        return wire.Leaving(reason="it left", traffic=member.accounts.close(member.state.round))

    def _hear(self, message: wire.Message) -> None:
        self._member.hear(message)
        if isinstance(message, wire.Welcome):
            self._lost_state = False
        if isinstance(message, wire.Reduce):
            self._reducing.ask(message)
        if isinstance(message, wire.Evaluate):
            self._questions.put_nowait(message)
        if isinstance(message, wire.Plan) and message.measure:
            self._unmeasured.put_nowait(message.measure)

    async def _evaluate(self) -> None:
        """Find out how good states are, as the host asks."""
        while True:
            question = await self._questions.get()
            self._link.send(await evaluated(question, self._member))

    async def _measure(self) -> None:
        """Find out how far away others are, one after the other, as the host asks."""
        while True:
            for address in await self._unmeasured.get():
                with suppress(PeerError):  # the host may ask again
                    await self._member.links.measure(address)

    # --- beginning and end ----------------------------------------------------------------------

    def _locators(self) -> list[Callable[[Digest], tuple[Path, int, int] | None]]:
        loop = asyncio.get_running_loop()

        def in_states(digest: Digest) -> tuple[Path, int, int] | None:
            return self._home.states.locate(digest, now=loop.time())

        def in_initial(digest: Digest) -> tuple[Path, int, int] | None:
            initial = self._home.initial
            return None if initial is None else initial.locate(digest, now=loop.time())

        def in_dataset(digest: Digest) -> tuple[Path, int, int] | None:
            if self._dataset is None:
                return None
            path = self._dataset.places.get(digest)
            return None if path is None else (path, 0, path.stat().st_size)

        return [in_states, in_initial, in_dataset, self._lending.locate]

    def serve_dataset(self, dataset: Dataset) -> None:
        """Serve this dataset to joiners, though we do not train on it ourselves."""
        self._dataset = dataset
        self._home.remember_dataset(dataset.digest)

    def read_along(self) -> None:
        """Follow the commits for the sake of the model alone: others cannot dial us."""
        self._reads_along = True

    async def _close(self) -> None:
        await self._member.links.close()
        if self._member.local is not None:
            await self._member.local.training.stop()
        with suppress(RunError):  # of a full disk, the error that ends us tells already
            await self._member.saved()
        self._home.close()


class Done(Exception):
    """The run is complete, and its last state on our disk; or we leave, as we were asked to."""

    def __init__(self, *, is_complete: bool) -> None:
        super().__init__("the run is complete" if is_complete else "left after the round")
        self.is_complete = is_complete
