"""atoll for training loops of other people: `replica = atoll.attach(model, optimizer)`.

    with atoll.attach(model, optimizer, invite="atoll1...") as replica:
        for batch in replica.batches():                 # samples that the run leases to this peer
            loss = ...                                  # forward, backward, clip
            optimizer.step()
            replica.step(loss=loss.item())              # here weights are exchanged

An agent, a process of its own, takes part in the run on the loop's behalf. The loop reports its
steps to it, and between two of them lets it copy the weights and merge in the new global ones:
`step` does all of that, and waits where the run says that training waits.

A loop may have data of its own, if the run allows it (`data.own`): then it calls
`replica.step(num_tokens, loss=...)`, and leases only count how much it has trained.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import torch
import torch.distributed as dist
from torch import nn

from atoll import system
from atoll.clock import monotonic_s
from atoll.config import PeerConfig, RunConfig
from atoll.data.batches import Batch, Batches
from atoll.data.shards import Dataset
from atoll.errors import AtollError, ConfigError, ConnectionLost, RunError
from atoll.model.flat import load_flat_
from atoll.model.hf import hf_name
from atoll.model.layout import layout_of
from atoll.model.shapes import parameter_specs
from atoll.train.channel import (
    Channel,
    Declined,
    Evaluate,
    Failed,
    Halt,
    Load,
    Merge,
    Quit,
    Save,
    Setup,
    Snapshot,
    Started,
    Stepped,
    Train,
    Trained,
)
from atoll.train.device import computes_in_bf16, device_name
from atoll.train.exchanged import let_gpu_reach
from atoll.train.inner import load_batch
from atoll.train.optim import InnerOptimizer
from atoll.train.parallel import ALONE, Ranks
from atoll.train.peak import cache_of, peak_at_start
from atoll.train.ranks import Followers
from atoll.train.replica import ReplicaServer
from atoll.train.shared import SharedVectors
from atoll.train.work import Span, cut_into_steps, num_samples

LEAVE_S: Final = 60.0  # for the agent to say goodbye, and to put the last state on its disk
THIS_MACHINE: Final = PeerConfig()


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    invite: str = "",
    peer: PeerConfig = THIS_MACHINE,
    names: Mapping[str, str] | None = None,
) -> "Replica":
    """Join a run with a model that is trained by the caller's own loop; return when it may begin.

    The model then has the run's global weights. It has to be of the run's architecture, with
    weights in fp32 (compute in bf16 by autocast). Its parameters are known by their names if these
    are atoll's or Hugging Face's; for others `names` says what atoll calls them.

    The moments of a `torch.optim.AdamW` are kept with the peer, and are there again when the loop
    is started again; those of other optimizers the loop has to keep by itself.

    `invite` is the line that the host printed; without it, the peer that lives in `peer.directory`
    goes on.

    Raises:
        ConfigError: the model is not that of the run, or this process is one of several ranks.
        RunError: the agent has ended; it has printed why.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        raise ConfigError(
            "a loop of several ranks cannot be attached yet",
            hint="attach one process, or train with `atoll join --devices N`",
        )
    agent, channel = _start_agent(invite, peer)
    try:
        setup = channel.receive()
        assert isinstance(setup, Setup), "an agent begins with Setup"
        inner = _Inner(setup.config, model, optimizer, names)
    except ConnectionLost as error:
        raise _ended(agent) from error
    except AtollError as error:
        with suppress(ConnectionLost):
            channel.send(Failed(reason=str(error), hint=error.hint, lasting=True))
        channel.close()
        agent.wait()
        raise
    return Replica(setup, inner, channel, agent)


class _Inner:
    """What the agent has to know of the loop: see `replica.Inner`."""

    ranks: Ranks = ALONE

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        names: Mapping[str, str] | None,
    ) -> None:
        self.model = _Renamed(model, names or _names_of(model, config))
        self.steps_since_fresh = 0
        is_known = isinstance(optimizer, torch.optim.AdamW) and config.inner.optimizer == "adamw"
        self.optimizer: InnerOptimizer | None = optimizer if is_known else None
        _require_same(self.model, config)


class _Renamed(nn.Module):
    """A model with its parameters under atoll's names."""

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        self._theirs = (model,)  # in a tuple: it is no part of this module
        self._names = names

    def named_parameters(self, *how: Any, **named: Any) -> Iterator[tuple[str, nn.Parameter]]:
        (model,) = self._theirs
        for name, parameter in model.named_parameters(*how, **named):
            yield self._names.get(name, name), parameter


@dataclass(slots=True)
class _Work:
    """A `Train` of the agent's, as far as the loop has come with it."""

    order: Train
    spans: tuple[Span, ...]  # what is left of it
    num_steps: int = 0  # that are done

    def take(self, most: int) -> tuple[Span, ...]:
        """Return the spans of the next step, of so many samples at most; they stay until `note`."""
        return next(cut_into_steps(self.spans, batch_sequences=most), ())

    def note(self, samples: int) -> None:
        """Note that a step has trained on the first samples of what was left."""
        left = num_samples(self.spans) - samples
        spans: list[Span] = []
        for start, stop in reversed(self.spans):
            size = min(left, stop - start)
            left -= size
            if size:
                spans.insert(0, (stop - size, stop))
        self.spans = tuple(spans)
        self.num_steps += 1


def _started(setup: Setup, device: torch.device) -> Started:
    # How the loop computes is its own business: its yardstick is what the device is made for.
    bf16 = computes_in_bf16(device, width=setup.config.model.width)
    return Started(
        device=device_name(device),
        threads=torch.get_num_threads(),
        peak_flops=peak_at_start(device, bf16=bf16, cache=cache_of(setup.peer)),
    )


