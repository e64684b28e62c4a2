"""How a host becomes the leader of its run, stays it, and learns that it is not any more.

    stand by --lead is over, or the operator calls--> take the lead --> renew it --> end it
                                                                      deposed: stop at once

What keeps two hosts from both appending is the journal alone (`store.py`). Here is only the
question when a host should try; it is answered by the clock of the database that they share.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from atoll.clock import wall_s
from atoll.errors import ConfigError, DamagedError, DeposedError, RunError
from atoll.events import Emit, HostStandsBy, Warned
from atoll.exchange.tasks import in_thread
from atoll.host.journal import Journal, deposed, led_in
from atoll.host.store import Lead, SharedStore, Word
from atoll.net import wire

LOOKS = 8  # in the time that a lead lasts: how often a standby looks, and a leader renews


def not_leading(journal: Journal, *, here: str) -> wire.Refused:
    """Return what a host at this address says while it does not lead: ask whoever did so last."""
    address = here if journal.led is None else led_in(journal.led).address
    is_elsewhere = address != here
    return wire.Refused(
        reason="this host does not lead the run now",
        hint=f"the host at {address} led it last" if is_elsewhere else "ask its other hosts",
        final=False,
        hosts=(host_address(address),) if is_elsewhere else (),
    )


def host_address(address: str) -> wire.HostAddress:
    host, _, port = address.rpartition(":")
    return wire.HostAddress(host=host, port=int(port))


class Leading(Protocol):
    async def take(self, address: str) -> bool:
        """Return once the host at this address leads; False: the run is over without it.

        Raises:
            RunError: another host leads.
        """

    async def keep(self, note_standbys: Callable[[tuple[str, ...]], None]) -> None:
        """Stay the leader until cancelled, and hear of the standbys that there are.

        Raises:
            DeposedError: another host leads by now.
            RunError: nobody can tell any more who does.
        """

    async def end(self, *, complete: bool) -> None:
        """Let another host lead, or let them all go, if the run is complete."""


class Alone:
    """Leads a run whose journal no other machine reaches: the lock of its directory is enough."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def take(self, address: str) -> bool:
        led = self._journal.led
        # Started again at the same place, it goes on with its epoch: or else an old copy of the
        # directory that is started over and over would some day have the highest one.
        if led is None or led_in(led).address != address:
            lead_by_file(self._journal, address)
        return True

    async def keep(self, note_standbys: Callable[[tuple[str, ...]], None]) -> None:
        note_standbys(())
        await asyncio.Event().wait()

    async def end(self, *, complete: bool) -> None:
        pass


def lead_by_file(journal: Journal, address: str, *, above: int = 0) -> None:
    """Make the host at this address the leader, in a journal that nobody else writes to.

    Raises:
        RunError: somebody does, or the disk is full.
    """
    journal.append([led_in(journal.next_led(address, at=wall_s(), above=above))])


class Shared:
    """Leads a run whose journal hosts on several machines share, or stands by for that.

    A lead lasts for `lead_s` behind its last renewal.
    """

    def __init__(
        self, journal: Journal, store: SharedStore, *, lead_s: float, standby: bool, emit: Emit
    ) -> None:
        self._journal = journal
        self._store = store
        self._lead_s = lead_s
        self._standby = standby
        self._emit = emit

    async def take(self, address: str) -> bool:
        if self._standby:
            return await self._stand_by(address)
        await self._outwait(address)
        return True

    async def _outwait(self, address: str) -> None:
        """Wait for the lead of a host that was killed to be over; a live one renews it."""
        seen: Lead | None = None
        while not await in_thread(self._try, address, called=False):
            lead = await in_thread(self._store.lead)
            if lead is not None and not lead.is_over:
                if seen is not None and lead != seen:
                    raise RunError(
                        f"the host at {lead.address} leads this run, in epoch {lead.epoch}",
                        hint="stop it first, or start this one with --standby",
                    )
                if seen is None:
                    text = f"epoch {lead.epoch} of {lead.address} may last for {self._lead_s:g} s"
                    self._emit(Warned(text=f"{text}: waiting for its end"))
                seen = lead
            await asyncio.sleep(self._lead_s / LOOKS)

    async def _stand_by(self, address: str) -> bool:
        """Follow the journal; return whether to lead, and not to go home."""
        self._emit(HostStandsBy(address=address))
        is_lost = False
        try:
            while True:
                try:
                    # First: who ends its lead as the run is complete has told us before to leave.
                    is_over = await in_thread(self._is_over)
                    word = await in_thread(self._store.stand_by, address, stays_s=self._lead_s)
                    if word is Word.LEAVE:
                        return False
                    is_called = word is Word.LEAD
                    if (is_over or is_called) and await in_thread(
                        self._try, address, called=is_called
                    ):
                        return True
                    is_lost = False
                except (ConfigError, DamagedError):
                    raise
                except RunError as error:
                    if not is_lost:
                        self._emit(Warned(text=f"{error}; trying again"))
                    is_lost = True
                await asyncio.sleep(self._lead_s / LOOKS)
        finally:
            await in_thread(self._forget, address)

    def _forget(self, address: str) -> None:
        with suppress(RunError):  # it will be forgotten by itself
            self._store.leave(address)

    def _is_over(self) -> bool:
        """Return whether nobody leads, after a look at what the journal has by now."""
        self._journal.refresh()
        lead = self._store.lead()
        return lead is None or lead.is_over

    def _try(self, address: str, *, called: bool) -> bool:
        """Become the leader if nobody else is, or we are called; return whether we are."""
        if not self._is_over() and not called:
            return False
        led = self._journal.next_led(address, at=wall_s())
        if not self._store.take_lead(led, lead_s=self._lead_s, called=called):
            return False  # another one was quicker
        self._journal.refresh()
        return self._journal.led == led

    async def keep(self, note_standbys: Callable[[tuple[str, ...]], None]) -> None:
        loop = asyncio.get_running_loop()
        renewed_at = loop.time()
        while True:
            try:
                if not await in_thread(
                    self._store.renew_lead, self._journal.epoch, lead_s=self._lead_s
                ):
                    raise await in_thread(self._deposed)
                note_standbys(tuple(await in_thread(self._store.standbys)))
                renewed_at = loop.time()
            except DeposedError:
                raise
            except RunError:
                if loop.time() - renewed_at > self._lead_s:
                    raise  # a standby may lead by now
            await asyncio.sleep(self._lead_s / LOOKS)

    def _deposed(self) -> DeposedError:
        lead = self._store.lead()
        assert lead is not None, "we led once, and leads are renewed or taken over"
        return deposed(lead.epoch, address=lead.address)

    async def end(self, *, complete: bool) -> None:
        await in_thread(self._end, complete=complete)

    def _end(self, *, complete: bool) -> None:
        try:
            if complete:
                for address in self._store.standbys():
                    self._store.tell(address, Word.LEAVE)
            self._store.end_lead(self._journal.epoch)
        except RunError as error:
            self._emit(Warned(text=str(error)))
