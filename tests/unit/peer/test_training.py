"""An agent's trainer that works on while the exchange is under way: real processes."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest
import torch

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    PeerConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
)
from atoll.data.prepare import prepare
from atoll.errors import RunError
from atoll.events import TrainerDied, TrainerStarted
from atoll.ids import Lease, LeaseId, RoundId
from atoll.model.flat import store_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.peer.training import MAX_DEATHS, Training
from atoll.train.baseline import initial_model, train_alone
from atoll.train.launch import Trainer, TrainerDied as Died
from atoll.train.shared import SharedVectors

BATCH = 4
CONFIG = RunConfig(
    name="tiny",
    model=ModelConfig(
        vocab_size=300, num_layers=2, width=16, num_heads=4, num_kv_heads=2, ffn_width=32
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="path", name="text.txt"),),
        tokenizer=TokenizerConfig(vocab_size=300),
        sequence_length=16,
    ),
    inner=InnerConfig(lr=1e-2, batch_sequences=BATCH),
    sync=SyncConfig(rounds=4, inner_steps=4, fragments=2, mode="overlap"),
)
LAYOUT = layout_of(CONFIG)
LEASES = [Lease(id=LeaseId(k + 1), start=8 * k, stop=8 * k + 8) for k in range(3)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    text = " ".join(f"{k} islands make {k * k} atolls" for k in range(900))
    (directory / "text.txt").write_text(text)
    return prepare(
        CONFIG, base_directory=directory, directory=directory, on_progress=lambda *_: None
    )


@pytest.fixture
def training(dataset, tmp_path):
    """Return a context with a trainer that has started, and the events that it led to."""

    @asynccontextmanager
    async def started():
        vectors = SharedVectors.create(tmp_path / "vectors", LAYOUT.num_values)
        fill_initial_(vectors.global_N, LAYOUT, seed=CONFIG.seed)
        events = []
        peer = PeerConfig(directory=str(tmp_path), device="cpu", threads=1)
        training = Training(
            CONFIG,
            peer,
            start_trainer=Trainer.start,
            vectors=vectors,
            log_path=tmp_path / "log",
            emit=events.append,
        )
        try:
            await training.start(dataset.folder)
            yield training, events
        finally:
            await training.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return started


def trained_alone(dataset, *, num_steps):
    torch.set_num_threads(1)
    alone = train_alone(
        CONFIG,
        dataset,
        model=initial_model(CONFIG, device=torch.device("cpu")),
        num_steps=num_steps,
        on_step=lambda *_: None,
    )
    out_N = np.empty(LAYOUT.num_values, np.float32)
    store_flat_(alone.model, out_N, LAYOUT)
    return out_N, alone.losses


def test_work_goes_on_in_the_background_as_if_nothing_were_exchanged(training, dataset):
    async def live():
        async with training() as (peer, _):
            peer.work.hold(LEASES)
            peer.go_on(0, upto=peer.work.round_target(8))
            await peer.reach(8)
            assert await peer.snapshot(0, LAYOUT.num_values) is not None
            first_N = peer.vectors.snapshot_N.copy()
            offered, first_loss = peer.offer(RoundId(1))
            peer.go_on(0, upto=peer.work.num_samples)
            # Committed as it is: the new global weights are the snapshot, and nothing moves.
            peer.vectors.global_N[:] = first_N
            for fragment in LAYOUT.fragments:
                await peer.merge_part("carry", fragment.start, fragment.stop)
            assert peer.settle(RoundId(1), offered)
            await peer.reach(16)
            await peer.snapshot(0, LAYOUT.num_values)
            assert (peer.work.consumed, peer.work.left()) == (16, ())
            return offered, first_loss, first_N, peer.vectors.snapshot_N.copy()

    offered, first_loss, first_N, last_N = asyncio.run(live())
    expected_N, losses = trained_alone(dataset, num_steps=2)
    assert offered == (1,)
    assert first_loss == pytest.approx(np.mean(losses))
    assert first_N.tobytes() == expected_N.tobytes()
    assert last_N.tobytes() == trained_alone(dataset, num_steps=6)[0].tobytes()


def test_a_trainer_that_dies_in_the_background_is_replaced_and_counted_once(training, dataset):
    async def live():
        async with training() as (peer, events):
            peer.work.hold([msgspec.structs.replace(LEASES[0], stop=10**6)])
            peer.go_on(0, upto=10**6)
            await peer.reach(2 * BATCH)
            os.kill(events[0].pid, signal.SIGKILL)
            # All that wait for it learn of it, and the work begins anew.
            answers = await asyncio.gather(*(peer.snapshot(0, 10) for _ in range(3)))
            assert answers == [None] * 3
            assert peer.work.consumed == 0
            await peer.reach(BATCH)
            await peer.rest()
            assert peer.work.consumed >= BATCH
            await peer.merge("replace")
            assert peer.work.consumed == 0
            await peer.snapshot(0, LAYOUT.num_values)
            assert np.array_equal(peer.vectors.snapshot_N, peer.vectors.global_N)
            return events

    kinds = [type(event) for event in asyncio.run(live())]
    assert kinds == [TrainerStarted, TrainerDied, TrainerStarted]


def test_the_third_death_in_a_row_ends_whoever_waits(training):
    async def live():
        async with training() as (peer, events):
            peer.work.hold([msgspec.structs.replace(LEASES[0], stop=10**6)])
            peer.go_on(0, upto=10**6)
            waiting = asyncio.ensure_future(peer.reach(10**6))
            for count in range(1 + MAX_DEATHS):
                await peer.reach(BATCH)
                if count == 0:
                    peer.pause()  # as for a machine that is gone: that one does not count
                os.kill(
                    [e for e in events if isinstance(e, TrainerStarted)][-1].pid, signal.SIGKILL
                )
                if count < MAX_DEATHS:
                    assert await peer.snapshot(0, 10) is None
                peer.resume()
            with pytest.raises(RunError, match="died 3 times in a row"):
                await waiting
            with pytest.raises(RunError, match="died 3 times in a row"):
                peer.go_on(0, upto=10)
            return events

    events = asyncio.run(live())
    deaths = [event.in_a_row for event in events if isinstance(event, TrainerDied)]
    assert deaths == [0, 1, 2, 3]


def test_seconds_in_inner_steps_are_told_once(training):
    async def live():
        async with training() as (peer, _):
            peer.work.hold(LEASES)
            peer.go_on(0, upto=BATCH)
            await peer.reach(BATCH)
            assert peer.newest is not None
            assert peer.take_steps_s() == peer.newest.seconds > 0
            assert peer.take_steps_s() == 0.0
            peer.go_on(0, upto=3 * BATCH)
            await peer.reach(3 * BATCH)
            assert peer.take_steps_s() > peer.newest.seconds

    asyncio.run(live())


def test_a_death_that_would_come_again_ends_the_peer_at_once(tmp_path):
    starts = []

    async def refuse(*_, **__):
        starts.append("start")
        raise Died("this run does not fit", hint="take a smaller one", lasting=True)

    async def live():
        peer = Training(
            CONFIG,
            PeerConfig(),
            start_trainer=refuse,
            vectors=SharedVectors.create(tmp_path / "vectors", LAYOUT.num_values),
            log_path=tmp_path / "log",
            emit=lambda _: None,
        )
        with pytest.raises(RunError, match="this run does not fit") as caught:
            await peer.start(tmp_path)
        assert caught.value.hint == "take a smaller one"

    asyncio.run(live())
    assert starts == ["start"]