class Replica:
    """The caller's model as a part of the run. Made by `attach`; a context that leaves the run.

    `config` is the run's. `is_over`: the run is complete, or the agent was told to leave it; there
    are no more batches then, and `step` returns False.
    """

    def __init__(
        self, setup: Setup, inner: _Inner, channel: Channel, agent: "subprocess.Popen[bytes]"
    ) -> None:
        self.config = setup.config
        self.is_over = False
        self._inner = inner
        self._channel = channel
        self._agent = agent
        self._batches = Batches(Dataset.open(Path(setup.dataset)), seed=setup.config.seed)
        self._work: _Work | None = None
        self._dealt: tuple[Span, ...] = ()  # the batch that the loop has, if it is one of ours
        self._odd_tokens = 0  # of the loop's own data: what does not make a whole sample yet
        self._began_at = 0.0
        layout = layout_of(setup.config)
        vectors = SharedVectors.open(Path(setup.vectors), layout.num_values)
        device = next(inner.model.parameters()).device
        self._let_go = let_gpu_reach(vectors, device)
        nobody = Followers(setup, 1, on_end=lambda _: None)
        self._server = ReplicaServer(inner, layout, vectors, channel, nobody)
        load_flat_(inner.model, vectors.global_N, layout)
        channel.send(_started(setup, device))
        self._serve()

    @property
    def inner_step(self) -> int:
        """The number of the run's inner step that comes next: what a learning rate follows."""
        if self._work is None:
            return 0
        order = self._work.order
        return min(order.first_step + self._work.num_steps, order.last_step)

    def batches(self) -> Iterator[Batch]:
        """Yield the samples of each inner step that the run leases to this peer, until it is over.

        `tokens_BT`, `targets_BT` and `documents_BT` are numpy arrays: `inner.batch_sequences`
        samples, rarely fewer. Call `step` after each.

        Raises:
            RunError: the agent has ended. As in `step`.
        """
        while not self.is_over:
            assert self._work is not None
            self._dealt = self._work.take(self.config.inner.batch_sequences)
            yield load_batch(self._batches, self._dealt)
            if self._dealt:
                raise ConfigError("a batch without a step", hint="call replica.step after each")

    def step(self, num_tokens: int | None = None, *, loss: float, grad_norm: float = nan) -> bool:
        """Report an inner step that was just taken; exchange weights, if it is time to.

        `num_tokens` is how many tokens of its own data the loop has trained on; None: on the batch
        that `batches` has yielded. `loss` is its mean cross-entropy per token, in nats.

        Returns whether the run goes on. The weights may have changed meanwhile, in place.

        Raises:
            ConfigError: the run deals out its data, and this loop has other.
            RunError: the agent has ended, or the loss is not finite: the weights are spoilt.
        """
        if self.is_over:
            return False
        assert self._work is not None
        if not isfinite(loss):
            raise RunError(f"training has diverged at inner step {self.inner_step}: loss {loss}")
        samples, num_tokens = self._count(self._work, num_tokens)
        stepped = Stepped(
            step=self.inner_step,
            loss=loss,
            num_samples=samples,
            num_tokens=num_tokens,
            seconds=monotonic_s() - self._began_at,
            grad_norm=grad_norm if isfinite(grad_norm) else 0.0,
        )
        self._work.note(samples)
        self._inner.steps_since_fresh += 1
        try:
            self._channel.send(stepped)
        except ConnectionLost as error:
            raise _ended(self._agent) from error
        self._serve()
        return not self.is_over

    def close(self) -> None:
        """Leave the run; what this peer has not contributed by then is trained on by others."""
        self.is_over = True
        self._let_go()
        self._channel.close()
        try:
            self._agent.wait(timeout=LEAVE_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()

    def __enter__(self) -> "Replica":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _count(self, work: _Work, num_tokens: int | None) -> tuple[int, int]:
        """Return for how many samples and tokens the step counts."""
        length = self.config.data.sequence_length
        if num_tokens is None:
            samples, self._dealt = num_samples(self._dealt), ()
            if not samples:
                raise ConfigError("a step on no batch", hint="say how many tokens it had")
            return samples, samples * length
        if not self.config.data.own:
            raise ConfigError(
                "this run deals out its data: a step on other data cannot count",
                hint="take replica.batches(), or let the run have data.own = true",
            )
        samples, self._odd_tokens = divmod(self._odd_tokens + num_tokens, length)
        return min(samples, num_samples(work.spans)), num_tokens  # no more than we lease

    def _serve(self) -> None:
        """Do what the agent says until there is work, or all is over."""
        try:
            while not self.is_over:
                if self._work is not None and not self._work.spans:
                    self._channel.send(Trained())
                    self._work = None
                elif self._work is None or self._channel.has_news():
                    self._obey()
                else:
                    break
        except ConnectionLost as error:
            raise _ended(self._agent) from error
        self._began_at = monotonic_s()

    def _obey(self) -> None:
        match self._channel.receive():
            case Quit():
                self.is_over = True
            case Halt():
                if self._work is not None:
                    self._channel.send(Trained())
                self._work = None
            case Train() as order:
                self._work = _Work(order, order.spans)
            case Snapshot() | Merge() | Save() | Load() as command:
                self._server.obey(command)
            case Evaluate():  # how its model is called is the loop's own affair
                reason = "a loop of somebody else's takes steps, and no more"
                self._channel.send(Declined(command="evaluate", reason=reason, hint=""))


def _start_agent(invite: str, peer: PeerConfig) -> tuple["subprocess.Popen[bytes]", Channel]:
    ours, theirs = socket.socketpair()
    described = msgspec.json.encode(peer).decode()
    command = [sys.executable, "-P", "-m", "atoll.cli.attached", described, invite]
    with theirs:
        return system.start_with_line(command, theirs), Channel(ours)


def _ended(agent: "subprocess.Popen[bytes]") -> RunError:
    code = agent.wait()
    return RunError(f"the agent has ended with exit code {code}", hint="it has printed why")


def _names_of(model: nn.Module, config: RunConfig) -> dict[str, str]:
    """Return atoll's names for those of a model that has Hugging Face's, or atoll's own."""
    if any(name == hf_name("embedding.weight") for name, _ in model.named_parameters()):
        return {hf_name(spec.name): spec.name for spec in parameter_specs(config.model)}
    return {}


def _require_same(model: nn.Module, config: RunConfig) -> None:
    """Refuse a model that is not of the run's architecture.

    Raises:
        ConfigError: a parameter is missing, is one too many, or has another shape or dtype.
    """
    expected = {spec.name: spec.shape for spec in parameter_specs(config.model)}
    found = dict(model.named_parameters())
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"the run has no {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name].shape)} and not {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    problems += [
        f"{name} is {parameter.dtype} and not fp32"
        for name, parameter in found.items()
        if parameter.dtype != torch.float32
    ]
    if problems:
        raise ConfigError(
            f"not the model of run {config.name}: {min(problems)}"
            + (f", and {len(problems) - 1} more" if len(problems) > 1 else ""),
            hint="other names than atoll's and Hugging Face's need `names`",
        )
