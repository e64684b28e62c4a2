"""Attached loops in a thread; the test is their agent."""

import asyncio
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from threading import Thread

import msgspec
import numpy as np
import pytest
import torch

from atoll.config import PeerConfig
from atoll.errors import ConfigError, RunError
from atoll.model.flat import store_flat_
from atoll.model.hf import hf_name
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters
from atoll.train.attach import Replica, _Inner
from atoll.train.attached import AttachedLoop
from atoll.train.baseline import initial_model, train_alone
from atoll.train.channel import Channel, Train
from atoll.train.launch import TrainerDied
from atoll.train.loss import language_model_loss
from atoll.train.optim import make_optimizer
from atoll.train.schedule import learning_rate
from atoll.train.shared import SharedVectors

CPU = torch.device("cpu")


def ignore(*_):
    pass


@pytest.fixture
def vectors(config, tmp_path):
    vectors = SharedVectors.create(tmp_path / "vectors", num_parameters(config.model))
    fill_initial_(vectors.global_N, layout_of(config), seed=config.seed)
    return vectors


@pytest.fixture
def attached(config, dataset, vectors, tmp_path):
    """A context with the trainer that a loop is to its agent; `loop` gets a Replica."""

    @asynccontextmanager
    async def attached(loop, *, config=config):
        ours, theirs = socket.socketpair()
        errors = []

        def attach():
            model = Llama(config.model)
            inner = _Inner(config, model, make_optimizer(model, config.inner), None)
            channel = Channel(theirs)
            agent = subprocess.Popen([sys.executable, "-c", ""])  # has ended, for all we know
            with Replica(channel.receive(), inner, channel, agent) as replica:
                try:
                    loop(replica, model)
                except (RunError, ConfigError) as error:
                    errors.append(error)

        thread = Thread(target=attach)
        thread.start()
        agent = AttachedLoop(ours)
        trainer = await agent.start(
            config,
            PeerConfig(),
            vectors=vectors,
            dataset=dataset.folder,
            log_path=tmp_path / "log",
        )
        yield trainer, errors
        await trainer.stop()
        assert agent.gone.is_set()
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()

    return attached


def work(config, *, first_step, num_steps):
    size = config.inner.batch_sequences
    return Train(
        first_step=first_step,
        spans=((first_step * size, (first_step + num_steps) * size),),
    )


def plain_loop(replica, model):
    """What `InnerLoop` does, as somebody else would write it."""
    inner = replica.config.inner
    optimizer = replica._inner.optimizer
    torch.set_num_threads(1)
    for taken, batch in enumerate(replica.batches()):
        tokens_BT, targets_BT, documents_BT = map(torch.from_numpy, batch)
        packed = bool((documents_BT != documents_BT[:, :1]).any())
        objective, loss = language_model_loss(
            model.hidden(tokens_BT, documents_BT if packed else None),
            model.head_weight,
            targets_BT,
            num_targets=targets_BT.numel(),
            z_loss=inner.z_loss,
        )
        optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), inner.clip_norm)
        lr = learning_rate(replica.config, replica.inner_step, steps_since_fresh=taken)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        replica.step(loss=loss.item())


def test_an_attached_loop_is_plain_training_bit_for_bit(
    config, dataset, vectors, attached, tmp_path
):
    alone = train_alone(
        config, dataset, model=initial_model(config, device=CPU), num_steps=7, on_step=ignore
    )
    expected_N = np.empty_like(vectors.global_N)
    store_flat_(alone.model, expected_N, layout_of(config))

    async def life():
        steps = []
        async with attached(plain_loop) as (trainer, errors):
            for first_step, num_steps in ((0, 4), (4, 3)):
                order = work(config, first_step=first_step, num_steps=num_steps)
                await trainer.train(order, on_step=steps.append)
                assert len(steps) == first_step + num_steps
                await trainer.snapshot(0, vectors.num_values)
                vectors.global_N[:] = vectors.snapshot_N  # as with one peer, and outer lr 1
                await trainer.merge("replace", 0, vectors.num_values)
            await trainer.save(tmp_path / "moments")
            await trainer.load(tmp_path / "moments")
        assert not errors
        assert [step.step for step in steps] == list(range(7))
        assert [step.loss for step in steps] == alone.losses
        assert np.array_equal(vectors.snapshot_N, expected_N)

    asyncio.run(life())


def test_own_data_count_as_whole_samples_and_no_more_than_are_leased(config, attached):
    own = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, own=True))
    length = config.data.sequence_length

    def loop(replica, _):
        while replica.step(2 * length + length // 2, loss=1.0):
            pass

    async def life():
        steps = []
        async with attached(loop, config=own) as (trainer, errors):
            await trainer.train(Train(first_step=3, spans=((0, 4), (9, 12))), on_step=steps.append)
            assert [(s.step, s.num_samples) for s in steps] == [(3, 2), (4, 3), (5, 2)]
        assert not errors

    asyncio.run(life())


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda replica: replica.step(16, loss=1.0), "this run deals out its data"),
        (lambda replica: replica.step(loss=1.0), "a step on no batch"),
        (lambda replica: replica.step(16, loss=float("nan")), "diverged at inner step 5"),
        (lambda replica: [*zip(range(2), replica.batches(), strict=False)], "without a step"),
    ],
)
def test_misuse_is_an_error_and_ends_the_peer_alone(config, attached, step, expected):
    async def life():
        async with attached(lambda replica, _: step(replica)) as (trainer, errors):
            with pytest.raises(TrainerDied, match="the loop that trains has ended"):
                await trainer.train(work(config, first_step=5, num_steps=2), on_step=ignore)
        assert expected in str(errors[0])

    asyncio.run(life())


def test_an_agent_that_dies_is_an_error_of_the_next_step(config, attached):
    async def life():
        async with attached(plain_loop) as (trainer, errors):
            with pytest.raises(TrainerDied):
                await trainer.train(
                    work(config, first_step=0, num_steps=10**6),
                    on_step=lambda _: trainer.kill(),
                )
        assert "the agent has ended with exit code 0" in str(errors[0])

    asyncio.run(life())


class Named(torch.nn.Module):
    """A model with other names and maybe other shapes."""

    def __init__(self, model, rename):
        super().__init__()
        self.parameters_by_name = {rename(n): p for n, p in model.named_parameters()}

    def named_parameters(self, *_, **__):
        yield from self.parameters_by_name.items()


def test_knows_its_own_names_and_those_of_hugging_face_and_given_ones(config):
    model = Llama(config.model)
    ours = dict(model.named_parameters())
    for rename, names in (
        (str, None),
        (hf_name, None),
        (str.upper, {name.upper(): name for name in ours}),
    ):
        inner = _Inner(config, Named(model, rename), None, names)
        found = dict(inner.model.named_parameters())
        assert found.keys() == ours.keys()
        assert all(found[name] is ours[name] for name in ours)


def test_another_model_is_refused(config):
    wider = msgspec.structs.replace(config.model, ffn_width=48)
    for model, problem in (
        (Llama(wider), r"layers.0.ffn.down.weight is \(16, 48\) and not \(16, 32\), and 5 more"),
        (Llama(config.model).bfloat16(), "is torch.bfloat16 and not fp32"),
        (Named(Llama(config.model), str.upper), r"embedding.weight is missing, and \d+ more"),
    ):
        with pytest.raises(ConfigError, match=problem):
            _Inner(config, model, None, None)
