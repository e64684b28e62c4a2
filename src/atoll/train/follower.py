"""The process of a rank that follows rank 0 of its peer; see `ranks`.

python -m atoll.train.follower       standard input: a socket, with rank 0 at its other end
"""

import signal
import sys
from contextlib import closing

from atoll import system
from atoll.train.channel import Channel
from atoll.train.ranks import end_with
from atoll.train.trainer import run


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = system.line_from_parent()
    end_with(connection)
    with closing(Channel(connection)) as channel:
        return run(channel)


if __name__ == "__main__":
    sys.exit(main())
