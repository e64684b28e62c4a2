import asyncio
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from shutil import rmtree

import pytest

from atoll.errors import BadBlobError, RunError
from atoll.exchange.blobs import BlobStore
from atoll.ids import digest_of

PAYLOAD = bytes(range(256)) * 8
DIGEST = digest_of(PAYLOAD)


@contextmanager
def disk_full_after(num_bytes):
    """Let every file that grows beyond `num_bytes` fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_blob_is_here_under_its_name_also_after_a_restart(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    assert not store.has(DIGEST)
    assert store.get(DIGEST) is None
    assert store.locate(DIGEST) is None
    store.put(DIGEST, bytearray(PAYLOAD))
    store.put(DIGEST, PAYLOAD)
    for opened in (store, BlobStore(tmp_path / "blobs")):
        assert opened.has(DIGEST)
        assert opened.get(DIGEST) == PAYLOAD
        path, offset, num_bytes = opened.locate(DIGEST)
        assert path.read_bytes()[offset : offset + num_bytes] == PAYLOAD


def test_bytes_of_another_name_are_refused(tmp_path):
    store = BlobStore(tmp_path)
    with pytest.raises(BadBlobError, match=DIGEST):
        store.put(DIGEST, PAYLOAD[:-1])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_blob_is_not_here(tmp_path):
    store = BlobStore(tmp_path)
    store.put(DIGEST, PAYLOAD)
    store.locate(DIGEST).path.write_bytes(b"x" + PAYLOAD[1:])
    assert store.get(DIGEST) is None
    assert not store.has(DIGEST)


def test_a_damaged_blob_is_mended_by_putting_it_again(tmp_path):
    store = BlobStore(tmp_path)
    store.put(DIGEST, PAYLOAD)
    store.locate(DIGEST).path.write_bytes(b"x" + PAYLOAD[1:])
    store.put(DIGEST, PAYLOAD)
    assert store.get(DIGEST) == PAYLOAD


def test_a_sweep_takes_what_nobody_names_once_it_is_two_turns_old(tmp_path):
    BlobStore(tmp_path).put(digest_of(b"before"), b"before")
    store = BlobStore(tmp_path)
    store.put(digest_of(b"named"), b"named")

    def left_after_turn(payload):
        store.turn()
        store.put(digest_of(payload), payload)
        store.sweep({digest_of(b"named")})
        candidates = (b"before", b"named", b"1", b"2", b"3")
        return [one for one in candidates if store.has(digest_of(one))]

    assert left_after_turn(b"1") == [b"before", b"named", b"1"]
    assert left_after_turn(b"2") == [b"named", b"1", b"2"]
    assert left_after_turn(b"3") == [b"named", b"2", b"3"]


def test_files_of_swept_blobs_are_written_over_and_what_is_left_of_them_goes(tmp_path):
    store = BlobStore(tmp_path, young_turns=0)
    long, short, last = bytes(5000), b"short", b"last"
    store.put(digest_of(long), long)
    store.put(DIGEST, PAYLOAD)
    inodes = {path.stat().st_ino for path in tmp_path.iterdir()}
    store.turn()
    store.sweep(())
    assert not store.has(DIGEST)
    assert store.locate(digest_of(long)) is None
    for payload in (short, PAYLOAD):
        store.put(digest_of(payload), payload)
    assert {path.stat().st_ino for path in tmp_path.iterdir()} == inodes
    assert [store.get(digest_of(one)) for one in (short, PAYLOAD, long)] == [short, PAYLOAD, None]

    store.turn()
    store.put(digest_of(last), last)
    store.sweep(())  # two spares: nobody writes over one of them
    store.put(digest_of(short), short)
    store.turn()
    store.sweep({digest_of(last)})
    store.turn()
    store.sweep({digest_of(last)})
    assert [path.name for path in tmp_path.iterdir()] == [digest_of(last)]


def test_a_blob_of_the_same_name_as_a_swept_one_is_put_again(tmp_path):
    store = BlobStore(tmp_path, young_turns=0)
    for _ in range(3):
        store.put(DIGEST, PAYLOAD)
        assert store.get(DIGEST) == PAYLOAD
        store.turn()
        store.sweep(())
        assert store.get(DIGEST) is None


def test_an_old_blob_that_is_put_again_in_the_middle_of_a_sweep_stays(tmp_path):
    store = BlobStore(tmp_path)
    store.put(DIGEST, PAYLOAD)
    for _ in range(2):
        store.turn()

    class PutWhenLookedFor(tuple):
        def __contains__(self, digest):
            store.put(digest, PAYLOAD)
            return False

    store.sweep(PutWhenLookedFor())
    assert store.get(DIGEST) == PAYLOAD
    for _ in range(2):
        store.turn()
    store.sweep(())
    assert store.get(DIGEST) is None


def test_what_a_crash_left_is_removed(tmp_path):
    (tmp_path / ".tmp-1").write_bytes(b"half")
    BlobStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_blobs_that_are_there(tmp_path):
    store = BlobStore(tmp_path)
    store.put(DIGEST, PAYLOAD)
    large = bytes(10_000)
    with disk_full_after(5000), pytest.raises(RunError, match="cannot write") as caught:
        store.put(digest_of(large), large)
    assert "free some space" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [DIGEST]
    assert store.get(DIGEST) == PAYLOAD


def test_a_flush_is_over_with_what_was_swept_meanwhile(tmp_path):
    store = BlobStore(tmp_path)
    store.put(DIGEST, PAYLOAD)
    for _ in range(2):
        store.turn()
    store.sweep(())
    assert not store.has(DIGEST)
    store.flush()
    store.put(DIGEST, PAYLOAD)
    store.flush()
    assert store.get(DIGEST) == PAYLOAD


def test_a_disk_that_is_gone_is_said_by_a_flush_that_has_something_to_do(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    store.put(DIGEST, PAYLOAD)
    rmtree(tmp_path / "blobs")
    with pytest.raises(RunError, match="blobs"):
        store.flush()
    store.flush()


def test_a_place_that_is_no_directory_is_said_so(tmp_path):
    (tmp_path / "blobs").write_bytes(b"")
    with pytest.raises(RunError, match="blobs"):
        BlobStore(tmp_path / "blobs")


def test_what_is_kept_soon_is_kept_together_and_each_hears_of_its_own(tmp_path):
    async def main():
        store = BlobStore(tmp_path)
        payloads = [bytes([index]) * 1000 for index in range(5)]
        large = bytes(10_000)
        keeping = [
            asyncio.ensure_future(store.keep_soon(digest_of(payload), payload))
            for payload in (*payloads, large)
        ]
        await asyncio.sleep(0)
        keeping[0].cancel()
        with disk_full_after(5000):
            outcomes = await asyncio.gather(*keeping, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1:5] == [None] * 4
        assert isinstance(outcomes[5], RunError)
        assert [store.get(digest_of(payload)) for payload in payloads[1:]] == payloads[1:]
        assert not store.has(digest_of(large))
        await store.keep_soon(digest_of(large), large)
        assert store.get(digest_of(large)) == large

    asyncio.run(main())


def test_who_waits_hears_that_there_is_no_thread_to_keep_it(tmp_path):
    async def main():
        threads = ThreadPoolExecutor(1)
        threads.shutdown()
        asyncio.get_running_loop().set_default_executor(threads)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await BlobStore(tmp_path).keep_soon(digest_of(b"x"), b"x")

    asyncio.run(main())


def test_many_threads_may_put_at_once(tmp_path):
    store = BlobStore(tmp_path)
    payloads = [bytes([index % 5]) * 1000 for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda payload: store.put(digest_of(payload), payload), payloads))
    assert {store.get(digest_of(payload)) for payload in payloads} == set(payloads)
    assert len(list(tmp_path.iterdir())) == 5
