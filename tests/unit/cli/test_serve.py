"""What `atoll serve` refuses before it loads anything; and whom it does not wait for."""

import asyncio
import socket
from contextlib import suppress

import pytest

from atoll.cli.serve import server_of
from atoll.net import http_connection


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "reef.example"])
def test_a_network_needs_a_key(atoll, host):
    outcome = atoll("serve", "my-run", "--listen", host)
    assert outcome.code == 2
    assert f"whoever reaches {host}" in outcome.err
    assert "--key" in outcome.err


def test_a_port_that_is_taken(atoll):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = atoll("serve", "my-run", "--port", taken.getsockname()[1])
    assert outcome.code == 1
    assert "cannot listen at 127.0.0.1" in outcome.err
    assert "--port" in outcome.err


def test_who_takes_nothing_of_an_answer_or_asks_for_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_S", 0.1)

    async def main():
        ended = asyncio.Event()

        async def endless(scope, receive, send):
            """Answer for as long as somebody takes it."""
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            leaving = asyncio.create_task(receive_all(receive))
            while not leaving.done():
                body = {"type": "http.response.body", "body": bytes(2**16), "more_body": True}
                await send(body)
                await asyncio.sleep(0)
            ended.set()

        server = server_of(endless)
        server.config.lifespan = "off"
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as deaf:
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            deaf.connect(listening.getsockname())
            deaf.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await ended.wait()
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            server.should_exit = True
            await serving

    asyncio.run(main())


async def receive_all(receive):
    while (await receive())["type"] != "http.disconnect":
        pass
