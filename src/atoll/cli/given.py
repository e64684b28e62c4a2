"""What a machine is to give, looked at before anybody is dialled: no invite is used up for nothing.

python -m atoll.cli.given DEVICE GPU_MEMORY     exit code 0, or one message and the code of errors

What a GPU can give only torch knows. A process of its own asks it: an agent has no use for torch.
"""

import subprocess
import sys

import typer

from atoll import system
from atoll.config import PeerConfig
from atoll.errors import ConfigError
from atoll.net.site import split_site
from atoll.peer.hours import Hours
from atoll.train.machines import ipv4_of


def check(peer: PeerConfig) -> None:
    """Find out whether a peer could keep what its owner has asked for.

    Raises:
        ConfigError: these hours, or machines, mean nothing.
        typer.Exit: the GPU is none; that has been said.
    """
    Hours.parse(peer.hours)
    if peer.machines > 1:
        address, _ = split_site(peer.site)
        ipv4_of(address)
    elif peer.site:
        raise ConfigError(
            f"--site {peer.site} is for the other machines of a peer, and this one has none",
            hint="with --machines 2, this one and another are one peer",
        )
    check_gpu(peer)


def check_gpu(peer: PeerConfig) -> None:
    """Find out whether the GPU that was named is here and takes its limit; at once, if none was.

    Raises:
        typer.Exit: it is not; that has been said.
    """
    if peer.device in ("auto", "cpu") and not peer.gpu_memory:
        return
    command = [sys.executable, "-P", "-m", "atoll.cli.given", peer.device, peer.gpu_memory]
    code = subprocess.run(command, check=False, **system.apart()).returncode
    if code != 0:
        raise typer.Exit(code)


def _ask_torch(device: str, gpu_memory: str) -> int:
    from atoll.cli.commands import report
    from atoll.train.device import limit_memory, pick_device

    try:
        limit_memory(pick_device(device), gpu_memory)
    except ConfigError as error:
        report(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_ask_torch(*sys.argv[1:]))
