"""What differs between operating systems: signals, what a stream can write, ports."""

import io
import platform
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


ROUNDS = """
import sys
from resource import RUSAGE_SELF, getrusage
from atoll import system

if sys.argv[1] == "keep":
    system.keep_freed_memory()
for _ in range(2):
    before = getrusage(RUSAGE_SELF).ru_minflt
    held = [bytearray(20 * 2**20) for _ in range(6)]
    del held
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_costs_no_new_pages():
    """In the second round. Pages may be large: no number of them is certain without it."""
    fresh, kept = (
        int(subprocess.check_output([sys.executable, "-c", ROUNDS, how])) for how in ("", "keep")
    )
    assert kept < 100
    assert kept < fresh
