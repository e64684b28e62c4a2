"""The hosts of the run that a peer knows: where to look for the leader, and whom not to follow.

A peer follows leaders of ever higher epochs. It remembers the newest on its disk, so one that was
deposed finds no followers, not even a peer that was started again. A leader names the hosts that
stand by now. Others are not forgotten at once: one that is being started again may lead next.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from atoll.errors import ConnectionLost
from atoll.ids import PeerId
from atoll.net import wire
from atoll.net.records import led

Place = tuple[str, int]  # host name, port
KNOWN = 6  # hosts besides the first: a run has one or two, and they may have moved


@dataclass(slots=True, kw_only=True)
class Hosts:
    peer: PeerId  # all hosts of a run have one key
    public_key: bytes  # of the run's authority, which signs the journal
    first: Place  # where the host was when we joined
    others: tuple[Place, ...] = ()
    led: wire.Commit | None = None  # the record of the newest leader that we have followed
    roams: bool = True  # False: the host's own member, which knows no other host
    remember: Callable[[wire.Leader], None] = lambda _: None
    _index: int = 0

    @property
    def place(self) -> Place:
        """Where to look for the leader now."""
        return self._places[self._index % len(self._places)]

    @property
    def _places(self) -> tuple[Place, ...]:
        return tuple(dict.fromkeys((self.first, *(self.others if self.roams else ()))))

    @property
    def is_tried(self) -> bool:
        """Return whether all have been tried since we came back to the first of them."""
        return self._index % len(self._places) == 0

    def look_elsewhere(self) -> None:
        self._index += 1

    def follow(self, message: wire.Leader) -> None:
        """Take over who leads, and who stands by.

        Raises:
            ConnectionLost: we have followed a newer leader, or another one of the same epoch.
            ProtocolError: no host of this run signed it.
        """
        news = led(message.led, public_key=self.public_key)
        host, port = self.place
        if self.led is not None and message.led != self.led:
            known = led(self.led, public_key=self.public_key)
            if news.epoch <= known.epoch:
                raise ConnectionLost(
                    f"the host at {host}:{port} leads in epoch {news.epoch}, but this peer has "
                    f"followed {known.address} in epoch {known.epoch}: it looks for that one",
                    hint="stop the host that is not the newest leader",
                )
        self.led = message.led
        here = self.place
        named = tuple((a.host, a.port) for a in message.hosts)
        self.others = tuple(dict.fromkeys((here, *named, *self.others)))[:KNOWN]
        self._index = self._places.index(here)
        hosts = tuple(wire.HostAddress(host=host, port=port) for host, port in self.others)
        self.remember(replace(message, hosts=hosts))

    def hear_of(self, hosts: Iterable[wire.HostAddress]) -> None:
        """Look at these places as well: a host that does not lead has named them."""
        named = tuple((a.host, a.port) for a in hosts)
        self.others = tuple(dict.fromkeys((*self.others, *named)))[-KNOWN:]
