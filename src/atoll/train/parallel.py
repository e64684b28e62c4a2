"""One model over several devices of a peer: sharded, each step taken by all ranks together.

    rank 0   the first rows of the batch --> forward, backward --+--> gradients, summed up and
    rank 1   the next rows of the batch ---> forward, backward --+    dealt out --> step of our rows

FSDP2 (torch.distributed.fsdp.fully_shard; ZeRO-3, arXiv 1910.02054): every rank holds some rows of
each parameter, in fp32, with their gradients and moments. The rows of a layer are gathered from all
ranks just before it is computed, in bf16 if that is the precision.

Over several machines (HSDP): a model is sharded over the devices of a machine, and each machine has
a copy. So machine 0 holds all that the agent has to do with, layers are gathered within a machine,
and only gradients go between machines, once in a step, and what a merge has changed.

With one rank nothing here does anything: there is no process group.

Shapes: B samples of a batch, T tokens.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (  # dist.FileStore: not exported for mypy
    FileStore,
    Store,
    TCPStore,
)

from atoll import system
from atoll.data.batches import Batch
from atoll.errors import ConfigError
from atoll.model.flat import is_sharded
from atoll.model.llama import Llama
from atoll.train.channel import Seat
from atoll.train.loss import IGNORED

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MACHINES: Final = "machines"  # dimensions of a mesh; the first is there only if they are several
DEVICES: Final = "devices"

# What shards is imported where it is used: it takes a second or two, and most peers do without.


@dataclass(frozen=True, slots=True)
class Ranks:
    """Those that train one model together, and which of them this process is."""

    rank: int = 0
    num_ranks: int = 1
    mesh: "DeviceMesh | None" = None  # None: it is alone

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Whether it is the first rank of its machine."""
        return self.mesh is None or self.mesh.get_local_rank(self.mesh.ndim - 1) == 0

    @property
    def is_copy(self) -> bool:
        """Whether what this rank holds is on the first machine as well."""
        return self._has_copies and self._mesh.get_local_rank(MACHINES) > 0

    @property
    def _mesh(self) -> "DeviceMesh":
        assert self.mesh is not None, "it is alone"
        return self.mesh

    @property
    def _has_copies(self) -> bool:
        return self.mesh is not None and self.mesh.ndim > 1

    def share(self, batch: Batch) -> Batch:
        """Return the rows of a batch that this rank is to train on."""
        if self.mesh is None:
            return batch
        return share_of(batch, rank=self.rank, num_ranks=self.num_ranks)

    def sum_(self, total: Tensor) -> None:
        """Add up what each rank has."""
        if self.mesh is not None:
            dist.all_reduce(total)

    def agree(self, number: int) -> int:
        """Return the number that rank 0 has."""
        if self.mesh is None:
            return number
        agreed = torch.tensor(number, device=self.mesh.device_type)
        dist.broadcast(agreed, src=0)
        return int(agreed)

    def least(self, number: int) -> int:
        """Return the least of the numbers that the ranks have."""
        if self.mesh is None:
            return number
        agreed = torch.tensor(number, device=self.mesh.device_type)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return int(agreed)

    def total(self, number: float) -> float:
        """Return the sum of the numbers that the ranks have."""
        if self.mesh is None:
            return number
        total = torch.tensor(number, device=self.mesh.device_type)
        dist.all_reduce(total)
        return float(total)

    def spread_(self, held: Iterable[Tensor]) -> None:
        """Give ranks of other machines the values that those of the first hold in their place."""
        if self._has_copies:
            group = self._mesh.get_group(MACHINES)
            for values in held:
                dist.broadcast(values, group=group, group_src=0)

    def reduce_gradients_(
        self, model: Llama, *, is_last: bool, accumulate: Literal["shards", "whole"]
    ) -> None:
        """Say what the next backward pass does with gradients, the last one of a step or not.

        Among the devices of a machine they are added up in each pass, or in the last one; among
        machines in the last one.
        """
        if self.mesh is not None:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(model, FSDPModule)
            model.set_requires_gradient_sync(is_last or accumulate == "shards")
            model.set_requires_all_reduce(is_last)

    def let_go_(self, model: Llama) -> None:
        """Drop what a forward pass has gathered, which only a backward pass would do."""
        if self.mesh is not None:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(model, FSDPModule)
            model.reshard()


ALONE = Ranks()


def join(
    seat: Seat,
    device: torch.device,
    *,
    address: str = "",
    listening: socket.socket | None = None,
) -> Ranks:
    """Take this rank's seat; return when all others have taken theirs.

    Several machines: `address` is where others reach this one; `listening`, where the ranks meet.

    Raises:
        ConfigError: no network interface has that address.
    """
    stay_on_this_machine() if seat.num_machines == 1 else stay_in_site(address)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_store(seat, listening),
        rank=seat.rank,
        world_size=seat.num_ranks,
    )
    return Ranks(seat.rank, seat.num_ranks, mesh_of(seat, device.type))


