"""Real trainer processes, and their agent. One of them serves all tests that do not end it."""

import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from atoll.config import PeerConfig, run_digest
from atoll.data.batches import Batches
from atoll.errors import RunError
from atoll.ids import RoundId
from atoll.model.flat import store_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.model.shapes import num_parameters
from atoll.outer.checkpoint import STATE_FILE, StateStore
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model, train_alone
from atoll.train.channel import Attach, Quit, Train, frame
from atoll.train.evaluate import validation_loss
from atoll.train.launch import Trainer, TrainerDied, accept, kill
from atoll.train.shared import SharedVectors
from atoll.units import MIB

H = 5
NOTHING = Train(first_step=0, spans=())
ENDLESS = Train(first_step=0, spans=((0, 10**9),))


@pytest.fixture(scope="module")
def vectors(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors"
    vectors = SharedVectors.create(path, num_parameters(config.model))
    yield vectors
    vectors.unlink()


@pytest.fixture(autouse=True)
def initial_N(config, vectors):  # noqa: N802
    fill_initial_(vectors.global_N, layout_of(config), seed=config.seed)
    return vectors.global_N.copy()


@pytest.fixture(scope="module")
def start(config, dataset, vectors, tmp_path_factory):
    directory = tmp_path_factory.mktemp("peer")
    peer = PeerConfig(directory=str(directory), device="cpu", threads=1)

    async def start(config=config, *, devices=1):
        log_path = directory / "log" / "trainer.log"
        changed = msgspec.structs.replace(peer, devices=devices)
        return await Trainer.start(
            config, changed, vectors=vectors, dataset=dataset.folder, log_path=log_path
        )

    return start


@pytest.fixture(scope="module")
def running(start):
    """A context with a trainer of its own; nothing is left of it."""

    @asynccontextmanager
    async def running(*args, **named):
        trainer = await start(*args, **named)
        try:
            yield trainer
        finally:
            await trainer.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(trainer.pid, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return running


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared_trainer(runner, start):
    trainer = runner.run(start())
    yield trainer
    runner.run(trainer.stop())


@pytest.fixture
def trainer(runner, shared_trainer, vectors, initial_N):
    runner.run(shared_trainer.merge("replace", 0, vectors.num_values))
    return shared_trainer


def work(config, *, first_step, num_steps):
    size = config.inner.batch_sequences
    span = (first_step * size, (first_step + num_steps) * size)
    return Train(first_step=first_step, spans=(span,))


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def ignore(*_):
    pass


def test_a_life_with_merges_and_a_restart_is_plain_training_bit_for_bit(
    config, dataset, vectors, running, tmp_path
):
    alone = train_alone(
        config,
        dataset,
        model=initial_model(config, device=torch.device("cpu")),
        num_steps=3 * H,
        on_step=ignore,
    )
    expected_N = np.empty_like(vectors.global_N)
    store_flat_(alone.model, expected_N, layout_of(config))
    steps = []

    async def one_life():
        async with running() as trainer:
            assert (trainer.started.device, trainer.started.threads) == ("CPU", 1)
            for first_step in (0, H):
                order = work(config, first_step=first_step, num_steps=H)
                await trainer.train(order, on_step=steps.append)
                assert len(steps) == first_step + H
                await trainer.snapshot(0, vectors.num_values)
                vectors.global_N[:] = vectors.snapshot_N
                await trainer.merge("replace", 0, vectors.num_values)
            await trainer.save(tmp_path / "optimizer")

    async def the_next():
        async with running() as trainer:
            await trainer.load(tmp_path / "optimizer")
            await trainer.train(work(config, first_step=2 * H, num_steps=H), on_step=steps.append)
            await trainer.snapshot(0, vectors.num_values)

    asyncio.run(one_life())
    asyncio.run(the_next())
    assert [stepped.step for stepped in steps] == list(range(3 * H))
    assert [stepped.loss for stepped in steps] == alone.losses
    assert vectors.snapshot_N.tobytes() == expected_N.tobytes()


def test_merges_change_their_part_alone(config, vectors, initial_N, runner, trainer):
    def local_weights():
        runner.run(trainer.snapshot(0, vectors.num_values))
        return vectors.snapshot_N.copy()

    runner.run(trainer.train(work(config, first_step=10, num_steps=1), on_step=ignore))
    local_N = local_weights()
    assert not np.array_equal(local_N, initial_N)
    vectors.global_N[:] = moved_N = initial_N + np.float32(0.25)
    expected_N = local_N.copy()

    part = slice(100, 3000)
    vectors.snapshot_N[:] = initial_N
    runner.run(trainer.merge("carry", part.start, part.stop))
    expected_N[part] = moved_N[part].astype(float) + (local_N[part].astype(float) - initial_N[part])
    assert np.array_equal(local_weights(), expected_N)

    part = slice(2000, 5001)
    runner.run(trainer.merge("blend", part.start, part.stop, alpha=0.3))
    alpha = float(np.float64(0.3))
    expected_N[part] = alpha * expected_N[part].astype(float) + moved_N[part].astype(float) * (
        1 - alpha
    )
    assert np.array_equal(local_weights(), expected_N)

    part = slice(4000, vectors.num_values)
    runner.run(trainer.merge("replace", part.start, part.stop))
    expected_N[part] = moved_N[part]
    assert np.array_equal(local_weights(), expected_N)


def test_a_snapshot_changes_its_part_alone(vectors, initial_N, runner, trainer):
    vectors.snapshot_N[:] = 0
    runner.run(trainer.snapshot(17, 2500))
    assert np.array_equal(vectors.snapshot_N[17:2500], initial_N[17:2500])
    assert not vectors.snapshot_N[:17].any()
    assert not vectors.snapshot_N[2500:].any()


def test_it_trains_on_while_the_other_commands_are_carried_out(
    config, vectors, runner, trainer, tmp_path
):
    steps = []

    async def all_at_once():
        has_begun = asyncio.Event()

        def note(stepped):
            steps.append(stepped.step)
            has_begun.set()

        training = asyncio.create_task(trainer.train(ENDLESS, on_step=note))
        await has_begun.wait()
        await asyncio.gather(
            trainer.save(tmp_path / "one"),
            trainer.snapshot(0, vectors.num_values),
            trainer.merge("carry", 0, vectors.num_values),
            trainer.save(tmp_path / "other"),
            trainer.snapshot(0, 10),
        )
        with pytest.raises(RunError, match="cannot be written"):
            await trainer.save(tmp_path / "nowhere" / "optimizer")
        assert not training.done()
        trainer.halt()
        await training

    runner.run(all_at_once())
    assert steps == list(range(len(steps)))
    assert (tmp_path / "one").exists()
    assert (tmp_path / "other").exists()


def test_two_ranks_serve_as_one_does_and_die_together(
    config, dataset, vectors, running, initial_N, tmp_path
):
    initial_state = PeerState(RoundId(1), initial_N, np.zeros_like(initial_N))
    StateStore(tmp_path / "states", keep=2).save(
        initial_state, manifest_of(initial_state, run=run_digest(config)), now=0.0
    )
    initial_state_file = tmp_path / "states" / "000001" / STATE_FILE
    initial_loss = validation_loss(
        initial_model(config, device=torch.device("cpu")),
        Batches(dataset, seed=config.seed),
        batch_sequences=8,
        num_samples=min(config.evaluation.samples, dataset.num_validation_samples),
    )
    alone = train_alone(
        config,
        dataset,
        model=initial_model(config, device=torch.device("cpu")),
        num_steps=2 * H,
        on_step=ignore,
    )
    expected_N = np.empty_like(initial_N)
    store_flat_(alone.model, expected_N, layout_of(config))

    async def life():
        async with running(devices=2) as trainer:
            assert trainer.started.device == "2 x CPU"
            with pytest.raises(RunError, match="not a state of the optimizer"):
                await trainer.load(tmp_path / "nowhere")
            steps = []
            await trainer.train(work(config, first_step=0, num_steps=H), on_step=steps.append)
            samples = [stepped.num_samples for stepped in steps]
            assert samples == [config.inner.batch_sequences] * H, "and not those of one device"
            await asyncio.gather(
                trainer.save(tmp_path / "moments"), trainer.snapshot(0, vectors.num_values)
            )
            # What it has by now comes back from both files, though it has moved on.
            vectors.global_N[:] = vectors.snapshot_N
            await trainer.train(work(config, first_step=H, num_steps=1), on_step=ignore)
            await trainer.merge("replace", 0, vectors.num_values)
            await trainer.load(tmp_path / "moments")
            losses = []
            await trainer.train(
                work(config, first_step=H, num_steps=H),
                on_step=lambda stepped: losses.append(stepped.loss),
            )
            assert losses == pytest.approx(alone.losses[H:], rel=1e-4)
            await trainer.snapshot(0, vectors.num_values)
            difference = np.linalg.norm(vectors.snapshot_N - expected_N)
            assert difference < 1e-4 * np.linalg.norm(expected_N - initial_N)

            found = await trainer.evaluate(initial_state_file)
            assert found.loss == pytest.approx(initial_loss, rel=1e-5)
            assert found.text == "", "that takes the whole model in one place"
            await trainer.snapshot(0, vectors.num_values)
            again = np.linalg.norm(vectors.snapshot_N - expected_N)
            assert again == difference, "the weights are where they were"

            (second,) = children_of(trainer.pid)
            with pytest.raises(TrainerDied, match="rank 1 of the trainer was ended by a signal"):
                await trainer.train(ENDLESS, on_step=lambda _: os.kill(second, signal.SIGKILL))

    asyncio.run(life())


def test_no_work_is_done_at_once(runner, trainer):
    steps = []
    runner.run(trainer.train(NOTHING, on_step=steps.append))
    assert not steps


def test_all_samples_are_reported(runner, trainer):
    steps = []
    uneven = Train(first_step=30, spans=((100, 105), (200, 205)))
    runner.run(trainer.train(uneven, on_step=steps.append))
    told = [(s.step, s.num_samples, s.num_tokens) for s in steps]
    assert told == [(30, 4, 64), (31, 4, 64), (32, 2, 32)]


def test_halt_ends_the_work_at_a_step_boundary(config, runner, trainer):
    steps = []

    def halt_at_the_third(stepped):
        steps.append(stepped)
        if stepped.step == 2:
            trainer.halt()

    runner.run(trainer.train(ENDLESS, on_step=halt_at_the_third))
    assert len(steps) >= 3
    assert {stepped.num_samples for stepped in steps} == {config.inner.batch_sequences}


def test_a_halt_that_comes_too_late_does_nothing(config, runner, trainer):
    steps = []

    async def halt_between_two():
        await trainer.train(NOTHING, on_step=ignore)
        trainer.halt()
        await trainer.merge("replace", 0, 0)
        await trainer.train(work(config, first_step=0, num_steps=2), on_step=steps.append)

    runner.run(halt_between_two())
    assert len(steps) == 2


def test_a_cancelled_command_leaves_the_trainer_usable(config, runner, trainer):
    steps = []

    async def cancelled():
        has_begun = asyncio.Event()
        training = asyncio.create_task(
            trainer.train(ENDLESS, on_step=lambda stepped: has_begun.set())
        )
        await has_begun.wait()
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        await trainer.merge("replace", 0, 0)
        steps.clear()
        await trainer.train(work(config, first_step=0, num_steps=1), on_step=steps.append)

    runner.run(cancelled())
    assert len(steps) == 1


def test_ctrl_c_is_not_for_the_trainer(config, runner, trainer):
    os.kill(trainer.pid, signal.SIGINT)
    steps = []
    runner.run(trainer.train(work(config, first_step=0, num_steps=2), on_step=steps.append))
    assert len(steps) == 2
    assert os.getpgid(trainer.pid) != os.getpgid(0), "the terminal's Ctrl-C must not reach it"


def test_a_file_that_cannot_be_loaded_or_saved_costs_nothing(config, runner, trainer, tmp_path):
    (tmp_path / "damaged").write_bytes(b"?" * 100)
    with pytest.raises(RunError, match="not a state of the optimizer") as caught:
        runner.run(trainer.load(tmp_path / "damaged"))
    assert "delete the file" in caught.value.hint
    with pytest.raises(RunError, match="cannot be written"):
        runner.run(trainer.save(tmp_path / "nowhere" / "optimizer"))
    with pytest.raises(RunError, match="cannot read"):
        runner.run(trainer.evaluate(tmp_path / "nowhere"))
    steps = []
    runner.run(trainer.train(work(config, first_step=0, num_steps=1), on_step=steps.append))
    assert len(steps) == 1


def let_end(pid: int) -> None:
    """Return when the process has ended; asyncio's thread may have heard of it, its loop not."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_who_is_killed_at_its_end_has_ended_as_it_did(caplog):
    """By itself or by the signal, whichever was first; asyncio is not robbed of the answer."""

    async def ended() -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        let_end(process.pid)
        kill(process)
        return await process.wait()

    async def all_of_them() -> set[int]:
        return {await ended() for _ in range(50)}

    assert asyncio.run(all_of_them()) <= {3, -signal.SIGKILL}
    assert not caplog.records


def test_a_killed_trainer_is_noticed_at_once(running):
    async def killed():
        async with running() as trainer:
            with pytest.raises(TrainerDied, match="ended by a signal: Killed") as caught:
                await trainer.train(ENDLESS, on_step=lambda _: os.kill(trainer.pid, signal.SIGKILL))
            assert "--micro-batch" in caught.value.hint
            with pytest.raises(TrainerDied, match="Killed"):
                await trainer.merge("replace", 0, 0)
            trainer.halt()  # of no use, and no harm

    asyncio.run(killed())


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_out_of_memory_is_a_reason_with_a_hint(config, running):
    inner = msgspec.structs.replace(config.inner, batch_sequences=20_000)
    hungry = msgspec.structs.replace(config, inner=inner)

    async def out_of_memory():
        async with running(hungry) as trainer:
            pages = int(Path(f"/proc/{trainer.pid}/statm").read_text().split()[0])
            limit_bytes = pages * resource.getpagesize() + 100 * MIB
            resource.prlimit(trainer.pid, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
            with pytest.raises(TrainerDied, match="run out of memory") as caught:
                await trainer.train(ENDLESS, on_step=ignore)
            assert "--micro-batch" in caught.value.hint

    asyncio.run(out_of_memory())


def test_a_trainer_that_cannot_start_says_why(running, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/ls")  # some program that does not know -P -m

    async def never():
        async with running():
            raise AssertionError("it cannot have started")

    with pytest.raises(TrainerDied, match="ended with exit code 2: Try") as caught:
        asyncio.run(never())
    assert "trainer.log" in caught.value.hint


def test_a_stranger_is_sent_away():
    async def strangers_and_then_ours():
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(0)
            address = listening.getsockname()
            accepting = asyncio.create_task(accept(listening, token="right"))
            for said in (b"GET / HTTP/1.1", frame(Attach(token="wröng")), frame(Quit()), b""):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(said)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            _, ours = await asyncio.open_connection(*address)
            ours.write(frame(Attach(token="right")))
            _, writer = await accepting
            assert writer.get_extra_info("peername") == ours.get_extra_info("sockname")
            ours.close()
            writer.close()

    asyncio.run(strangers_and_then_ours())
