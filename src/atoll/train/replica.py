"""The local copy of the model between two inner steps: what the agent may ask of it then.

    Snapshot, Merge     weights to and from the shared vectors (see `exchanged`)
    Save, Load          the moments of the inner optimizer to and from a file (see `optim`)

It serves our own loop (see `trainer`) and those of others (see `attach`) alike.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Protocol

from torch import nn

from atoll.clock import monotonic_s
from atoll.errors import ConnectionLost, RunError
from atoll.model.layout import Layout
from atoll.train.channel import (
    Answer,
    Channel,
    Declinable,
    Declined,
    Load,
    Loaded,
    Merge,
    Merged,
    Save,
    Saved,
    Snapped,
    Snapshot,
)
from atoll.train.exchanged import merge_, spread_, start_snapshot
from atoll.train.moments import Tensors
from atoll.train.optim import (
    InnerOptimizer,
    copy_moments,
    give_moments_,
    read_moments_for,
    save_optimizer,
)
from atoll.train.parallel import Ranks
from atoll.train.ranks import Followers
from atoll.train.shared import SharedVectors


class Inner(Protocol):
    """What takes the inner steps."""

    steps_since_fresh: int  # how many the state of the optimizer has seen

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> "InnerOptimizer | None":
        """None: its moments are kept by somebody else."""
        ...

    @property
    def ranks(self) -> Ranks: ...


class ReplicaServer:
    """With several devices, each rank has its part; what one is told, `followers` are told too.

    `vectors` None: they are on another machine, whose ranks hold copies of the same parts.
    """

    def __init__(
        self,
        inner: Inner,
        layout: Layout,
        vectors: SharedVectors | None,
        channel: Channel,
        followers: Followers,
    ) -> None:
        self.inner = inner
        self._layout = layout
        self._vectors = vectors
        self._channel = channel
        self._followers = followers
        self._saving: Thread | None = None
        self._answering: Thread | None = None

    def obey(self, command: Snapshot | Merge | Save | Load) -> None:
        """Carry out a command between two steps, and answer it, then or when it is done."""
        match command:
            case Snapshot():
                self._snapshot(command)
            case Merge():
                self._merge(command)
            case Save(path=path):
                self._save(Path(path))
            case Load(path=path):
                self._finish_saving()
                self._channel.send(attempt(lambda: self._load(Path(path)), "load", then=Loaded()))

    def _merge(self, merge: Merge) -> None:
        began_at = monotonic_s()
        self._followers.tell(merge)
        model, layout = self.inner.model, self._layout
        if self._vectors is not None:
            merge_(model, layout, vectors=self._vectors, merge=merge)
        spread_(model, layout, ranks=self.inner.ranks, start=merge.start, stop=merge.stop)
        self._followers.wait_for(Merged)
        self._channel.send(Merged(seconds=monotonic_s() - began_at))

    def _snapshot(self, snapshot: Snapshot) -> None:
        if self._vectors is None:
            self._channel.send(Snapped(seconds=0.0))
            return
        began_at = monotonic_s()
        self._followers.tell(snapshot)
        finish = start_snapshot(
            self.inner.model, self._layout, vectors=self._vectors, snapshot=snapshot
        )
        snapped = Snapped(seconds=monotonic_s() - began_at)
        if finish is None and not self._followers:
            self._channel.send(snapped)
            return

        before = self._answering  # answers come in the order of the commands

        def answer() -> None:
            if finish is not None:
                finish()
            self._followers.wait_for(Snapped)
            if before is not None:
                before.join()
            with suppress(ConnectionLost):
                self._channel.send(snapped)

        self._answering = Thread(target=answer, daemon=True)
        self._answering.start()

    def _save(self, path: Path) -> None:
        self._finish_saving()  # one at a time: each takes the memory of the moments once more
        if self.inner.optimizer is None:
            self._channel.send(Saved())  # there is no file, and a trainer that starts asks for none
            return
        if self.inner.ranks.is_copy:
            self._channel.send(Saved())
            return
        self._followers.tell(Save(path=str(path)))
        num_steps = self.inner.steps_since_fresh
        leads = self.inner.ranks.leads
        moments = copy_moments(self.inner.optimizer, model=self.inner.model, wanted=leads)
        if not leads:
            self._channel.send(Saved())  # it was asked for our part alone
            return

        def write() -> None:
            answer: Answer = Declined(command="save", reason="a bug", hint="see the trainer's log")
            try:
                answer = attempt(
                    lambda: save_optimizer(path, moments, num_steps=num_steps), "save", then=Saved()
                )
            finally:
                with suppress(ConnectionLost):
                    self._channel.send(answer)

        self._saving = Thread(target=write)
        self._saving.start()

    def _finish_saving(self) -> None:
        if self._saving is not None:
            self._saving.join()

    def _load(self, path: Path) -> None:
        inner = self.inner
        if inner.optimizer is None:
            raise RunError(
                "the optimizer of this loop is not one whose moments atoll knows",
                hint="let fetch_moments be false",
            )
        # Rank 0 reads, and says whether there is anything to be had, before it calls the others.
        tensors: Tensors = {}
        num_steps = 0
        if self.inner.ranks.leads:
            tensors, num_steps = read_moments_for(path, inner.optimizer, model=inner.model)
        self._followers.tell(Load(path=str(path)))
        num_steps = self.inner.ranks.agree(num_steps)
        give_moments_(inner.optimizer, tensors, num_steps=num_steps, model=inner.model)
        inner.steps_since_fresh = num_steps
        self._followers.wait_for(Loaded)


def attempt(do: Callable[[], None], command: Declinable, *, then: Answer) -> Answer:
    """Return `then` when it is done, or why it was not possible."""
    try:
        do()
    except RunError as error:
        return Declined(command=command, reason=str(error), hint=error.hint)
    return then
