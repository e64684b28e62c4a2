"""What differs between operating systems: signals, what a stream can write, ports."""

import io
import subprocess
import sys

import pytest

from atoll import system

SERVICE = """
import asyncio
from atoll import system

async def serve():
    print("serving", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("ended in order", flush=True)

system.end_as_with_ctrl_c()
try:
    asyncio.run(serve())
except KeyboardInterrupt:
    print("as with Ctrl-C")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no shell that ignores Ctrl-C for its children")
@pytest.mark.parametrize("ignored", ["INT", "HUP"])
@pytest.mark.parametrize("asked", ["TERM", "INT"])
def test_who_was_put_in_the_background_by_a_script_ends_in_order_when_asked(ignored, asked):
    """`atoll host &` in a script ignores Ctrl-C at first, `nohup` a terminal that closes."""
    command = ["sh", "-c", f'trap \'\' {ignored}; exec "$0" -c "$1"', sys.executable, SERVICE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout.readline() == "serving\n"
        subprocess.run(["sh", "-c", f"kill -{asked} {service.pid}"], check=True)
        assert service.stdout.read() == "ended in order\nas with Ctrl-C\n"
        assert service.wait() == 0


TYPING = """
import termios
from atoll import system

def is_seen():
    return bool(termios.tcgetattr(0)[3] & termios.ECHO)

before = is_seen()
with system.unseen_keys():
    meanwhile = is_seen()
print(before, meanwhile, is_seen())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_what_is_typed_while_a_picture_is_shown_is_not_written_into_it():
    on_a_terminal = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", on_a_terminal, TYPING]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["True", "False", "True"]


def test_a_stream_writes_what_it_can():
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="cp1252")
    system.write_what_can_be_written(stream, io.StringIO())
    stream.write("São Paulo ▁▂ 東京")
    stream.flush()
    assert content.getvalue().decode("cp1252") == "São Paulo ?? ??"
