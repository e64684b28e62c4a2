"""What the machines of a peer say to each other, and the bytes of it.

    first machine: the agent               another one: `atoll assist`
      | <----------- Came(name, version) -- |
      | -- Offer(manifest) ---------------> | <- Wants, or Has     the dataset: it is there already
      | -- Part, Part, ... ---------------> | <- Has
      | -- Setup -------------------------> |                      it starts its ranks
      | -- what rank 0 says --------------> | <- what its first rank says      (see `channel`)
      | -- Stop --------------------------> | <- Idle              its ranks are gone
      | <- Here -- every HERE_S -- Here --> |                      whatever goes on

Frames are those of `channel`. The line is TLS with the keys of the site (net/site.py): who does not
have them says nothing that is heard. A machine that is silent for `SILENT_S` is gone.
"""

import asyncio
from typing import Final, TypeAlias

from msgspec import Struct, msgpack

from atoll.train.channel import FromTrainer, ToTrainer, frame, receive_by
from atoll.units import MIB

HERE_S: Final = 5.0
SILENT_S: Final = 30.0
PART_BYTES: Final = MIB  # of a dataset, in one message
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Here(Struct, frozen=True, kw_only=True, tag_field="t", tag="here"):
    """Nothing but that: I am here."""


# --- first machine to another --------------------------------------------------------------------


class Refused(Struct, frozen=True, kw_only=True, tag_field="t", tag="refused"):
    """That machine cannot be one of this peer."""

    reason: str


class Offer(Struct, frozen=True, kw_only=True, tag_field="t", tag="offer"):
    """The dataset that is trained on."""

    manifest: bytes


class Part(Struct, frozen=True, kw_only=True, tag_field="t", tag="part"):
    """The next bytes of the dataset: its blobs one after the other, as the manifest names them."""

    data: bytes


class Stop(Struct, frozen=True, kw_only=True, tag_field="t", tag="stop"):
    """The trainer is gone: end its ranks there."""


# --- another machine to the first ----------------------------------------------------------------


class Came(Struct, frozen=True, kw_only=True, tag_field="t", tag="came"):
    name: str
    version: str  # of atoll


class Wants(Struct, frozen=True, kw_only=True, tag_field="t", tag="wants"):
    """The dataset is not there: send it."""


class Has(Struct, frozen=True, kw_only=True, tag_field="t", tag="has"):
    """The dataset is there, whole and checked."""


class Idle(Struct, frozen=True, kw_only=True, tag_field="t", tag="idle"):
    """No rank is there any more."""


ToMachine: TypeAlias = Here | Refused | Offer | Part | Stop | ToTrainer
FromMachine: TypeAlias = Here | Came | Wants | Has | Idle | FromTrainer

_to_machine: msgpack.Decoder[ToMachine] = msgpack.Decoder(ToMachine)
_from_machine: msgpack.Decoder[FromMachine] = msgpack.Decoder(FromMachine)


async def heard_from_machine(reader: asyncio.StreamReader) -> FromMachine:
    """Return the next message of another machine.

    Raises:
        ConnectionLost: there will be none.
        ProtocolError: it is none of these.
        TimeoutError: it has been silent for too long.
    """
    async with asyncio.timeout(SILENT_S):
        return await receive_by(reader, _from_machine, other="that machine")


async def heard_from_first(reader: asyncio.StreamReader) -> ToMachine:
    """Return the next message of the first machine; raises as above."""
    async with asyncio.timeout(SILENT_S):
        return await receive_by(reader, _to_machine, other="the first machine")


async def say_here(writer: asyncio.StreamWriter) -> None:
    """Say that we are here, again and again."""
    while True:
        writer.write(frame(Here()))
        await asyncio.sleep(HERE_S)
