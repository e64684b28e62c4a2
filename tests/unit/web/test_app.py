"""What a browser is told, and what somebody gets who means ill, on real sockets."""

import asyncio
import json
import re
import resource
import socket
from contextlib import AsyncExitStack, suppress

import pytest
from tests.unit.virtual import now, run
from tests.unit.web.cast import Seen

from atoll.errors import RunError
from atoll.net import http_connection
from atoll.web import admin
from atoll.web.app import STALLED_S, application
from atoll.web.server import serving
from atoll.web.stream import BEAT_S, Stream

LOOPBACK = "127.0.0.1"


# --- the page ------------------------------------------------------------------------------------


def test_the_page_and_all_that_it_names_are_there_and_come_from_nowhere_else(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    texts = [page.text]
    for path in set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)):
        answer = client.get(path)
        assert answer.status_code == 200
        texts.append(answer.text)
        for imported in re.findall(r'from "\./([\w.]+)"', answer.text):
            texts.append(client.get(f"/static/{imported}").text)
    text = re.sub(r"<code>.*?</code>", "", "".join(texts))  # what people are to type
    outside = re.findall(r"https?://[^\s\"')]+", text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}
    assert len(texts) > 3


def test_a_browser_is_told_to_ask_nobody_else(client):
    for path in ("/", "/api/v1/overview", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "set-cookie" not in headers


def test_a_file_that_the_browser_has_is_not_sent_again(client):
    tag = client.get("/static/style.css").headers["etag"]
    again = client.get("/static/style.css", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


# --- on a real port ------------------------------------------------------------------------------


def served(test, **options):
    """Run the test against a dashboard that listens."""

    async def main():
        seen, failures = Seen.new(), []
        seen.gather(2)
        note = failures.append
        async with serving(seen.board, host=LOOPBACK, port=0, on_failure=note, **options) as port:
            await test(seen, port)
        assert failures == []

    asyncio.run(main())


async def ask(port, text: bytes):
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(text)
    return reader, writer


async def answer_of(port, text: bytes) -> bytes:
    reader, writer = await ask(port, text)
    answer = await reader.read()
    writer.close()
    return answer


GET = b"GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def events_of(reader):
    """Yield the events of a stream, decoded."""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            data = await reader.readline()
            yield line[7:].strip().decode(), json.loads(data.removeprefix(b"data: "))


def test_a_stream_on_a_real_socket_tells_of_what_happens():
    async def test(seen, port):
        reader, writer = await ask(port, GET % b"/api/v1/stream")
        events = events_of(reader)
        kind, snapshot = await anext(events)
        assert (kind, [peer["name"] for peer in snapshot["peers"]]) == (
            "snapshot",
            ["peer-0", "peer-1"],
        )
        seen.lost(next(iter(seen.board.fold.peers)))
        while not (news := await anext(events))[1].get("peers"):
            pass
        assert news[1]["peers"]["0"]["doing"] == "away"
        writer.close()

    served(test)


def test_whoever_watches_is_told_when_the_host_stops():
    async def main():
        seen = Seen.new()
        async with serving(seen.board, host=LOOPBACK, port=0, on_failure=pytest.fail) as port:
            reader, writer = await ask(port, GET % b"/api/v1/stream")
            events = events_of(reader)
            await anext(events)
        kinds = [kind async for kind, _ in events]
        assert kinds[-1] == "end"
        writer.close()

    asyncio.run(main())


def test_a_body_that_nobody_wants_is_not_read():
    async def test(_, port):
        head = b"POST /api/v1/overview HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000000\r\n\r\n"
        reader, writer = await ask(port, head + bytes(1000))
        assert b"405" in await reader.readline()
        writer.close()

    served(test)


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(admin, "BODY_S", 0.1)

    async def test(_, port):
        head = b"POST /api/v1/admin/pause HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        assert b" 408 " in await answer_of(port, head)

    served(test, admin=admin.Admin(NobodyAsks(), token="f" * 64))


class NobodyAsks:
    """An operator that is never reached."""


@pytest.mark.parametrize(
    "text",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000, b"\0" * 100],
)
def test_what_is_not_http_ends_that_connection_alone(text):
    async def test(_, port):
        with suppress(ConnectionResetError):  # it was closed while we still sent
            assert b" 400 " in await answer_of(port, text)
        assert b"200 OK" in await answer_of(port, GET % b"/")

    served(test)


def test_a_connection_that_asks_for_nothing_ends(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_S", 0.1)

    async def test(_, port):
        assert await answer_of(port, b"") == b""
        assert await answer_of(port, b"GET / HTTP/1.1\r\nhost: ") == b""

    served(test)


def test_a_connection_that_never_ends_its_second_request_ends(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_S", 0.1)

    async def test(_, port):
        reader, writer = await ask(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\nG")
        assert b"200 OK" in await reader.readline()
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    served(test)


def test_answers_that_are_not_taken_end_their_connection(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_S", 0.1)
    monkeypatch.setattr(http_connection, "MAX_CONNECTIONS", 1)

    async def test(_, port):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((LOOPBACK, port))
            deaf.setblocking(False)
            asks = b"GET /static/world.js HTTP/1.1\r\nhost: x\r\n\r\n"
            with suppress(BlockingIOError, ConnectionError):  # more than all buffers take
                deaf.send(asks * 1000)
            answer = b""
            while b"200 OK" not in answer:  # there is room for one
                with suppress(ConnectionResetError):
                    answer = await answer_of(port, GET % b"/")

    served(test)


def test_one_connection_too_many_is_closed_and_the_others_live(monkeypatch):
    monkeypatch.setattr(http_connection, "MAX_CONNECTIONS", 3)

    async def test(_, port):
        async with AsyncExitStack() as stack:
            readers = []
            for _ in range(3):
                reader, writer = await ask(port, GET % b"/api/v1/stream")
                stack.callback(writer.close)
                assert (await anext(events_of(reader)))[0] == "snapshot"
                readers.append(reader)
            assert await answer_of(port, GET % b"/") == b""
            writer.close()
            await writer.wait_closed()
            while b"200 OK" not in await answer_of(port, GET % b"/"):
                pass

    served(test)


def test_most_files_are_left_to_members():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        assert http_connection.most_connections() == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_viewer_that_takes_nothing_is_dropped_and_costs_the_others_nothing():
    """Its sends do not return, as with a connection whose buffers are full."""

    async def main():
        seen = Seen.new()
        seen.gather(1)
        stream = Stream(seen.board)
        telling = asyncio.create_task(stream.run())
        app = application(seen.board, stream)
        scope = {"type": "http", "method": "GET", "path": "/api/v1/stream", "headers": []}
        never = asyncio.Event()

        async def stuck(message):
            if message["type"] == "http.response.body":
                await never.wait()

        async def silent():
            await never.wait()

        deaf = asyncio.create_task(app(scope, silent, stuck))
        watching = stream.watch()
        await anext(watching)
        while not deaf.done():
            await anext(watching)  # deltas and beats come, as if it were not there
        assert STALLED_S <= now() <= STALLED_S + 2 * BEAT_S
        assert stream.num_viewers == 1
        await watching.aclose()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    run(main())


def test_a_port_that_is_taken_is_said_so():
    async def main():
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(RunError, match="cannot serve the dashboard"):
                async with serving(
                    Seen.new().board, host=LOOPBACK, port=port, on_failure=pytest.fail
                ):
                    pass

    asyncio.run(main())


def test_a_dashboard_that_fails_does_not_take_the_host_with_it():
    async def main():
        seen, failures, failed = Seen.new(), [], asyncio.Event()

        def note(why):
            failures.append(why)
            failed.set()

        async with serving(seen.board, host=LOOPBACK, port=0, on_failure=note) as port:
            del seen.board.fold.view  # whatever it may be
            await asyncio.wait_for(failed.wait(), timeout=60)
            assert b"500" in await answer_of(port, GET % b"/api/v1/overview")
        assert "the dashboard has ended" in failures[0]

    asyncio.run(main())
