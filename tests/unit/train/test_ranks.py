"""Ranks without torch: who ends with whom. What they compute is in tests/numerics/test_ranks.py."""

import socket
import subprocess
import sys

WAITS_FOR_EVER = """
import socket, threading
from atoll.train.ranks import end_with
line = socket.socket(fileno=0)
end_with(line)
print("ready", flush=True)
threading.Event().wait()
"""


def test_a_follower_ends_when_rank_0_does_whatever_it_waits_for():
    ours, theirs = socket.socketpair()
    with theirs:
        follower = subprocess.Popen(
            [sys.executable, "-c", WAITS_FOR_EVER], stdin=theirs, stdout=subprocess.PIPE
        )
    try:
        with ours, follower.stdout:
            assert follower.stdout.readline() == b"ready\n"
            ours.sendall(b"a command that nobody reads")
            assert follower.poll() is None
        assert follower.wait(timeout=60) == 1
    finally:
        follower.kill()
        follower.wait()
