"""torchft: an all-reduce by its Manager over ProcessGroupGloo, which is what DiLoCo has on a CPU.

Its quantised all-reduce consists of Triton kernels, so without a GPU it sends fp32. The quorum is
formed in `load`: it asks the lighthouse, and is no part of the time.
"""

import os
from datetime import timedelta

import torch
from systems.peer import Setup, Vector, serve
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo

STORE_PORT = 29520
TIMEOUT = timedelta(seconds=300)


class TorchFt:
    def __init__(self, setup: Setup) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = setup.interface
        torch.set_num_threads(1)
        own = setup.admin_addresses[setup.rank]
        port = STORE_PORT + setup.rank  # on a loopback all have one address
        self.store = TCPStore(own, port, is_master=True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=TIMEOUT),
            load_state_dict=None,
            state_dict=None,
            min_replica_size=setup.num_peers,
            use_async_quorum=False,
            timeout=TIMEOUT,
            quorum_timeout=TIMEOUT,
            rank=0,
            world_size=1,
            store_addr=own,
            store_port=port,
            lighthouse_addr=setup.hub,
            replica_id=f"peer{setup.rank}",
            hostname=own,
            init_sync=False,
        )
        self.vector = torch.zeros(0)

    def load(self, vector: Vector) -> None:
        self.vector = torch.from_numpy(vector)
        self.manager.start_quorum()

    def exchange(self) -> Vector:
        self.manager.allreduce(self.vector, should_quantize=True).wait()
        if error := self.manager.errored():
            raise error.original_exception
        mean: Vector = self.vector.numpy()
        return mean

    def close(self) -> None:
        self.manager.shutdown(wait=False)


if __name__ == "__main__":
    serve(TorchFt)
