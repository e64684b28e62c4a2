"""Files on disks that fill up, and what is no error of a disk."""

import errno
from io import RawIOBase

import pytest

from atoll.durable import disk_errors, is_refusal, write_all
from atoll.errors import RunError


class Filling(RawIOBase):
    """A file on a disk that has room for so many bytes, and takes 100 at a time."""

    def __init__(self, room):
        self.room = room
        self.content = b""

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(content[: min(100, self.room)])
        self.room -= len(taken)
        self.content += taken
        return len(taken)


def test_all_of_it_is_written_or_it_is_an_error(tmp_path):
    content = bytes(range(250))
    enough, short = Filling(250), Filling(249)
    write_all(enough, content)
    assert enough.content == content
    with pytest.raises(RunError, match=r"cannot write .*: No space left"), disk_errors(tmp_path):
        write_all(short, content)


def test_a_silence_of_the_network_is_none_of_the_disk(tmp_path):
    with pytest.raises(TimeoutError), disk_errors(tmp_path):
        raise TimeoutError


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("no state"), False),
    ],
)
def test_what_a_process_is_refused_says_nothing_of_the_file(error, is_one):
    assert is_refusal(error) == is_one
