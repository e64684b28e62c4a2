"""The trainer's side without a process: `run` in a thread, and the agent is the test."""

import asyncio
import socket
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
import pytest
import torch

from atoll.config import PeerConfig
from atoll.data.batches import Batches
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters
from atoll.train.channel import (
    Channel,
    Failed,
    Halt,
    Merge,
    Quit,
    Setup,
    Snapshot,
    Started,
    Stepped,
    Train,
    Trained,
    frame,
    receive,
)
from atoll.train.inner import Computing, InnerLoop
from atoll.train.shared import SharedVectors
from atoll.train.trainer import Work, is_out_of_memory, run

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


def talk(connection, commands):
    """Say each command once it trains on after the answer to the last one; return all it says."""

    async def conversation():
        reader, writer = await asyncio.open_connection(sock=connection.dup())
        said, rest = [await receive(reader)], deque(commands)
        while not isinstance(said[-1], Trained):
            said.append(await receive(reader))
            if isinstance(said[-1], Stepped) and not isinstance(said[-2], Stepped):
                writer.write(frame(rest.popleft()))
        writer.close()
        return said

    return asyncio.run(conversation())


def test_commands_between_two_steps_do_what_they_do_by_hand(setup, config, dataset):
    sync = msgspec.structs.replace(config.sync, fragments=2, inner_steps=6)
    config = msgspec.structs.replace(config, sync=sync)
    layout = layout_of(config)
    first, second = (slice(f.start, f.stop) for f in layout.fragments)
    vectors = SharedVectors.open(Path(setup.vectors), layout.num_values)
    global_N = vectors.global_N.copy()
    everything = Snapshot(start=0, stop=layout.num_values)
    commands = [
        everything,
        Merge(how="carry", start=second.start, stop=second.stop),
        Merge(how="blend", start=0, stop=first.stop, alpha=0.75),
        everything,
        Halt(),
    ]
    with agent() as (connection, _):
        connection.sendall(frame(msgspec.structs.replace(setup, config=config)) + frame(WORK))
        said = talk(connection, commands)

    loop = InnerLoop(Llama(config.model), Batches(dataset, seed=config.seed), config)
    load_flat_(loop.model, global_N, layout)
    local_N, size = global_N.copy(), config.inner.batch_sequences
    snapshots_N = []
    for message in said[1:-1]:
        if isinstance(message, Stepped):
            start = (message.step - WORK.first_step) * size
            assert loop.step([(start, start + size)], step=message.step).loss == message.loss
            assert message.num_samples == size
            store_flat_(loop.model, local_N, layout)
            continue
        match commands.pop(0):
            case Snapshot():
                snapshots_N.append(local_N.copy())
            case Merge(how="carry"):
                moved_N = local_N[second].astype(float) - snapshots_N[0][second]
                local_N[second] = global_N[second] + moved_N
            case Merge(alpha=alpha):
                blend_N = alpha * local_N[first].astype(float)
                local_N[first] = blend_N + (1 - alpha) * global_N[first].astype(float)
        load_flat_(loop.model, local_N, layout)
    assert not np.array_equal(*snapshots_N)
    assert np.array_equal(vectors.snapshot_N, snapshots_N[1])


class Watched(Batches):
    """Notes which samples are read."""

    def __init__(self, dataset):
        super().__init__(dataset, seed=0)
        self.read = []

    def batch(self, start, stop):
        self.read.append((start, stop))
        return super().batch(start, stop)


def test_samples_are_read_ahead_once_and_none_beyond_the_order(config, dataset):
    batches, how = Watched(dataset), Computing(reads_ahead=True)
    order = Train(first_step=3, spans=((0, 6), (9, 14)))  # steps of 4, and of 3 at the end
    work = Work(order, InnerLoop(Llama(config.model), batches, config, how=how))
    told = []
    while not work.is_done:
        told.append(work.next_step())
        work.step()
    assert batches.read == [(0, 4), (4, 6), (9, 11), (11, 14)]
    assert [step.spans for step in told] == [((0, 4),), ((4, 6), (9, 11)), ((11, 14),)]
    assert [step.then for step in told] == [*[step.spans for step in told[1:]], ()]
    # What rank 0 tells one step at a time, a follower reads ahead as well.
    batches.read.clear()
    loop = InnerLoop(Llama(config.model), batches, config, how=how)
    for step in told:
        Work(step, loop).step()
    assert batches.read == [(0, 4), (4, 6), (9, 11), (11, 14)]


@pytest.mark.parametrize("missing", ["vectors", "dataset"])
def test_what_is_missing_at_the_start_is_its_last_word(setup, tmp_path, missing):
    setup = msgspec.structs.replace(setup, **{missing: str(tmp_path / "nowhere")})
    with agent() as (connection, exit_codes):
        connection.sendall(frame(setup))
        (failed,) = said_until_the_end(connection)
    assert isinstance(failed, Failed)
    assert "nowhere" in failed.reason
    assert exit_codes == [1]


def test_what_does_not_fit_is_refused_for_good(setup):
    data = msgspec.structs.replace(setup.config.data, sequence_length=10**6)
    config = msgspec.structs.replace(setup.config, data=data)
    with agent() as (connection, exit_codes):
        connection.sendall(frame(msgspec.structs.replace(setup, config=config)))
        (failed,) = said_until_the_end(connection)
    assert isinstance(failed, Failed)
    assert "this run does not fit: training takes" in failed.reason
    assert failed.lasting
    assert exit_codes == [1]


def test_a_trainer_that_starts_again_takes_as_many_samples_at_once(setup, tmp_path):
    for _ in range(2):
        with agent() as (connection, _):
            connection.sendall(frame(setup) + frame(Train(first_step=0, spans=((0, 4),))))
            assert isinstance(said_until_the_end(connection)[-1], Trained)
        chosen = (tmp_path / "micro-batch.json").read_text()
        assert '"micro_batch":4' in chosen, "the whole batch, where there is room"


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