def _store(seat: Seat, listening: socket.socket | None) -> Store:
    """Return where the ranks leave word for each other: torch.distributed's rendezvous."""
    if seat.num_machines == 1:
        return FileStore(seat.store, seat.num_ranks)
    host, _, port = seat.store.rpartition(":")
    return TCPStore(
        host,
        int(port),
        world_size=seat.num_ranks,
        is_master=seat.rank == 0,
        wait_for_workers=False,
        master_listen_fd=None if listening is None else listening.detach(),
    )


def mesh_of(seat: Seat, device_type: str) -> "DeviceMesh":
    from torch.distributed.device_mesh import init_device_mesh

    if seat.num_machines == 1:
        return init_device_mesh(device_type, (seat.num_ranks,))
    shape = (seat.num_machines, seat.num_devices)
    return init_device_mesh(device_type, shape, mesh_dim_names=(MACHINES, DEVICES))


def stay_on_this_machine() -> None:
    """Let the ranks find each other on the loopback interface alone."""
    use_interface(next(name for _, name in socket.if_nameindex() if name.startswith("lo")))


def use_interface(name: str) -> None:
    """Let gloo and NCCL listen there: they read the environment, and would choose by themselves.

    What NCCL sends over InfiniBand still goes there.
    """
    os.putenv("GLOO_SOCKET_IFNAME", name)
    os.putenv("NCCL_SOCKET_IFNAME", name)


def stay_in_site(address: str) -> None:
    """Let the ranks find each other on the network of this address, and on no other.

    Raises:
        ConfigError: no network interface has that address.
    """
    interface = system.interface_with(address)
    if not interface:
        raise ConfigError(
            f"no network interface of this machine has the address {address}",
            hint="several machines in one peer need Linux, and IPv4 addresses in their site",
        )
    use_interface(interface)


def shard_(model: Llama, ranks: Ranks, *, bf16: bool) -> None:
    """Leave this rank its rows of each parameter.

    With `bf16` the layers compute on copies in bf16, and pass activations on in it; sums of
    gradients are in fp32 all the same, as is what is held.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotations stay in fp32; the rest comes in bf16 already
    )
    for module in (*model.layers, model):
        sharded = fully_shard(module, mesh=ranks.mesh, mp_policy=policy)
        # The loss is divided by the targets of the whole batch: gradients add up to its mean.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")


def share_of(batch: Batch, *, rank: int, num_ranks: int) -> Batch:
    """Return the rows of a batch for one of several ranks: as many for each, in order.

    All ranks go through the model at once, so none may have less to do. Where rows are missing, the
    last one stands in without targets: it adds nothing to the loss, and nothing to the gradient.
    """
    num_rows = len(batch.tokens_BT)
    share = -(-num_rows // num_ranks)
    row_B = np.arange(rank * share, (rank + 1) * share)
    exists_B1 = (row_B < num_rows)[:, None]
    row_B = np.minimum(row_B, num_rows - 1)
    return Batch(
        tokens_BT=batch.tokens_BT[row_B],
        targets_BT=np.where(exists_B1, batch.targets_BT[row_B], IGNORED),
        documents_BT=batch.documents_BT[row_B],
    )


def held(parameter: torch.nn.Parameter) -> Tensor:
    """Return the values of a parameter that this rank holds."""
    if not is_sharded(parameter):
        return parameter.detach()
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return parameter.to_local().detach()


def whole(values: Tensor) -> Tensor:
    """Return a tensor itself, or, where it is sharded, all of it: then each rank has to ask."""
    if not is_sharded(values):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(values, DTensor)
    return values.full_tensor()


def deal_out(values: Tensor, *, like: Tensor) -> Tensor:
    """Return a copy of the values on the device of `like`; where that is sharded, this rank's rows.

    Then each rank has to ask; the values are those of rank 0, whatever the others bring.
    """
    if not is_sharded(like):
        return values.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    mesh, placements = like.device_mesh, like.placements
    if mesh.ndim == 1:
        return distribute_tensor(values.to(like.device), mesh, placements)
    # Whole it is dealt out within machine 0 only: then each rank has its rows sent on.
    rows = torch.empty_like(like.to_local())
    if mesh.get_local_rank(MACHINES) == 0:
        dealt = distribute_tensor(values.to(like.device), mesh[DEVICES], placements[-1:])
        rows = dealt.to_local().contiguous()
    dist.broadcast(rows, group=mesh.get_group(MACHINES), group_src=0)
    return DTensor.from_local(
        rows, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )
