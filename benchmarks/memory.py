"""The memory of one peer as `atoll plan` predicts it, and as a real one takes it.

    python benchmarks/memory.py [--models tiny,small]     one line of JSON for each model

A host and one peer on this machine, a few rounds of a few steps; resident sets at their peaks
(`VmHWM`), of the agent and of its trainer. Pages that both map, the shared vectors, count in each
of them, and are predicted so.
"""

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from lab.usage import peak_bytes_of, tree
from msgspec import structs

from atoll.config import RunConfig, load_run_config, template
from atoll.forecast.fleet import FleetConfig, GroupConfig
from atoll.forecast.forecast import forecast
from atoll.model.accounting import FP32_BYTES
from atoll.model.presets import PRESETS

ROOT = Path(__file__).parents[1]
ROUNDS, INNER_STEPS, BATCH, SEQUENCE_LENGTH = 3, 2, 4, 256
RUN_S = 600.0
POLL_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="tiny,small,150m", help="presets, with commas between")
    for model in parser.parse_args().models.split(","):
        config = config_of(model)
        agent, trainer = measured(config)
        seen = forecast(config, fleet())
        memory = seen.groups[0].memory
        said = {
            "agent": memory.agent.total,
            # With the two vectors that it shares with the agent: they are in both resident sets.
            "trainer": memory.trainer_host + memory.device + 2 * FP32_BYTES * seen.num_values,
        }
        print(
            json.dumps(
                {
                    "model": model,
                    "agent_mb": round(agent / 1e6),
                    "agent_predicted_mb": round(said["agent"] / 1e6),
                    "agent_error": round(said["agent"] / agent - 1, 3),
                    "trainer_mb": round(trainer / 1e6),
                    "trainer_predicted_mb": round(said["trainer"] / 1e6),
                    "trainer_error": round(said["trainer"] / trainer - 1, 3),
                }
            ),
            flush=True,
        )


def config_of(model: str) -> RunConfig:
    """Return a short run of a preset on the demo's text."""
    config = load_run_config(ROOT / "configs" / "demo.toml")
    return structs.replace(
        config,
        model=structs.replace(PRESETS[model], vocab_size=max(4096, PRESETS[model].vocab_size)),
        data=structs.replace(config.data, sequence_length=SEQUENCE_LENGTH),
        inner=structs.replace(
            config.inner, batch_sequences=BATCH, warmup_steps=0, cooldown_steps=0
        ),
        sync=structs.replace(config.sync, rounds=ROUNDS, inner_steps=INNER_STEPS, min_peers=1),
    )


def fleet() -> FleetConfig:
    peer = GroupConfig(
        name="peer",
        device="laptop CPU",
        micro_batch=BATCH,
        memory_gib=16.0,
        up_mbps=1000.0,
        down_mbps=1000.0,
        reachable=True,
    )
    return FleetConfig(groups=(peer,))


def measured(config: RunConfig) -> tuple[int, int]:
    """Return the largest resident sets of an agent and its trainer, in bytes."""
    with TemporaryDirectory(prefix="atoll-memory-") as name:
        run, home = Path(name) / "run", Path(name) / "peer"
        run.mkdir()
        home.mkdir()
        (run / "run.toml").write_text(template(config), encoding="utf-8")
        host = start(home, "host", str(run), "--advertise", "127.0.0.1", "--no-web")
        try:
            wait_for(run / "invite.txt", host)
            invite = (run / "invite.txt").read_text(encoding="utf-8").strip()
            agent = start(home, "join", invite, "--dir", str(home))
            return watch(agent)
        finally:
            host.terminate()
            host.wait()


def start(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (home / f"{arguments[0]}.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "atoll.cli.main", *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    give_up_at = monotonic() + RUN_S
    while not path.exists():
        if process.poll() is not None or monotonic() > give_up_at:
            sys.exit(f"memory.py: the host does not come up: {process.args!r}")
        sleep(POLL_S)


def watch(agent: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return the peaks of an agent and of its trainer, when it has ended."""
    peaks: dict[int, int] = {agent.pid: 0}
    give_up_at = monotonic() + RUN_S
    while agent.poll() is None:
        if monotonic() > give_up_at:
            agent.kill()
            sys.exit("memory.py: the peer does not come to an end")
        for process in tree(agent.pid):
            with suppress(FileNotFoundError, ProcessLookupError):  # ended in the meantime
                peaks[process] = max(peaks.get(process, 0), peak_bytes_of(process))
        sleep(POLL_S)
    own = peaks.pop(agent.pid)
    return own, max(peaks.values())


if __name__ == "__main__":
    main()
