"""How many samples a device takes at once: as many as fit, and the same ones after a restart.

    given by the user ----------------------------> that many, if they fit
    remembered from an earlier start -------------> that many: equal sums, equal bits
    neither --> memory that is free, formulas ----> the most that fit, but the whole batch at most

What does not fit at all is refused before anything is built, with what would make it fit. Where
the formulas were too kind and the device runs out, the next start takes half.
"""

from pathlib import Path
from typing import Final

import msgspec
import torch

from atoll.config import RunConfig
from atoll.durable import write_whole
from atoll.errors import ConfigError
from atoll.ids import digest_of
from atoll.model.memory import Training, largest_micro_batch, trainer_bytes, what_would_fit
from atoll.units import format_bytes

FILE: Final = "micro-batch.json"
USABLE: Final = 0.95  # of what is free: the allocator splits some of it into parts that nobody fits
MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")


def choose_micro_batch(
    config: RunConfig, how: Training, *, free_bytes: int | None, remembered: int = 0
) -> int:
    """Return the samples that pass through the model at once on each device.

    `how.micro_batch` is what the user wants; 0: as many as fit. Where nobody knows what is free, it
    is the whole batch.

    Raises:
        ConfigError: the memory is too small. The message says what would fit.
    """
    whole = -(-config.inner.batch_sequences // (how.devices * how.machines))
    if free_bytes is None:
        return how.micro_batch or remembered or whole
    room_bytes = round(USABLE * free_bytes)
    most = how.micro_batch or remembered or whole
    fits = largest_micro_batch(config, how, most=most, room_bytes=room_bytes)
    if fits == 0 or (how.micro_batch and fits < how.micro_batch):
        raise _does_not_fit(config, how, fits=fits, room_bytes=room_bytes)
    return fits


def _does_not_fit(config: RunConfig, how: Training, *, fits: int, room_bytes: int) -> ConfigError:
    wanted = how._replace(micro_batch=how.micro_batch or 1)
    needed = trainer_bytes(config, wanted).total
    if fits:
        hint = f"--micro-batch {fits} fits"
    elif way := what_would_fit(config, how, room_bytes=room_bytes):
        hint = f"it would fit with {way}"
    else:
        hint = "a run with a smaller model, or a larger machine"
    return ConfigError(
        f"this run does not fit: training takes {format_bytes(needed)} on each device with "
        f"{wanted.micro_batch} samples of {config.data.sequence_length} tokens at once, and "
        f"{format_bytes(room_bytes)} can be had",
        hint=hint,
    )


# --- what is free --------------------------------------------------------------------------------


def free_memory(
    device: torch.device, *, num_ranks: int = 1, limit_bytes: int | None = None
) -> int | None:
    """Return the bytes that a rank on this device can have by now; None: the system does not say.

    Ranks on a CPU share the machine's memory. `limit_bytes` is what the owner of a GPU gives of it.
    """
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return free_bytes if limit_bytes is None else min(free_bytes, limit_bytes)
    if limit_bytes is not None:
        return limit_bytes
    known = [free for free in (available_in(MEMINFO), left_in(CGROUP)) if free is not None]
    return min(known) // num_ranks if known else None


def available_in(meminfo: Path) -> int | None:
    """Return what Linux could give to processes without swapping (proc_meminfo(5))."""
    try:
        lines = meminfo.read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return None


def left_in(cgroup: Path) -> int | None:
    """Return what a container may still take: its limit, less what it cannot give back."""
    try:
        limit = int((cgroup / "memory.max").read_text("ascii"))  # "max", where there is none
        used = int((cgroup / "memory.current").read_text("ascii"))
        fields = (line.split() for line in (cgroup / "memory.stat").read_text("ascii").splitlines())
        idle = next(int(value) for name, value in fields if name == "inactive_file")
    except (OSError, ValueError, StopIteration):
        return None
    return max(0, limit - used + idle)


# --- what was chosen before ----------------------------------------------------------------------


class _Chosen(msgspec.Struct, frozen=True):
    setting: str
    micro_batch: int


class MicroBatchFile:
    """What a peer has chosen for a run on such devices; of another run, it counts as nothing.

    A trainer without a directory (empty) remembers nothing.
    """

    def __init__(self, directory: str, config: RunConfig, how: Training, *, device: str) -> None:
        self._path = Path(directory) / FILE if directory else None
        described = msgspec.json.encode((msgspec.to_builtins(config), how, device))
        self._setting = digest_of(described)

    def read(self) -> int:
        """Return what was chosen; 0: nothing yet."""
        if self._path is None:
            return 0
        try:
            chosen = msgspec.json.decode(self._path.read_bytes(), type=_Chosen)
        except (OSError, msgspec.MsgspecError):
            return 0  # it can be chosen anew at any time
        return chosen.micro_batch if chosen.setting == self._setting else 0

    def write(self, micro_batch: int) -> None:
        """Remember it.

        Raises:
            RunError: the disk does not take it.
        """
        if self._path is not None:
            chosen = _Chosen(self._setting, micro_batch)
            write_whole(self._path, msgspec.json.encode(chosen))

    def halve(self) -> int:
        """Choose half for the next start, as the device ran out; return that, or 0: it was one.

        Raises:
            RunError: the disk does not take it.
        """
        half = self.read() // 2
        if half:
            self.write(half)
        return half
