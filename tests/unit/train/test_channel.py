import asyncio
import socket
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from atoll.config import PeerConfig
from atoll.errors import ConnectionLost, ProtocolError
from atoll.train.channel import (
    MAX_FRAME_BYTES,
    Address,
    Channel,
    Halt,
    Quit,
    Setup,
    Stepped,
    Train,
    Trained,
    frame,
    read_address,
    receive,
    write_address,
)

STEPPED = Stepped(step=3, loss=2.5, num_samples=4, num_tokens=64, seconds=0.1, grad_norm=1.0)


@pytest.fixture
def ends():
    """The agent's socket, and the trainer's channel."""
    agent, trainer = socket.socketpair()
    channel = Channel(trainer)
    agent.settimeout(10)
    trainer.settimeout(10)
    with agent, trainer:
        yield agent, channel


def read(data: bytes):
    async def receive_from_memory():
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await receive(reader)

    return asyncio.run(receive_from_memory())


def test_commands_arrive_in_order_and_whole(config, ends):
    agent, channel = ends
    setup = Setup(config=config, peer=PeerConfig(directory="d"), vectors="v", dataset="s")
    work = Train(first_step=7, spans=((0, 4), (9, 12)))
    agent.sendall(frame(setup) + frame(work) + frame(Quit()))
    assert [channel.receive() for _ in range(3)] == [setup, work, Quit()]


def test_answers_arrive(ends):
    agent, channel = ends
    trained = Trained()
    channel.send(STEPPED)
    channel.send(trained)
    sent = agent.recv(1000)
    first = frame(STEPPED)
    assert (read(sent), read(sent[len(first) :])) == (STEPPED, trained)


def test_news_is_a_message_or_the_end(ends):
    agent, channel = ends
    assert not channel.has_news()
    agent.sendall(frame(Halt()))
    assert channel.has_news()
    channel.receive()
    assert not channel.has_news()
    agent.close()
    assert channel.has_news()
    with pytest.raises(ConnectionLost):
        channel.receive()


def test_sending_to_an_agent_that_is_gone_is_a_lost_connection(ends):
    agent, channel = ends
    agent.close()
    with pytest.raises(ConnectionLost):
        channel.send(STEPPED)


def test_no_agent_to_connect_to_is_a_lost_connection():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionLost):
        Channel.connect(Address(port=port, token="t"))


def test_an_address_survives_its_line():
    address = Address(port=65535, token="0f" * 16)
    line = write_address(address)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert read_address(line) == address


@pytest.mark.parametrize("num_bytes", [0, 1, 3, 4, 10])
def test_half_a_frame_is_a_lost_connection(ends, num_bytes):
    agent, channel = ends
    with pytest.raises(ConnectionLost):
        read(frame(STEPPED)[:num_bytes])
    agent.sendall(frame(Train(first_step=0, spans=()))[:num_bytes])
    agent.close()
    with pytest.raises(ConnectionLost):
        channel.receive()


def test_a_length_beyond_the_limit_is_refused_before_it_is_read():
    with pytest.raises(ProtocolError, match="at most"):
        read((MAX_FRAME_BYTES + 1).to_bytes(4))
    with pytest.raises(ProtocolError, match="at most"):
        frame(Train(first_step=0, spans=((2**60, 2**61),) * (MAX_FRAME_BYTES // 19)))


@given(st.binary(max_size=100))
def test_garbage_is_a_protocol_error_and_nothing_else(payload):
    with suppress(ProtocolError):
        read(len(payload).to_bytes(4) + payload)


def test_an_agents_message_is_none_for_an_agent():
    with pytest.raises(ProtocolError):
        read(frame(Halt()))
