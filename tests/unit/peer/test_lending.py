"""What joiners get of the inner optimizers that a peer has saved."""

import asyncio
from dataclasses import dataclass

import pytest

from atoll.ids import RoundId, digest_of
from atoll.outer.manifest import CHUNK_BYTES
from atoll.peer.lending import IN_USE_S, Lending


@dataclass
class Clock:
    now: float = 0.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lending(home, clock):
    return Lending(home, now=lambda: clock.now)


def save(home, round_id):
    """Put moments of a chunk and a half on the disk; return them."""
    content = bytes([round_id]) * (3 * CHUNK_BYTES // 2)
    home.inner_path(RoundId(round_id)).write_bytes(content)
    return content


def offered(lending):
    """Return what a joiner fetches, all in one."""
    offer = asyncio.run(lending.offer())
    if offer is None:
        return None
    content = b""
    for digest in offer.chunks:
        path, start, num_bytes = lending.locate(digest)
        chunk = path.read_bytes()[start : start + num_bytes]
        assert digest_of(chunk) == digest
        content += chunk
    assert len(content) == offer.num_bytes
    return content


def test_nothing_is_offered_before_something_is_saved(home, lending):
    assert offered(lending) is None
    assert lending.locate(digest_of(b"?")) is None
    (home.directory / "inner" / "000003.safetensors.partial").write_bytes(b"half")
    assert offered(lending) is None


def test_the_newest_moments_are_offered_and_those_in_use_stay(home, lending, clock):
    save(home, 3)
    four = save(home, 4)
    assert offered(lending) == four
    five = save(home, 5)
    home.forget_inner_before(RoundId(5))
    clock.now += IN_USE_S - 1
    assert offered(lending) == four, "somebody may be in the middle of it"
    clock.now += IN_USE_S + 1
    assert offered(lending) == five
    home.forget_inner_before(RoundId(5))
    assert [path.name for path in (home.directory / "inner").iterdir()] == ["000005.safetensors"]


def test_moments_that_vanish_while_they_are_looked_at_are_not_lent(home, lending):
    gone = home.inner_path(RoundId(9))
    gone.symlink_to(home.directory / "nowhere")
    assert offered(lending) is None
    gone.unlink()
    four = save(home, 4)
    assert offered(lending) == four
