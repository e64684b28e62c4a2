import pytest

from atoll.exchange import buffers
from atoll.exchange.buffers import Buffers


def test_buffers_that_are_in_use_are_distinct():
    free = Buffers()
    taken = [free.take(100) for _ in range(3)]
    assert len({id(buffer) for buffer in taken}) == 3
    assert [len(buffer) for buffer in taken] == [100] * 3
    free.give(taken[0])
    assert free.take(100) is taken[0]
    assert all(free.take(100) is not buffer for buffer in taken)


def test_one_that_was_given_serves_its_own_size_alone():
    free = Buffers()
    given = free.take(100)
    free.give(given)
    assert len(free.take(99)) == 99
    assert len(free.take(101)) == 101
    assert free.take(100) is given


@pytest.mark.parametrize("num_bytes", [100, 400])
def test_only_so_many_bytes_are_kept(monkeypatch, num_bytes):
    monkeypatch.setattr(buffers, "MOST_BYTES", 1000)
    free = Buffers()
    for _ in range(2):  # what is taken again makes room
        taken = [free.take(num_bytes) for _ in range(20)]
        known = {id(buffer) for buffer in taken}
        for buffer in taken:
            free.give(buffer)
        again = [free.take(num_bytes) for _ in range(20)]
        assert len(known & {id(buffer) for buffer in again}) == 1000 // num_bytes
        for buffer in again:
            free.give(buffer)
