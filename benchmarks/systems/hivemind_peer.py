"""hivemind: its averager (butterfly all-reduce over libp2p) with uniform 8-bit quantisation.

Matchmaking takes seconds and is done in `load`, up to the trigger that hivemind waits for; only
what follows the trigger is timed.
"""

from time import monotonic, sleep

import numpy as np
import torch
from hivemind import DHT
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.control import AveragingStage, StepControl
from hivemind.compression import Uniform8BitQuantization
from systems.peer import Setup, Vector, serve

MATCHMAKING_S = 5.0
REQUEST_S = 1.0  # below that, as hivemind asks: the other way round it may wait for ever
TIMEOUT_S = 300.0
POLL_S = 0.01


class Hivemind:
    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        own = setup.addresses[setup.rank]
        self.dht = DHT(start=True, initial_peers=[setup.hub], host_maddrs=[f"/ip4/{own}/tcp/0"])
        self.averager = DecentralizedAverager(
            [torch.zeros(setup.num_values)],
            self.dht,
            start=True,
            prefix="exchange",
            target_group_size=setup.num_peers,
            min_group_size=setup.num_peers,
            min_matchmaking_time=MATCHMAKING_S,
            request_timeout=REQUEST_S,
            compression=Uniform8BitQuantization(),
            bandwidth=1.0,  # equal shares for all
        )
        self.step: StepControl | None = None

    def load(self, vector: Vector) -> None:
        with self.averager.get_tensors() as tensors:
            tensors[0].numpy()[:] = vector
        step = self.averager.step(require_trigger=True, wait=False, timeout=TIMEOUT_S)
        give_up_at = monotonic() + TIMEOUT_S
        while step.stage is not AveragingStage.AWAITING_TRIGGER:
            if monotonic() > give_up_at:
                raise TimeoutError("matchmaking finds no group")
            sleep(POLL_S)
        self.step = step

    def exchange(self) -> Vector:
        assert self.step
        self.step.allow_allreduce()
        self.step.result(TIMEOUT_S)
        with self.averager.get_tensors() as tensors:
            return np.array(tensors[0].numpy())

    def close(self) -> None:
        self.averager.shutdown()
        self.dht.shutdown()


if __name__ == "__main__":
    serve(Hivemind)
