"""What is written for systemd and launchd, word by word."""

import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.host.scene import CONFIG
from tests.unit.peer.cast import Enrolled

from atoll import system
from atoll.cli.places import peer_directory
from atoll.cli.service import install, launchd_service, systemd_service, uninstall
from atoll.config import PeerConfig, load_peer_config
from atoll.errors import ConfigError

COMMAND = (sys.executable, "-m", "atoll.cli.main", "join", "--dir", "/tmp/100% a dir;")
UNIT = f"""\
[Unit]
Description=atoll: this machine trains in the run reef-7

[Service]
ExecStart={sys.executable} -m atoll.cli.main join --dir "/tmp/100%% a dir;"
# It leaves the run in order. The trainer is its own child, which it ends by itself.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=30
# 0: the run is complete. 2: only a person can mend it.
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=30

[Install]
WantedBy=default.target
"""


def test_a_unit_of_systemd(tmp_path):
    service = systemd_service("reef-7", COMMAND, folder=tmp_path)
    assert service.path == tmp_path / "atoll-reef-7.service"
    assert service.content == UNIT
    assert service.start.endswith("systemctl --user enable --now atoll-reef-7.service")
    service.path.write_text(service.content)
    if analyze := shutil.which("systemd-analyze"):
        checked = subprocess.run(
            [analyze, "verify", "--user", "--man=no", service.path],
            capture_output=True,
            text=True,
            check=False,
            env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        )
        assert service.path.name not in checked.stdout + checked.stderr


def test_an_agent_of_launchd(tmp_path):
    service = launchd_service("reef-7", COMMAND, folder=tmp_path, log=tmp_path / "log")
    assert service.path == tmp_path / "org.atoll.reef-7.plist"
    assert plistlib.loads(service.content.encode()) == {
        "Label": "org.atoll.reef-7",
        "ProgramArguments": list(COMMAND),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ProcessType": "Background",
        "StandardOutPath": str(tmp_path / "log"),
        "StandardErrorPath": str(tmp_path / "log"),
    }


@pytest.mark.skipif(system.service_manager() != "systemd", reason="of Linux")
def test_a_service_is_written_and_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "peer 2"
    home.mkdir()
    Enrolled(home, CONFIG)
    peer = PeerConfig(directory=str(home), hours="22-7", threads=2)
    with pytest.raises(ConfigError, match="no service is installed"):
        uninstall(home)

    install(peer)
    unit = tmp_path / "config" / "systemd" / "user" / f"atoll-{CONFIG.name}-peer-2.service"
    assert f'--config "{home}/peer.toml" --dir "{home}"' in unit.read_text()
    assert load_peer_config(home / "peer.toml") == peer
    assert str(unit) in capsys.readouterr().out.replace("\n", "")

    uninstall(home)
    assert not unit.exists()
    assert Path(home / "run.json").exists()


@pytest.mark.skipif(system.service_manager() != "systemd", reason="of Linux")
def test_the_peer_without_a_directory_of_its_own_has_the_name_of_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    home = peer_directory("ab" * 32)
    home.mkdir(parents=True)
    Enrolled(home, CONFIG)
    install(PeerConfig(directory=str(home)))
    units = (tmp_path / "config" / "systemd" / "user").iterdir()
    assert [unit.name for unit in units] == [f"atoll-{CONFIG.name}.service"]
