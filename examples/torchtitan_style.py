"""A loop in the manner of torchtitan as a peer of a run: meta device, FSDP2, one step a method.

    python examples/torchtitan_style.py RUN_TOML INVITE FOLDER

A model with other names than atoll's or Hugging Face's needs `names` in `attach`; torchtitan's own
Llama also turns neighbouring channels of a head, not its halves: permute q and k as its converter
does. Only one rank so far; several GPUs of one machine are for `atoll join --devices`.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import atoll
from atoll.data.batches import Batch
from atoll.model.llama import Llama


class Trainer:
    def __init__(self, run_toml: str, invite: str, folder: str) -> None:
        self.config = atoll.load_run_config(Path(run_toml))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.device("meta"):
            self.model = Llama(self.config.model)
        self.parallelize()
        self.model.to_empty(device=self.device)  # `attach` brings the weights
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.config.inner.lr)
        self.replica = atoll.attach(
            self.model,
            self.optimizer,
            invite=invite,
            peer=atoll.PeerConfig(directory=folder, name="titan"),
        )
        # A peer that joins late is at the step that the run is at.
        self.lr_scheduler = LambdaLR(
            self.optimizer, lambda _: min(1.0, (self.replica.inner_step + 1) / 10)
        )

    def parallelize(self) -> None:
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def forward_backward_step(self, batch: Batch) -> Tensor:
        tokens_BT, targets_BT, documents_BT = (torch.from_numpy(x).to(self.device) for x in batch)
        logits_BTV = self.model(tokens_BT, documents_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        loss.backward()
        return loss.detach()

    def train_step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        loss = self.forward_backward_step(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.inner.clip_norm)
        self.optimizer.step()
        self.replica.step(loss=loss.item())
        self.lr_scheduler.step()

    def train(self) -> None:
        with self.replica:
            for batch in self.replica.batches():
                self.train_step(batch)


def main(run_toml: str, invite: str, folder: str) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        Trainer(run_toml, invite, folder).train()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
