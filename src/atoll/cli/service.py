"""A peer as a service of its user, which starts with the machine and again when it fails.

    atoll join INVITE --install --> member, peer.toml in its directory, and a file for the system:
    systemd (Linux)     ~/.config/systemd/user/atoll-RUN.service
    launchd (macOS)     ~/Library/LaunchAgents/org.atoll.RUN.plist

No secret is in it: the invite is used up when the file is written.
"""

import os
import plistlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import system
from atoll.cli.places import peer_directories
from atoll.cli.show import console
from atoll.config import PeerConfig, template
from atoll.durable import disk_errors
from atoll.errors import ConfigError
from atoll.peer.home import read_run_file

CONFIG_FILE = "peer.toml"
RESTART_S = 30


@dataclass(frozen=True, slots=True)
class Service:
    """A file for the system's service manager, and what to type then."""

    path: Path
    content: str
    start: str
    stop: str
    look: str
    remove: str
    note: str


def install(peer: PeerConfig) -> None:
    """Write down what this machine gives, and the service that gives it; say what to do with it.

    Raises:
        ConfigError: this system has no service manager that we know.
        RunError: the peer is no member of a run, or the disk does not take it.
    """
    directory = Path(peer.directory)
    service = _service_of(directory)
    config = directory / CONFIG_FILE
    with disk_errors(config):
        config.write_text(template(peer), encoding="utf-8")
    with disk_errors(service.path):
        service.path.parent.mkdir(parents=True, exist_ok=True)
        service.path.write_text(service.content, encoding="utf-8")
    console.say(f"written: {service.path}")
    console.say(f"         {config}: what this machine gives")
    for what, command in (
        ("start it, now and with the machine", service.start),
        ("stop it", service.stop),
        ("see what it does", service.look),
        ("remove it", f"atoll join --dir {directory} --uninstall"),
    ):
        console.say(f"\n{what}:\n    {command}")
    console.say(f"\n{service.note}")


def uninstall(directory: Path) -> None:
    """Remove the service of the peer that lives there; its directory stays.

    Raises:
        ConfigError: there is none.
    """
    service = _service_of(directory)
    if not service.path.exists():
        raise ConfigError(f"no service is installed: {service.path} is not there")
    with disk_errors(service.path):
        service.path.unlink()
    console.say(f"removed: {service.path}")
    console.say(f"\nif it still runs:\n    {service.remove}")


def _service_of(directory: Path) -> Service:
    name = _name_of(directory)
    command = [sys.executable, "-P", "-m", "atoll.cli.main", "join"]
    command += ["--config", str(directory / CONFIG_FILE), "--dir", str(directory)]
    match system.service_manager():
        case "systemd":
            base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
            return systemd_service(name, command, folder=Path(base) / "systemd" / "user")
        case "launchd":
            folder = Path.home() / "Library" / "LaunchAgents"
            return launchd_service(name, command, folder=folder, log=directory / "service.log")
        case _:
            raise ConfigError(
                "this system has neither systemd nor launchd",
                hint=f"let its own scheduler start this: {' '.join(command)}",
            )


def _name_of(directory: Path) -> str:
    """Return what a peer's service is called: after its run, and its directory if it chose one."""
    run = read_run_file(directory).config.name
    if directory.resolve() in [path.resolve() for path in peer_directories()]:
        return run
    return f"{run}-{re.sub(r'[^A-Za-z0-9_.-]', '-', directory.name)}"


# --- systemd -------------------------------------------------------------------------------------


def systemd_service(run: str, command: Sequence[str], *, folder: Path) -> Service:
    """Return a unit of the user (systemd.service(5))."""
    unit = f"atoll-{run}.service"
    content = f"""\
[Unit]
Description=atoll: this machine trains in the run {run}

[Service]
ExecStart={" ".join(map(_quoted, command))}
# It leaves the run in order. The trainer is its own child, which it ends by itself.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=30
# 0: the run is complete. 2: only a person can mend it.
Restart=on-failure
RestartPreventExitStatus=2
RestartSec={RESTART_S}

[Install]
WantedBy=default.target
"""
    return Service(
        path=folder / unit,
        content=content,
        start=f"systemctl --user daemon-reload && systemctl --user enable --now {unit}",
        stop=f"systemctl --user disable --now {unit}",
        look=f"journalctl --user --follow --unit {unit}",
        remove=f"systemctl --user stop {unit}; systemctl --user daemon-reload",
        note="It runs while you are logged in; always, after: loginctl enable-linger",
    )


def _quoted(word: str) -> str:
    """Return a word of a command line as a unit has it (systemd.service(5), "Command lines")."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(letter in word for letter in " \t'\"\\;") else escaped


# --- launchd -------------------------------------------------------------------------------------


def launchd_service(run: str, command: Sequence[str], *, folder: Path, log: Path) -> Service:
    """Return an agent of the user (launchd.plist(5))."""
    label = f"org.atoll.{run}"
    path = folder / f"{label}.plist"
    described = {
        "Label": label,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ProcessType": "Background",
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    return Service(
        path=path,
        content=plistlib.dumps(described, sort_keys=False).decode(),
        start=f"launchctl bootstrap gui/$(id -u) {path}",
        stop=f"launchctl bootout gui/$(id -u)/{label}",
        look=f"tail -f {log}",
        remove=f"launchctl bootout gui/$(id -u)/{label}",
        note="It runs while you are logged in. A Mac that sleeps does not train.",
    )
