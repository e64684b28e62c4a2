"""The memory of one peer: what its agent holds, what its trainer needs, and what would fit.

    host memory     the agent's vectors, blobs and buffers; the trainer's copies of the moments
    device memory   weights, optimizer, one micro-batch (model/memory.py)

A laptop's device uses the memory of the machine, so there both have to fit into one.
"""

from typing import Final

from msgspec import Struct, structs

from atoll.config import RunConfig
from atoll.exchange.codec import CODECS
from atoll.forecast.fleet import GroupConfig, micro_batch_of
from atoll.model.accounting import FP32_BYTES
from atoll.model.layout import layout_of
from atoll.model.memory import (
    CPU_CHUNK_LOGITS,
    GPU_CHUNK_LOGITS,
    TrainerBytes,
    Training,
    largest,
    moment_bytes,
    trainer_bytes,
)
from atoll.units import GIB, MIB

# Resident sets of the processes with next to no model (docs/benchmarks/planner.md): Python, numpy,
# numba's kernels and an agent; the same with torch.
AGENT_PROCESS_BYTES: Final = 190 * MIB
TRAINER_PROCESS_BYTES: Final = 325 * MIB
BUFFER_BYTES: Final = 256 * MIB  # that an agent keeps for later, at most (exchange/buffers.py)
WORKING_SLICES: Final = 6  # in fp64 at once: two are encoded, some are reduced
CUDA_BYTES: Final = GIB  # context, libraries' workspaces, and what the allocator cannot use


class AgentBytes(Struct, frozen=True, kw_only=True):
    vectors: int  # global, momentum, snapshot
    residuals: int  # kept and pending
    contribution: int  # encoded, until the commit
    reduction: int  # slices of the others, and the updates formed of them
    working: int  # slices in fp64, and buffers
    process: int

    @property
    def total(self) -> int:
        return sum(structs.astuple(self))


class PeerMemory(Struct, frozen=True, kw_only=True):
    """What a peer needs, and has; `device_has` is None where it is the machine's own memory."""

    micro_batch: int
    agent: AgentBytes
    trainer: TrainerBytes  # on each device
    trainer_host: int
    device: int  # what each device has to hold
    host_has: int
    device_has: int | None

    @property
    def host(self) -> int:
        """All that the machine's own memory has to hold."""
        shared = self.device if self.device_has is None else 0
        return self.agent.total + self.trainer_host + shared

    @property
    def fits_device(self) -> bool:
        return self.device_has is None or self.device <= self.device_has

    @property
    def fits_host(self) -> bool:
        return self.host <= self.host_has

    @property
    def fits(self) -> bool:
        return self.fits_device and self.fits_host


def agent_bytes(
    config: RunConfig, *, contribution: int, taken: float, formed: float, slice_values: int
) -> AgentBytes:
    """Return what an agent holds in a round in which it takes in, and forms, so many bytes.

    One without a contribution, the host's built-in one, has no trainer, and so no snapshot.
    """
    vector = FP32_BYTES * layout_of(config).num_values
    trains = contribution > 0
    keeps_residual = trains and CODECS[config.sync.codec].FEEDBACK is not None
    blobs = contribution + taken + formed
    return AgentBytes(
        vectors=(3 if trains else 2) * vector,
        residuals=2 * vector if keeps_residual else 0,
        contribution=contribution,
        reduction=round(taken + formed),
        working=round(min(blobs, BUFFER_BYTES)) + 8 * WORKING_SLICES * slice_values,
        process=AGENT_PROCESS_BYTES,
    )


def peer_memory(config: RunConfig, group: GroupConfig, agent: AgentBytes) -> PeerMemory:
    """Return the memory of a peer with the largest micro-batch that fits, or with the given one."""
    most = micro_batch_of(group, config.inner.batch_sequences)
    if group.micro_batch:
        return _with(config, group, agent, most)
    fits = largest(most, fits=lambda n: _with(config, group, agent, n).fits)
    return _with(config, group, agent, max(1, fits))  # 1 is what is shown if nothing fits


def _trainer_host_bytes(config: RunConfig, group: GroupConfig) -> int:
    """Return what the trainer holds beside its devices; on one machine, all ranks together.

    While the moments are written to disk, they are there once more.
    """
    return moment_bytes(config) + group.devices * TRAINER_PROCESS_BYTES


def training_of(group: GroupConfig, micro_batch: int) -> Training:
    """Return how a peer of the group trains."""
    bf16 = group.hardware.computes_in_bf16
    chunk = GPU_CHUNK_LOGITS if bf16 else CPU_CHUNK_LOGITS
    return Training(
        micro_batch,
        bf16,
        group.devices,
        group.recomputes,
        group.machines,
        chunk_logits=chunk,
        fp8=group.precision == "fp8",
    )


def _with(config: RunConfig, group: GroupConfig, agent: AgentBytes, micro_batch: int) -> PeerMemory:
    hardware = group.hardware
    how = training_of(group, micro_batch)
    trainer = trainer_bytes(config, how)
    reserved = 0 if hardware.memory_bytes is None else CUDA_BYTES
    return PeerMemory(
        micro_batch=micro_batch,
        agent=agent,
        trainer_host=_trainer_host_bytes(config, group),
        trainer=trainer,
        device=trainer.total + reserved,
        host_has=round(group.memory_gib * GIB),
        device_has=hardware.memory_bytes,
    )
