"""What a machine has, and whether that is enough to train: one finding for each thing looked at.

Each says what was found and, where it is not as it should be, what to do about it.
"""

import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from msgspec import Struct

from atoll import __version__
from atoll.cli.recipes import RECIPES, Peers, run_config
from atoll.clock import monotonic_s, wall_s
from atoll.config import PeerConfig, RunConfig, SourceConfig
from atoll.data.batches import Batch, Batches
from atoll.errors import AtollError, ConfigError
from atoll.forecast.memory import AGENT_PROCESS_BYTES, CUDA_BYTES
from atoll.model.accounting import FP32_BYTES, flops_per_token
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.memory import Training, largest_micro_batch, moment_bytes, trainer_bytes
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters
from atoll.net.enrol import Greeting
from atoll.peer.home import KEEP_ROUNDS
from atoll.train.device import WIDTH_FOR_BF16, computes_in_bf16, device_name, pick_device
from atoll.train.fit import USABLE
from atoll.train.inner import Computing, InnerLoop
from atoll.train.loss import CHUNK_LOGITS
from atoll.train.peak import peak_of
from atoll.units import format_bytes, format_count, format_seconds, plural

SPEED_S: Final = 3.0  # that the steps of the measurement take, at least
SKEW_S: Final = 30.0  # of a clock, that its owner should know of
AGENT_VECTORS: Final = 4  # global, momentum, snapshot, and an encoded contribution at most
# Of a parameter, on disk: three states (two are kept, one is being written), and the updates of the
# rounds that a peer may replay, a byte each in int8. Beside that are two files of moments.
DISK_BYTES: Final = 3 * 2 * FP32_BYTES + KEEP_ROUNDS

Level = Literal["good", "note", "bad"]


class Finding(Struct, frozen=True, kw_only=True):
    """`bad`: it keeps this machine from training. `advice` is what to do, if there is anything."""

    what: str
    level: Level
    found: str
    advice: str = ""


# --- the machine ---------------------------------------------------------------------------------


def of_versions() -> Finding:
    found = f"atoll {__version__}, Python {platform.python_version()}, torch {version('torch')}"
    return Finding(what="versions", level="good", found=f"{found}, {platform.system()}")


def of_device(peer: PeerConfig) -> tuple[Finding, torch.device | None]:
    """Return what is known of the device, and the device; None: what is wanted is not here."""
    try:
        device = pick_device(peer.device)
    except ConfigError as error:
        return Finding(what="device", level="bad", found=str(error), advice=error.hint), None
    name = device_name(device)
    if device.type != "cpu":
        kind = "bf16" if computes_in_bf16(device, width=WIDTH_FOR_BF16) else "fp32"
        return Finding(what="device", level="good", found=f"{name}, computes in {kind}"), device
    if peer.device != "cpu" and shutil.which("nvidia-smi"):
        advice = "install the CUDA build of torch: see https://pytorch.org/get-started"
        found = "CPU: there is an NVIDIA driver, but this torch cannot use it"
        return Finding(what="device", level="note", found=found, advice=advice), device
    kind = "bf16" if computes_in_bf16(device, width=WIDTH_FOR_BF16) else "fp32"
    found = f"{name}, {torch.get_num_threads()} threads, computes all but small models in {kind}"
    advice = "enough for small models; a GPU is ten to a thousand times as fast"
    return Finding(what="device", level="note", found=found, advice=advice), device


def of_disk(peer: PeerConfig, needed_bytes: int) -> Finding:
    """Say whether there is room for a run that needs so much."""
    folder = Path(peer.directory)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{format_bytes(free)} free in {folder}, {format_bytes(needed_bytes)} needed"
    if free >= needed_bytes:
        return Finding(what="disk", level="good", found=found)
    advice = "make room, or name another disk with --dir"
    return Finding(what="disk", level="bad", found=found, advice=advice)


# --- what it can join ----------------------------------------------------------------------------


