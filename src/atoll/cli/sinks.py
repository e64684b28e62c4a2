"""Where curves can go: each is a reader of the events, in a process of its own.

A run knows nothing of them, and none can hold it up. Each needs its own package, an extra of ours.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from atoll.cli.measures import Point
from atoll.cli.show import console
from atoll.errors import ConfigError


class Sink(Protocol):
    def put(self, point: Point) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, place: str, name: str) -> None:
        place = place or "tensorboard"
        folder = Path(place) / name
        console.print(f"curves: {folder}; to look: tensorboard --logdir {place}", markup=False)
        self._writer = _package("tensorboardX", extra="tensorboard").SummaryWriter(str(folder))

    def put(self, point: Point) -> None:
        for tag, value in point.values.items():
            self._writer.add_scalar(tag, value, point.round, walltime=point.at)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `place`; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, place: str, name: str) -> None:
        self._run = _package("wandb", extra="wandb").init(project=place or "atoll", name=name)
        # Phases of one round may end after the next one has begun: a step of wandb's own may not
        # go back, an axis of ours may.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def put(self, point: Point) -> None:
        self._run.log({"round": point.round, "at": point.at, **point.values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project `place`, on this machine: `trackio show` shows it."""

    def __init__(self, place: str, name: str) -> None:
        self._run = _package("trackio", extra="trackio").init(
            project=place or "atoll", name=name, auto_log_cpu=False, auto_log_gpu=False
        )

    def put(self, point: Point) -> None:
        self._run.log({"round": point.round, "at": point.at, **point.values})

    def close(self) -> None:
        self._run.finish()


SINKS: Final[dict[str, Callable[[str, str], Sink]]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _package(name: str, *, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the package {name} is not installed", hint=f"pip install 'atoll[{extra}]'"
        ) from error
