"""The trainer's side without a process: `run` in a thread, and the agent is the test."""

import asyncio
import socket
from contextlib import contextmanager
from threading import Thread

import msgspec
import numpy as np
import pytest
import torch

from atoll.config import PeerConfig
from atoll.model.shapes import num_parameters
from atoll.train.channel import (
    Channel,
    Failed,
    Quit,
    Setup,
    Started,
    Stepped,
    Train,
    frame,
    receive,
)
from atoll.train.shared import SharedVectors
from atoll.train.trainer import is_out_of_memory, run

WORK = Train(first_step=3, spans=((0, 10**9),))


@pytest.fixture
def setup(config, dataset, tmp_path):
    vectors = SharedVectors.create(tmp_path / "vectors", num_parameters(config.model))
    vectors.global_N[:] = np.random.default_rng(0).normal(scale=0.02, size=vectors.num_values)
    return Setup(
        config=config,
        peer=PeerConfig(directory=str(tmp_path), device="cpu", threads=1),
        vectors=str(vectors.path),
        dataset=str(dataset.folder),
    )


@contextmanager
def agent():
    """The agent's socket; the trainer's exit codes come into the list."""
    ours, theirs = socket.socketpair()
    exit_codes = []
    with ours, theirs:
        ours.settimeout(30)
        thread = Thread(target=lambda: exit_codes.append(run(Channel(theirs))))
        thread.start()
        yield ours, exit_codes
        ours.close()
        thread.join(timeout=30)
    assert not thread.is_alive()


def said_until_the_end(connection):
    """Return what the trainer says from here to its end of the connection, or to a failure."""

    async def read():
        reader, writer = await asyncio.open_connection(sock=connection.dup())
        messages = [await receive(reader)]
        while isinstance(messages[-1], Started | Stepped):
            messages.append(await receive(reader))
        writer.close()
        return messages

    return asyncio.run(read())


def test_ends_with_its_agent_in_mid_work(setup):
    with agent() as (connection, exit_codes):
        connection.sendall(frame(setup) + frame(WORK))
        assert connection.recv(1)
    assert exit_codes == [1]


def test_ends_well_when_it_is_told_to(setup):
    with agent() as (connection, exit_codes):
        connection.sendall(frame(setup) + frame(Quit()))
        assert connection.recv(1)
    assert exit_codes == [0]


def test_divergence_is_its_last_word(setup, tmp_path):
    np.memmap(setup.vectors, dtype=np.float32, mode="r+")[:] = np.nan
    with agent() as (connection, exit_codes):
        connection.sendall(frame(setup) + frame(WORK))
        started, failed = said_until_the_end(connection)
    assert isinstance(started, Started)
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("training has diverged at inner step 3: loss nan")
    assert "inner.lr" in failed.hint
    assert exit_codes == [1]


@pytest.mark.parametrize("missing", ["vectors", "dataset"])
def test_what_is_missing_at_the_start_is_its_last_word(setup, tmp_path, missing):
    setup = msgspec.structs.replace(setup, **{missing: str(tmp_path / "nowhere")})
    with agent() as (connection, exit_codes):
        connection.sendall(frame(setup))
        (failed,) = said_until_the_end(connection)
    assert isinstance(failed, Failed)
    assert "nowhere" in failed.reason
    assert exit_codes == [1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_knows_out_of_memory_from_a_bug(error, expected):
    assert is_out_of_memory(error) == expected