class Fit(Struct, frozen=True, kw_only=True):
    """How a run fits on a device: samples at once; 0: not even one."""

    name: str
    parameters: int
    micro_batch: int
    device_bytes: int  # with one sample
    disk_bytes: int


def presets() -> dict[str, RunConfig]:
    """Return a run of each preset, smallest first."""
    source = SourceConfig(kind="preset", name="sotu")
    return {
        name: run_config(
            name=name, model=name, source=source, rounds=0, inner_steps=0, peers=Peers()
        )
        for name in RECIPES
    }


def fit_of(name: str, config: RunConfig, device: torch.device, *, room_bytes: int) -> Fit:
    """Return how the run fits beside its agent, where both use the same memory."""
    how = Training(
        1,
        computes_in_bf16(device, width=config.model.width),
        chunk_logits=CHUNK_LOGITS[device.type],
    )
    num_values = layout_of(config).num_values
    beside = CUDA_BYTES
    if device.type != "cuda":
        beside = AGENT_PROCESS_BYTES + AGENT_VECTORS * FP32_BYTES * num_values
    most = config.inner.batch_sequences
    room = max(0, round(USABLE * room_bytes) - beside)
    return Fit(
        name=name,
        parameters=num_parameters(config.model),
        micro_batch=largest_micro_batch(config, how, most=most, room_bytes=room),
        device_bytes=trainer_bytes(config, how).total + beside,
        disk_bytes=DISK_BYTES * num_values + 2 * moment_bytes(config),
    )


def of_memory(room_bytes: int | None) -> Finding:
    """Say how much memory a trainer can have; None: the system does not say."""
    if room_bytes is None:
        advice = "a run that is too large is noticed when it begins"
        found = "this system does not say how much is free"
        return Finding(what="memory", level="note", found=found, advice=advice)
    return Finding(what="memory", level="good", found=f"{format_bytes(room_bytes)} can be had")


def of_run(fit: Fit) -> Finding:
    """Say whether this machine can train in its run."""
    size = f"{fit.name}, {format_count(fit.parameters)} parameters"
    if fit.micro_batch:
        at_once = f"{plural(fit.micro_batch, 'sample')} at once"
        return Finding(what="this run", level="good", found=f"{size}: fits, {at_once}")
    found = f"{size}: takes {format_bytes(fit.device_bytes)}"
    advice = 'free some memory, set recompute = "layers" in --config, or use a larger machine'
    return Finding(what="this run", level="bad", found=found, advice=advice)


def of_presets(fits: list[Fit]) -> Finding:
    """Say which models this machine can train."""
    fitting = [fit for fit in fits if fit.micro_batch]
    if not fitting:
        least = min(fit.device_bytes for fit in fits)
        found = f"no model: the smallest takes {format_bytes(least)}"
        return Finding(what="can join", level="bad", found=found, advice="free some memory")
    found = ", ".join(f"{fit.name} ({format_count(fit.parameters)})" for fit in fitting)
    too_large = [fit for fit in fits if not fit.micro_batch]
    if not too_large:
        return Finding(what="can join", level="good", found=f"runs of {found}")
    next_one = too_large[0]
    advice = f"{next_one.name} would take {format_bytes(next_one.device_bytes)}"
    return Finding(what="can join", level="good", found=f"runs of {found}", advice=advice)


# --- speed ---------------------------------------------------------------------------------------


class Noise(Batches):
    """Samples that mean nothing: what a step takes does not depend on them."""

    def __init__(self, config: RunConfig) -> None:
        self._shape = config.data.sequence_length
        self._rng = np.random.default_rng(0)
        self._vocab_size = config.model.vocab_size

    def batch(self, start: int, stop: int) -> Batch:
        shape = (stop - start, self._shape + 1)
        tokens_BS = self._rng.integers(self._vocab_size, size=shape, dtype=np.int64)
        return Batch(tokens_BS[:, :-1], tokens_BS[:, 1:], np.zeros_like(tokens_BS[:, :-1]))


