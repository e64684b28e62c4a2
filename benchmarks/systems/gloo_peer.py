"""torch.distributed over Gloo: an all-reduce of the vector in fp32, without TLS."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from systems.peer import Setup, Vector, serve

PORT = 29500
TIMEOUT = timedelta(seconds=300)


class Gloo:
    def __init__(self, setup: Setup) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = setup.interface
        torch.set_num_threads(1)
        store = f"tcp://{setup.admin_addresses[0]}:{PORT}"
        dist.init_process_group("gloo", store, TIMEOUT, world_size=setup.num_peers, rank=setup.rank)
        self.num_peers = setup.num_peers
        self.vector = torch.zeros(0)

    def load(self, vector: Vector) -> None:
        self.vector = torch.from_numpy(vector)

    def exchange(self) -> Vector:
        dist.all_reduce(self.vector)
        self.vector /= self.num_peers
        mean: Vector = self.vector.numpy()
        return mean

    def close(self) -> None:
        dist.destroy_process_group()


if __name__ == "__main__":
    serve(Gloo)
