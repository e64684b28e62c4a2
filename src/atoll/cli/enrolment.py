"""How this machine becomes a member of a run: an invite makes it one, and its directory says so."""

from pathlib import Path

from msgspec.structs import replace

from atoll.config import parse_canonical
from atoll.errors import ConfigError
from atoll.ids import digest_of
from atoll.net import wire
from atoll.net.enrol import enrol
from atoll.net.identity import Identity
from atoll.net.invite import Invite
from atoll.peer.home import RunFile, read_run_file, write_run_file


async def become_member(invite: Invite, directory: Path, *, name: str) -> None:
    """Become a member, or, if we are one, take over where the host is now.

    Raises:
        ConfigError: the directory belongs to another run.
        AtollError: the host turned us away, or cannot be reached.
    """
    if Identity.exists(directory) and (directory / "run.json").exists():
        if digest_of(Identity.load(directory).authority) != invite.authority:
            raise ConfigError(
                f"{directory} belongs to another run than the invite",
                hint="give this run a directory of its own with --dir",
            )
        known = read_run_file(directory)
        others = known.others + _others(invite)
        moved = replace(known, host=invite.host, port=invite.port, others=others)
        write_run_file(directory, moved)
        return
    # The key is on disk before the host hears of it: with the same key, the same invite is good
    # again if we are killed in between.
    identity = Identity.load(directory) if Identity.exists(directory) else Identity.create()
    identity.save(directory)
    enrolled = await enrol(invite, identity, name)
    identity.save(directory)
    run_file = RunFile(
        config=parse_canonical(enrolled.run_config),
        host=invite.host,
        port=invite.port,
        host_id=enrolled.host,
        built_in=enrolled.built_in,
        others=_others(invite),
    )
    write_run_file(directory, run_file)


def _others(invite: Invite) -> tuple[wire.HostAddress, ...]:
    return tuple(wire.HostAddress(host=host, port=port) for host, port in invite.others)