def of_speed(config: RunConfig, device: torch.device, *, micro_batch: int, cache: Path) -> Finding:
    """Take real inner steps of this run for some seconds, and say how fast they are."""
    model = Llama(config.model).to(device)
    loop = InnerLoop(model, Noise(config), config, how=Computing(micro_batch=micro_batch))
    batch = config.inner.batch_sequences
    loop.step([(0, batch)], step=0)  # the first one prepares what the others use
    began_at, seconds, num_tokens, steps = monotonic_s(), 0.0, 0, 0
    while steps == 0 or seconds < SPEED_S:
        steps += 1
        num_tokens += loop.step([(steps * batch, (steps + 1) * batch)], step=steps).num_tokens
        seconds = monotonic_s() - began_at
    rate, step_s = num_tokens / seconds, seconds / steps
    found = f"{format_count(rate)} tokens/s, {format_seconds(step_s)} for an inner step"
    found = f"{found} of {config.name}, {_utilisation(loop, rate, cache=cache)}"
    return Finding(what="speed", level="good", found=found)


def _utilisation(loop: InnerLoop, tokens_per_s: float, *, cache: Path) -> str:
    peak = peak_of(loop.device, bf16=loop.bf16, cache=cache)
    length = loop.config.data.sequence_length
    flops = tokens_per_s * flops_per_token(loop.config.model, sequence_length=length)
    how = "measured" if peak.measured else "data sheet"
    return f"{flops / peak.flops:.0%} of a peak of {peak.flops / 1e12:.2g} Tflop/s ({how})"


# --- the host ------------------------------------------------------------------------------------


def of_host(greeting: Greeting) -> Iterator[Finding]:
    """Yield what the answer of the host says."""
    yield Finding(
        what="host",
        level="good",
        found=f"{greeting.where} answers in {1000 * greeting.seconds:.0f} ms, and is the right one",
    )
    if greeting.now_s:
        yield of_clock(greeting.now_s - wall_s())
    if greeting.seen_host:
        yield of_reach(greeting.seen_host, is_own=is_own_address(greeting.seen_host))


def of_no_host(error: AtollError) -> Finding:
    advice = error.hint or "ask the operator whether the run is served"
    return Finding(what="host", level="bad", found=str(error), advice=advice)


def of_clock(ahead_s: float) -> Finding:
    """Say how far the host's clock is ahead of ours."""
    if abs(ahead_s) < SKEW_S:
        return Finding(what="clock", level="good", found=f"{abs(ahead_s):.1f} s from the host's")
    side = "behind" if ahead_s > 0 else "ahead of"
    found = f"{format_seconds(abs(ahead_s))} {side} the host's"
    advice = "let the system set it (NTP): log lines and --hours go by it"
    return Finding(what="clock", level="note", found=found, advice=advice)


def of_reach(seen_host: str, *, is_own: bool) -> Finding:
    """Say whether other peers can dial this machine."""
    if is_own:
        found = f"the host sees {seen_host}, which is this machine's own address"
        advice = "let your firewall accept atoll's port (--port), and it averages for others, too"
        return Finding(what="dialled", level="good", found=found, advice=advice)
    found = f"the host sees {seen_host}, the address of a router: others cannot dial this machine"
    advice = "nothing need be done: it dials; to be dialled, forward a port, --port and --advertise"
    return Finding(what="dialled", level="note", found=found, advice=advice)


def is_own_address(host: str) -> bool:
    """Return whether a socket of this machine can have this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as trying:
        try:
            trying.bind((host, 0))
        except OSError:
            return False
    return True


def preset_to_time(device: torch.device, fits: Mapping[str, Fit]) -> str | None:
    """Return which preset's steps take no more than some seconds here; None: none fits."""
    wanted = "tiny" if device.type == "cpu" else "150m"
    names = [name for name in PRESETS if name in fits and fits[name].micro_batch]
    return wanted if wanted in names else (names[-1] if names else None)
