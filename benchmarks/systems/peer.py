"""One peer of an exchange under test: the same for every system, up to its driver.

The coordinator (exchange.py) starts a peer in its namespace and talks to it over two pipes, line by
line: first a `Setup`, then commands. No vector passes through them: inputs are seeded.

    load       form this peer's vector, in memory, and let the driver get ready (not timed)
    exchange   average with the others (timed from the barrier to the last peer that is done)
    error      relative L2 error of the last mean, against the exact one in fp64

A driver imports this module and ends in `serve(prepare)`. It runs in the environment of its system,
so here there is the standard library and numpy.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
BLOCK = 1 << 20  # values that are made at a time, so that a vector costs no second one
DEGREES_OF_FREEDOM = 2.0  # of Student's t: tails like those of pseudo-gradients


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a peer learns before anything else."""

    rank: int
    addresses: list[str]  # of all peers' links, by rank
    admin_addresses: list[str]  # of all peers, where there is no limit; for rendezvous
    interface: str  # of this peer's link
    num_values: int
    codec: str
    congestion: str  # the algorithm that a socket should ask for; empty: the system's own choice
    hub: str = ""  # what the system's hub printed, if it has one

    @property
    def num_peers(self) -> int:
        return len(self.addresses)


class Driver(Protocol):
    """A system under test, joined with its peers when it comes out of `prepare`."""

    def load(self, vector: Vector) -> None:
        """Take the vector, which the driver may overwrite, and find the others; encode nothing."""
        ...

    def exchange(self) -> Vector:
        """Return the mean of all peers' vectors, when this peer has it."""
        ...

    def close(self) -> None: ...


def serve(prepare: Callable[[Setup], Driver]) -> None:
    """Follow the coordinator's commands until it closes the pipe, or is gone."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)  # whatever a library prints belongs with the errors
        setup = Setup(**json.loads(sys.stdin.readline()))
        driver = prepare(setup)
        for reply in follow(setup, driver):
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
        driver.close()


def follow(setup: Setup, driver: Driver) -> Iterator[dict[str, object]]:
    """Yield the reply to each command."""
    yield {"pid": os.getpid()}
    distribution, mean = "", np.zeros(0, np.float32)
    for line in sys.stdin:
        match line.split():
            case ["load", distribution]:
                driver.load(vector_of(distribution, setup.rank, num_values=setup.num_values))
                yield {}
            case ["exchange"]:
                mean = driver.exchange()
                yield {"ended_at": monotonic()}
            case ["digest"]:  # not while others still exchange: it takes the time of a core
                yield {"digest": hashlib.blake2b(mean.data).hexdigest()}
            case _:  # error
                yield {"error": relative_error(mean, distribution, num_peers=setup.num_peers)}


# --- inputs --------------------------------------------------------------------------------------


def vector_of(distribution: str, rank: int, *, num_values: int) -> Vector:
    vector = np.empty(num_values, np.float32)
    for start, block in enumerate_blocks(distribution, rank, num_values=num_values):
        vector[start : start + len(block)] = block
    return vector


def enumerate_blocks(
    distribution: str, rank: int, *, num_values: int
) -> Iterator[tuple[int, Vector]]:
    """Yield the blocks of a peer's vector with where they start, the same ones every time."""
    chance = np.random.default_rng([rank, *distribution.encode()])
    for start in range(0, num_values, BLOCK):
        size = min(BLOCK, num_values - start)
        if distribution == "gaussian":
            yield start, chance.standard_normal(size, np.float32)
        else:
            yield start, chance.standard_t(DEGREES_OF_FREEDOM, size).astype(np.float32)


def relative_error(mean: Vector, distribution: str, *, num_peers: int) -> float:
    """Return ||mean - exact|| / ||exact||, the exact mean being that of the fp32 inputs in fp64."""
    squared_error = squared_norm = 0.0
    inputs = [
        enumerate_blocks(distribution, rank, num_values=len(mean)) for rank in range(num_peers)
    ]
    for blocks in zip(*inputs, strict=True):
        start, size = blocks[0][0], len(blocks[0][1])
        exact = np.mean([block for _, block in blocks], axis=0, dtype=np.float64)
        squared_error += float(np.sum((mean[start : start + size] - exact) ** 2))
        squared_norm += float(np.sum(exact**2))
    return sqrt(squared_error / squared_norm)
