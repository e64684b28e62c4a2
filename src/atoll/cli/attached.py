"""The agent of a training loop that is not ours; `atoll.attach` starts it.

python -m atoll.cli.attached PEER_CONFIG INVITE     JSON, and a line of text, or nothing
standard input: a socket to the loop
"""

import asyncio
import sys
from contextlib import suppress

import msgspec

from atoll import system
from atoll.cli.commands import report
from atoll.cli.life import take_part
from atoll.config import PeerConfig
from atoll.errors import AtollError, ConfigError
from atoll.train.attached import AttachedLoop


async def serve(invite: str, peer: PeerConfig) -> None:
    """Take part for as long as the loop lives, or until the run is complete."""
    if peer.machines > 1:
        raise ConfigError(
            "machines: a loop of your own has its ranks on this machine",
            hint="with several machines, let `atoll join` train",
        )
    loop = AttachedLoop(system.line_from_parent())
    taking_part = asyncio.create_task(take_part(invite, peer, start_trainer=loop.start))
    gone = asyncio.create_task(loop.gone.wait())
    try:
        await asyncio.wait((taking_part, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        taking_part.cancel()
        with suppress(asyncio.CancelledError):
            await taking_part


def main() -> int:
    system.end_as_with_ctrl_c()
    try:
        asyncio.run(serve(sys.argv[2], msgspec.json.decode(sys.argv[1], type=PeerConfig)))
    except AtollError as error:
        report(error)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        pass  # it has left
    return 0


if __name__ == "__main__":
    sys.exit(main())
