"""Lets the faults of a script happen to a fleet, and mends them when their time is over."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from itertools import product

import numpy as np

from atoll import system
from atoll.events import Event, RoundPlanned
from atoll.host.store import Word
from atoll.net.wire import Message
from atoll.sim.database import DatabaseStore
from atoll.sim.faults import (
    AtTime,
    BadWeights,
    ClockSkew,
    Crash,
    Cut,
    DiskFull,
    Fault,
    Flicker,
    Freeze,
    HostCrash,
    InRound,
    Leave,
    OnMessage,
    Partition,
    Pause,
    Script,
    Slow,
    TakeOver,
    Tamper,
    TrainerDeath,
    TrainerHang,
    lasts_s,
)
from atoll.sim.fleet import Fleet
from atoll.sim.journal import Moment
from atoll.sim.network import Harm, Machine, Tampering
from atoll.sim.seat import Seat
from atoll.sim.setting import PORT

ENDING_S = 10.0  # for a process that cannot write, to say goodbye to all


class Mischief:
    """The faults of a script, as they happen. `over_at`: when the last one so far is mended."""

    def __init__(self, fleet: Fleet, script: Script) -> None:
        self.over_at = 0.0
        self.happened: list[Fault] = []
        self._fleet = fleet
        self._loop = fleet.loop
        self._context = copy_context()  # it strikes from outside of all processes
        self._by_round: list[tuple[InRound, Fault]] = []
        self._by_message: list[tuple[OnMessage, Fault]] = []
        self._counts: Counter[int] = Counter()  # messages that each of those has seen
        self._planned: set[int] = set()
        self._appends = 0
        self._host_crashes = [fault for fault in script if isinstance(fault, HostCrash)]
        for fault in script:
            if not isinstance(fault, HostCrash):
                self._arrange(fault)
        fleet.watch = self._note_event
        fleet.network.tamper = self._judge_message
        for name, program in fleet.host_programs.items():
            program.dies_at = partial(self._note_append, fleet.hosts[name])

    # --- when -----------------------------------------------------------------------------------

    def _arrange(self, fault: Fault) -> None:
        assert not isinstance(fault, HostCrash)
        match fault.when:
            case AtTime(seconds):
                self._after(seconds, partial(self._strike, fault))
            case InRound() as when:
                self._by_round.append((when, fault))
            case OnMessage() as when:
                self._by_message.append((when, fault))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._loop.call_later(seconds, act, context=self._context)

    def _note_event(self, name: str, event: Event) -> None:
        if name not in self._fleet.hosts or not isinstance(event, RoundPlanned):
            return
        if event.round in self._planned:
            return
        self._planned.add(event.round)
        for when, fault in self._by_round:
            if when.round == event.round:
                self._after(when.after_s, partial(self._strike, fault))

    def _judge_message(
        self, sender: Machine, receiver: Machine, message: Message
    ) -> Tampering | None:
        """Return the harm that is done to this message, if any."""
        verdict: Tampering | None = None
        for number, (when, fault) in enumerate(self._by_message):
            if not _matches(when, sender, receiver, message):
                continue
            self._counts[number] += 1
            if self._counts[number] != when.count:
                continue
            if isinstance(fault, Tamper):
                self._note(fault)
                verdict = Tampering(Harm(fault.harm), fault.seconds)
            else:
                self._after(0.0, partial(self._strike, fault))
        return verdict

    def _note_append(self, host: Seat, moment: Moment) -> bool:
        """Return whether this host dies now."""
        self._appends += moment == "before"
        for fault in self._host_crashes:
            if (fault.append, fault.moment) == (self._appends, moment):
                self._host_crashes.remove(fault)
                self._note(fault)
                self._after(fault.back_s, host.start)
                return True
        return False

    def _note(self, fault: Fault) -> None:
        self.happened.append(fault)
        self.over_at = max(self.over_at, self._loop.time() + lasts_s(fault))

    # --- what -----------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        self._note(fault)
        mend = self._strike_machine(fault) or self._strike_work(fault)
        if mend is not None:
            self._after(lasts_s(fault), mend)

    def _strike_machine(self, fault: Fault) -> Callable[[], None] | None:
        """Do the harm, if it is one to lines or processes; return what mends it."""
        fleet = self._fleet
        match fault:
            case Crash(who=who, power=power):
                return self._crash(self._seat(who), has_power=power)
            case Freeze(who=who):
                self._seat(who).freeze()
                return self._seat(who).thaw
            case Cut(one=one, other=other):
                return self._cut([(one, other)])
            case Partition(side=side):
                rest = [name for name in fleet.network.machines if name not in side]
                return self._cut(list(product(side, rest)))
            case Flicker(who=who):
                self._seat(who).flicker()
            case TakeOver(who=who):
                self._call(who)
            case _:
                pass
        return None

    def _strike_work(self, fault: Fault) -> Callable[[], None] | None:
        """Do the harm, if it is one to what a machine works with; return what mends it."""
        match fault:
            case Slow(who=who, factor=factor):
                return self._slow(self._seat(who), factor)
            case DiskFull(who=who):
                return self._fill_disk(self._seat(who))
            case ClockSkew(who=who, by_s=by_s):
                self._seat(who).condition.skew_s += by_s
            case Leave(who=who, in_order=in_order):
                self._leave(who, in_order=in_order)
                return partial(self._come_back, self._seat(who))
            case Pause(who=who):
                self._pause(who, rests=True)
                return partial(self._pause, who, rests=False)
            case TrainerDeath(who=who) | TrainerHang(who=who) | BadWeights(who=who):
                self._harm_trainer(fault, who)
            case _:
                pass
        return None

    def _seat(self, who: str) -> Seat:
        return self._fleet.seats[who]

    def _call(self, host: str) -> None:
        """Tell the host there to take over, if it stands by."""
        if self._fleet.database is not None:
            store = DatabaseStore(self._fleet.database, lambda: True)
            store.tell(f"{host}:{PORT}", Word.LEAD)

    def _leave(self, who: str, *, in_order: bool) -> None:
        agent = self._fleet.programs[who].agent
        if not (in_order and agent is not None and agent.leave()):
            self._seat(who).leave()

    def _pause(self, who: str, *, rests: bool) -> None:
        agent = self._fleet.programs[who].agent
        if agent is not None:
            agent.pause(rests=rests)

    def _come_back(self, seat: Seat) -> None:
        """Start what was stopped, once it has ended."""
        if seat.is_running and not seat.is_done:
            self._after(1.0, partial(self._come_back, seat))
        seat.start()

    def _crash(self, seat: Seat, *, has_power: bool) -> Callable[[], None]:
        if not has_power:
            seat.machine.is_up = False
        seat.die()
        self._fleet.network.changed()

        def start() -> None:
            seat.machine.is_up = True
            self._fleet.network.changed()
            seat.start()

        return start

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> Callable[[], None]:
        network = self._fleet.network
        for one, other in pairs:
            network.cut(one, other)

        def heal() -> None:
            for one, other in pairs:
                network.heal(one, other)

        return heal

    def _slow(self, seat: Seat, factor: float) -> Callable[[], None]:
        seat.condition.slowness *= factor

        def recover() -> None:
            seat.condition.slowness /= factor

        return recover

    def _fill_disk(self, seat: Seat) -> Callable[[], None]:
        seat.condition.within = system.full_disk

        def make_room() -> None:
            seat.condition.within = None
            num_ends = len(seat.ends)
            seat.start()
            self._after(ENDING_S, lambda: start_if_ended(num_ends))

        def start_if_ended(num_ends: int) -> None:
            """Start who was just ending when there was room again."""
            if len(seat.ends) > num_ends:
                seat.start()

        return make_room

    def _harm_trainer(self, fault: TrainerDeath | TrainerHang | BadWeights, who: str) -> None:
        trainer = self._fleet.devices[who].trainer
        if trainer is None:
            return  # it has none yet
        match fault:
            case TrainerDeath():
                trainer.kill()
            case TrainerHang():
                trainer.hang()
            case BadWeights(factor=factor):
                with np.errstate(over="ignore", invalid="ignore"):
                    trainer.spoil_(factor)


def _matches(when: OnMessage, sender: Machine, receiver: Machine, message: Message) -> bool:
    return (
        type(message).__name__ == when.kind
        and when.sender in ("", sender.name)
        and when.receiver in ("", receiver.name)
    )
