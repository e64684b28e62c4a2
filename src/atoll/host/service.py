"""The host on real sockets: it hears members, asks `run.py` what to do, and does that.

    listener -> stranger: enrolment        journal (fsync)  <- Append                (deeds.py)
             -> member:   Hello, messages  -> run.on_...()  -> Send, Drop, Report

All handlers run in one event loop, one after the other, so there are no locks; each member has a
queue of its own, so none waits for another's line.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from atoll.clock import wall_s
from atoll.config import canonical, run_digest
from atoll.errors import DeposedError, PeerError, RunError
from atoll.events import Emit, HostStarted, Stopped, Warned
from atoll.exchange.sizes import encoded_slices, partial_codec
from atoll.host import run as decisions
from atoll.host.admission import REMOVED, Admission, judge_hello, judge_protocol, no_member
from atoll.host.deeds import Deeds
from atoll.host.due import advance
from atoll.host.effects import Append, Drop, Effect, Report, Send, SendCommits
from atoll.host.journal import Journal, deposed
from atoll.host.lead import Alone, Leading, host_address, not_leading
from atoll.host.membership import Member
from atoll.host.session import Session, judge_instance
from atoll.host.state import Run
from atoll.ids import Digest, PeerId, RoundId, peer_id_of
from atoll.model.layout import layout_of
from atoll.net import wire
from atoll.net.authority import Authority
from atoll.net.enrol import introduction
from atoll.net.identity import Identity
from atoll.net.invite import Invite, new_token, token_digest
from atoll.net.records import Admitted, Committed, Entry, InviteMade, Record, led
from atoll.net.transport import Connection, Transport
from atoll.sentences import one_line

TICK_S = 0.1
TICK_OF = 5  # times as long as news waits, at least: a look at thousands of members takes long
HELLO_S = 10.0  # for a member to say what it wants
PROBE_S = 5.0  # for a member that says it listens to answer
FAREWELL_S = 600.0  # for the members of a complete run to fetch what they still lack
END = wire.Stop(reason="the run is complete", complete=True)
STOPS = wire.Stop(reason="the host stops; it may come back", complete=False)
LOOPBACK = ("127.0.0.1", "::1")


class Host:
    """Serves one run from its journal. `advertise` is the host name that members know us by."""

    def __init__(
        self,
        journal: Journal,
        *,
        authority: Authority,
        transport: Transport,
        identity: Identity,
        advertise: str,
        emit: Emit,
    ) -> None:
        self._journal = journal
        self.run: Run = self._replay(now=0.0)
        self.port = 0
        self._run_digest: Digest = run_digest(self.run.config)
        self._admission = Admission()
        self._commits: dict[RoundId, wire.Commit] = {}
        self._authority = authority
        self._transport = transport
        self._identity = identity
        self._advertise = advertise
        self._emit = emit
        self._deeds = Deeds(journal, note=self._note, fail=self._fail)
        self._sessions: dict[PeerId, Session] = {}
        self._failure: asyncio.Future[None] | None = None
        self._news = asyncio.Event()  # something happened, and what is due was not looked at since
        self._is_over = False  # and the members have been told so
        self.leads = False  # the run, now
        self._standbys: tuple[str, ...] = ()
        self._beat_at = 0.0  # when the members hear from us next

    @property
    def address(self) -> str:
        """Where members find this host, once it listens."""
        return f"{self._advertise}:{self.port}"

    async def serve(
        self, *, host: str, port: int, started: asyncio.Event, leading: Leading | None = None
    ) -> None:
        """Serve until the run is complete, or this task is cancelled.

        `leading` says when this host may; without, it is the only one there can be.

        Raises:
            DeposedError: another host leads by now.
            RunError: the port is taken, or the journal cannot be written any more.
        """
        leading = leading or Alone(self._journal)
        self._failure = asyncio.get_running_loop().create_future()
        listener = await self._transport.listen(self._serve, host=host, port=port)
        self.port = listener.port
        try:
            if await leading.take(self.address):
                await self._lead(leading, started)
        finally:
            await listener.close()

    async def _lead(self, leading: Leading, started: asyncio.Event) -> None:
        """Lead the run from what its journal says, until it is complete."""
        assert self._failure is not None
        self._begin()
        started.set()
        keeping = asyncio.create_task(leading.keep(self._note_standbys))
        ticking = asyncio.create_task(self._to_the_end())
        settling = asyncio.create_task(self._settle())
        working = (keeping, ticking, settling, self._failure)
        try:
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        except asyncio.CancelledError:
            self._ask_for(decisions.on_end(self.run))
            for peer in self._sessions:
                self._send(peer, STOPS)
            await self._deeds.done()
            await asyncio.sleep(TICK_S)
            raise
        finally:
            self.leads = False
            for task in (keeping, ticking, settling):
                task.cancel()
            await asyncio.gather(keeping, ticking, settling, return_exceptions=True)
            await self._deeds.end()
            if not (self._failure.done() and isinstance(self._failure.exception(), DeposedError)):
                await leading.end(complete=self._is_over)

    def _begin(self) -> None:
        self.run = self._replay(now=self._now())
        self._admission = Admission.replay(entry.record for entry in self._journal.entries)
        self._note(self._journal.entries)
        self.leads = True
        self._emit(
            HostStarted(
                run=self.run.config.name,
                address=self.address,
                committed=self.run.committed,
                epoch=self._journal.epoch,
            )
        )

    async def _to_the_end(self) -> None:
        await self._tick(lambda: self.run.is_complete)
        await self._farewell()
        self._ask_for(decisions.on_end(self.run))
        await self._deeds.done()

    def _replay(self, *, now: float) -> Run:
        history = [entry.record for entry in self._journal.entries]
        config = decisions.config_of(history)
        sync, layout = config.sync, layout_of(config)
        return decisions.replay(
            history,
            slice_bytes=encoded_slices(layout, sync.update_codec),
            contribution_bytes=tuple(map(sum, encoded_slices(layout, sync.codec))),
            partial_bytes=tuple(map(sum, encoded_slices(layout, partial_codec(sync.update_codec)))),
            now=now,
        )

    async def make_invite(self, *, uses: int, valid_s: float) -> str:
        """Return the line that a newcomer pastes; it works from now on.

        Raises:
            RunError: it could not be made durable.
        """
        token = new_token()
        invite = Invite(
            host=self._advertise,
            port=self.port,
            authority=self._authority.digest,
            token=token,
            others=tuple((a.host, a.port) for a in map(host_address, self._standbys)),
        )
        made = InviteMade(token=token_digest(token), uses=uses, expires_at=wall_s() + valid_s)
        self._append((made,))
        await self._deeds.done()
        return invite.format()

    @property
    def members(self) -> frozenset[PeerId]:
        """Who may take part: all that were admitted and not removed, and the built-in member."""
        return frozenset(self._admission.members)

    async def operate(self, decide: Callable[..., list[Effect]], *what: object) -> None:
        """Let the operator's will be decided on and done: one of the functions of `operate.py`.

        Raises:
            RunError: it could not be made durable.
        """
        self._do(decide, *what)
        await self._deeds.done()

    # --- connections ----------------------------------------------------------------------------

    async def _serve(self, connection: Connection) -> None:
        with suppress(RunError):  # the host ends with it already
            if not self.leads:
                await connection.send(not_leading(self._journal, here=self.address))
            elif connection.peer is None:
                await self._enrol(connection)
            else:
                await self._converse(connection, connection.peer)

    async def _enrol(self, connection: Connection) -> None:
        """Answer a stranger: say who signs here; sign its key if its token is good."""
        while True:
            match await connection.receive():
                case wire.GetAuthority(protocol=protocol):
                    if refused := judge_protocol(protocol):
                        await connection.send(refused)
                        return
                    seen = connection.remote_host
                    await connection.send(introduction(self._authority.certificate, seen=seen))
                case wire.Enrol(token=token, public_key=key, name=name):
                    await connection.send(await self._admit(token, key, name))
                    return
                case message:
                    raise PeerError(f"a stranger sent {type(message).__name__}")

    async def _admit(self, token: str, public_key: bytes, name: str) -> wire.Message:
        peer, digest = peer_id_of(public_key), token_digest(token)
        if refused := self._admission.judge(digest, peer, now_s=wall_s()):
            return refused
        if peer not in self._admission.members:
            key, known_as = public_key.hex(), one_line(name)
            self._append((Admitted(peer=peer, public_key=key, name=known_as, token=digest),))
        await self._deeds.done()  # also if it was admitted a moment ago
        return wire.Enrolled(
            certificate=self._authority.sign_member(public_key, name),
            run_config=canonical(self.run.config),
            host=self._identity.peer_id,
            built_in=self.run.built_in,
        )

    async def _converse(self, connection: Connection, peer: PeerId) -> None:
        try:
            async with asyncio.timeout(HELLO_S):
                hello = await connection.receive()
        except TimeoutError as error:
            raise PeerError(f"{peer} connected, and said nothing") from error
        if not isinstance(hello, wire.Hello):
            raise PeerError(f"{peer} began with {type(hello).__name__}")
        if refused := await self._judge(peer, hello):
            await connection.send(refused)
            return
        session = Session(connection, instance=hello.instance)
        if (older := self._sessions.get(peer)) is not None:
            older.end()
            self._do(decisions.on_lost, peer, "it connected anew")
        self._sessions[peer] = session
        member = Member.of(peer, hello)
        try:
            session.put(self._leader())
            self._do(decisions.on_hello, member, hello)
            self._news.set()
            if self._is_over and peer != self.run.built_in:
                self._send(peer, END)
            await self._serve_session(session, peer, hello)
        finally:
            session.end()
            if self._sessions.get(peer) is session:
                del self._sessions[peer]
                self._do(decisions.on_lost, peer, session.reason)
                self._news.set()

    async def _judge(self, peer: PeerId, hello: wire.Hello) -> wire.Refused | None:
        if peer in self._admission.removed:
            return REMOVED
        if peer not in self._admission.members:
            return no_member(tuple(map(host_address, self._standbys)))
        if hello.led is not None and (refused := self._judge_led(hello.led)):
            return refused
        sync = self.run.config.sync
        codecs: set[str] = {sync.codec, sync.update_codec}
        refused = judge_hello(hello, run=self._run_digest, codecs=codecs)
        return refused or await judge_instance(peer, hello, self._sessions, sync, emit=self._emit)

    def _judge_led(self, message: wire.Commit) -> wire.Refused | None:
        """Compare who leads, as the peer knows it, with our own lead."""
        theirs = led(message, public_key=self._authority.public_key)
        ours = self._journal.led
        if theirs.epoch > self._journal.epoch:
            error = deposed(theirs.epoch, address=theirs.address)
            self._fail(error)
            return wire.Refused(reason=str(error), final=False)
        if ours is not None and theirs.epoch == self._journal.epoch and message.hash != ours.hash:
            reason = f"two hosts lead this run in epoch {theirs.epoch}: {self.address}, which you "
            reason += f"have not followed, and {theirs.address}"
            hint = "stop the one with the older journal, or see: atoll takeover --help"
            self._emit(Warned(text=f"{reason}; {hint}"))
            return wire.Refused(reason=reason, hint=hint, final=False)
        return None

    def _leader(self) -> wire.Leader:
        assert self._journal.led is not None, "it leads"
        hosts = tuple(map(host_address, (self.address, *self._standbys)))
        return wire.Leader(led=self._journal.led.to_commit(), hosts=hosts)

    def _note_standbys(self, standbys: tuple[str, ...]) -> None:
        if standbys != self._standbys:
            self._standbys = standbys
            for session in self._sessions.values():
                session.put(self._leader())

    async def _serve_session(self, session: Session, peer: PeerId, hello: wire.Hello) -> None:
        """Read and write until the connection ends, or the run says that it should."""
        tasks = [
            asyncio.create_task(self._read(session, peer)),
            asyncio.create_task(self._write(session)),
            asyncio.create_task(session.ended.wait()),
        ]
        probing = asyncio.create_task(self._probe(session, peer, hello))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None:
                    session.reason = str(error)
                    if not isinstance(error, PeerError):
                        raise error
        finally:
            for task in (*tasks, probing):
                task.cancel()
            await asyncio.gather(*tasks, probing, return_exceptions=True)

    async def _read(self, session: Session, peer: PeerId) -> None:
        while True:
            message = await session.connection.receive()
            session.heard.set()
            self._do(decisions.on_message, peer, message)
            if not isinstance(message, wire.Heartbeat):
                self._news.set()

    async def _write(self, session: Session) -> None:
        while True:
            await session.connection.send(await session.outbox.get())

    async def _probe(self, session: Session, peer: PeerId, hello: wire.Hello) -> None:
        """Find out whether others can reach the member, by dialling it."""
        seen = session.connection.remote_host
        host = hello.listen_host or (self._advertise if seen in LOOPBACK else seen)
        address: wire.Address | None = None
        if peer == self.run.built_in:
            address = wire.Address(peer=peer, host=self._advertise, port=hello.listen_port)
        elif hello.listen_port:
            with suppress(PeerError):
                probe = await self._transport.dial(
                    host, hello.listen_port, expect=peer, timeout_s=PROBE_S
                )
                address = wire.Address(peer=peer, host=host, port=hello.listen_port)
                await probe.close()
        self._do(decisions.on_probed, peer, address)
        self._news.set()

    # --- effects --------------------------------------------------------------------------------

    def _do(self, decide: Callable[..., list[Effect]], *what: object) -> None:
        """Decide about something that happened, and ask for all the effects in their order.

        What a decision has changed in memory must also happen: when it cannot, the host ends, and
        the next one begins from the journal.

        Raises:
            RunError: a record could not be made durable; nothing that follows it was done.
        """
        if self._failure is None or self._failure.done():
            return
        try:
            self._ask_for(decide(self.run, *what, now=self._now()))
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _ask_for(self, effects: Iterable[Effect]) -> None:
        """Ask for these effects: what they are to do, and to whom, is settled now."""
        for effect in effects:
            match effect:
                case Append(records=records):
                    self._append(records)
                case Send(peer=peer, message=message):
                    self._send(peer, message)
                case SendCommits(peer=peer, after=after, through=through):
                    for round_id in map(RoundId, range(after + 1, through + 1)):
                        self._send_commit(peer, round_id)
                case Drop(peer=peer, reason=reason):
                    if (session := self._sessions.get(peer)) is not None:
                        self._deeds.then(partial(session.drop, reason))
                case Report(event=event):
                    self._deeds.then(partial(self._emit, event))

    def _append(self, records: tuple[Record, ...]) -> None:
        for record in records:  # now: an invite that is used up is so for whoever comes next
            self._admission.note(record)
        self._deeds.append(records)

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            record = entry.record
            if isinstance(record, Committed):
                self._commits[record.round] = entry.to_commit()

    def _send(self, peer: PeerId, message: wire.Message) -> None:
        if (session := self._sessions.get(peer)) is not None:
            self._deeds.then(partial(session.put, message))

    def _send_commit(self, peer: PeerId, round_id: RoundId) -> None:
        session, counted = self._sessions.get(peer), self.run.counted(peer, round_id)
        if session is not None:  # the entry may be on its way to the journal
            self._deeds.then(lambda: session.put(replace(self._commits[round_id], counted=counted)))

    # --- time -----------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Do what is due, once for all that happened within a moment."""
        while await self._news.wait():
            await asyncio.sleep(decisions.settle_s(self.run))
            self._do(advance)
            self._news.clear()

    async def _tick(self, until: Callable[[], bool]) -> None:
        """Let time pass for the run, and tell the members that we are alive."""
        while not until():
            self._do(decisions.on_tick)
            self._news.clear()
            if self._now() >= self._beat_at:
                for session in self._sessions.values():
                    session.put(wire.Heartbeat())
                self._beat_at = self._now() + self.run.config.sync.heartbeat_s
            await asyncio.sleep(max(TICK_S, TICK_OF * decisions.settle_s(self.run)))

    async def _farewell(self) -> None:
        """Tell the members that the run is complete, and give them time to have all of it.

        The built-in member, which keeps the model, has it first and goes last: the others may lack
        what somebody else has already left with. If it does not come, all the others stay until
        each of them has it.
        """
        self._ask_for([Report(Stopped(reason="the run is complete"))])
        deadline = self._now() + FAREWELL_S
        await self._tick(lambda: self._now() >= deadline or not self._is_kept_waiting())
        self._is_over = True
        for peer in sorted(set(self._sessions) - {self.run.built_in}):
            self._send(peer, END)
        # Members that are away come back, or lapse; after a restart, all get the time to do so.
        await self._tick(
            lambda: self._now() >= deadline or not (self._others() or self._may_be_found_again())
        )
        self._send(self.run.built_in, END)
        await self._tick(
            lambda: self._now() >= deadline + PROBE_S or self.run.built_in not in self._sessions
        )

    def _others(self) -> set[PeerId]:
        return (set(self._sessions) | set(self.run.membership.members)) - {self.run.built_in}

    def _is_kept_waiting(self) -> bool:
        """Return whether somebody is to evaluate the last state, or has not got it yet."""
        member = self.run.membership.get(self.run.built_in)
        is_kept = member is not None and member.connected and member.round >= self.run.committed
        return self.run.is_asking or (not is_kept and self._may_lack_the_end())

    def _may_lack_the_end(self) -> bool:
        """Return whether some member has not reported the last state, and still may."""
        members = self.run.membership.members.values()
        return self._may_be_found_again() or any(
            not m.connected or m.round < self.run.committed for m in members
        )

    def _may_be_found_again(self) -> bool:
        return self.run.may_be_found_again(now=self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
