"""A joiner fetches a state, or the dataset, from members of which some fail it."""

import asyncio
import resource
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
from filelock import FileLock
from tests.unit.data.whole import assert_whole
from tests.unit.exchange.cast import A, B, C, D, reducers, server
from tests.unit.memory import Network
from tests.unit.virtual import now, run

from atoll.data import manifest as dataset_manifest
from atoll.data.manifest import Manifest, Shard
from atoll.data.shards import Dataset
from atoll.errors import BadBlobError, DamagedError, PeerError, RunError
from atoll.exchange.joiners import AT_ONCE, AWAY_S
from atoll.exchange.links import Links
from atoll.exchange.serve import BlobServer
from atoll.exchange.statesync import (
    BUSY_S,
    Fetched,
    fetch_dataset,
    fetch_inner,
    fetch_state,
    fetch_tokenizer,
)
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net import wire
from atoll.outer.checkpoint import StateStore
from atoll.outer.manifest import CHUNK_BYTES, manifest_of
from atoll.outer.state import PeerState
from atoll.units import GIB

RUN = digest_of(b"run")
SIZE = 3 * CHUNK_BYTES // 8 - 100  # values: three chunks
PORTS = {B: 1, C: 2, D: 3}


@dataclass
class Sources:
    """Members that serve blobs from files; `asked` is what each was asked for."""

    network: Network = field(default_factory=Network)
    asked: dict[PeerId, list[str]] = field(default_factory=dict)

    async def serve(self, tmp_path, peer, locate, *, dies_after=1000):
        """Let this member serve; it dies when it was asked so many times."""
        asked = self.asked[peer] = []

        def noted(digest):
            asked.append(digest)
            if len(asked) > dies_after:
                self.network.cut(peer)
                self.network.unreachable.add(PORTS[peer])
            return locate(digest)

        unused, _ = reducers(tmp_path / f"blobs-{peer[:1]}")
        transport = self.network.transport(peer)
        serving = server(unused, Links(transport), locate=[noted])
        await transport.listen(serving.serve, host="h", port=PORTS[peer])

    def links(self):
        return Links(self.network.transport(A))

    def addresses(self, *peers):
        return [wire.Address(peer=peer, host="h", port=PORTS[peer]) for peer in peers or PORTS]

    async def close(self):
        for listener in list(self.network.listeners.values()):
            await listener.close()


# --- a state -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    rng = np.random.default_rng(0)
    params_N, momentum_N = rng.standard_normal((2, SIZE)).astype(np.float32)
    return PeerState(RoundId(7), params_N, momentum_N)


@dataclass
class Joiner:
    state: PeerState
    store: StateStore

    @classmethod
    def at(cls, path):
        return cls(PeerState.initial(np.zeros(SIZE, np.float32)), StateStore(path, keep=2))

    async def fetch(self, sources, digest, *peers):
        return await fetch_state(
            self.state,
            digest,
            sources=sources.addresses(*peers),
            links=sources.links(),
            store=self.store,
            run=RUN,
        )

    def is_untouched(self):
        return self.state.round == 0 and not self.state.params_N.any() and not self.store.rounds()


async def with_state(tmp_path, committed, *, dies_after=None, lacking=()):
    """Return members of which each has the state, but for these chunks, and its manifest."""
    manifest = manifest_of(committed, run=RUN)
    sources = Sources()
    for peer in PORTS:
        store = StateStore(tmp_path / peer[:1], keep=2)
        store.save(committed, manifest, now=0.0)
        limit = (dies_after or {}).get(peer, 1000)
        lost = {manifest.chunks[index] for index in lacking}
        await sources.serve(
            tmp_path,
            peer,
            lambda d, s=store, lost=lost: None if d in lost else s.locate(d, now=0.0),
            dies_after=limit,
        )
    return sources, manifest


@pytest.mark.parametrize(
    ("dies_after", "lies"),
    [({}, set()), ({}, {C}), ({B: 1}, set()), ({B: 2, C: 0}, set()), ({B: 1}, {D}), ({}, {B, C})],
)
def test_a_state_comes_from_whoever_has_it_though_some_die_or_lie(
    tmp_path, committed, dies_after, lies
):
    async def main():
        sources, manifest = await with_state(tmp_path, committed, dies_after=dies_after)
        sources.network.damaging |= lies
        joiner = Joiner.at(tmp_path / "joiner")
        fetched = await joiner.fetch(sources, manifest.digest)
        assert fetched == Fetched(8 * SIZE + len(manifest.encoded()), 0)
        assert joiner.state.round == 7
        assert np.array_equal(joiner.state.params_N, committed.params_N)
        assert np.array_equal(joiner.state.momentum_N, committed.momentum_N)
        assert joiner.store.rounds() == (7,)
        if not dies_after and not lies:
            assert all(sources.asked.values()), "each has its part in it"
        await sources.close()

    run(main())


@pytest.mark.parametrize(
    ("dies_after", "lies"),
    [({B: 0, C: 0, D: 0}, set()), ({B: 2, C: 0, D: 0}, set()), ({}, {B, C, D})],
)
def test_when_nobody_has_it_any_more_nothing_has_changed(tmp_path, committed, dies_after, lies):
    async def main():
        sources, manifest = await with_state(tmp_path, committed, dies_after=dies_after)
        sources.network.damaging |= lies
        joiner = Joiner.at(tmp_path / "joiner")
        with pytest.raises(PeerError):
            await joiner.fetch(sources, manifest.digest)
        assert joiner.is_untouched()
        with pytest.raises(PeerError, match="none of 0 members"):
            await fetch_state(
                joiner.state,
                manifest.digest,
                sources=[],
                links=sources.links(),
                store=joiner.store,
                run=RUN,
            )
        await sources.close()

    run(main())


@pytest.mark.parametrize("rounds_later", [0, 1])
def test_a_joiner_that_is_killed_fetches_later_what_is_missing(tmp_path, committed, rounds_later):
    """It has one chunk when it ends without a word; perhaps the run has moved on by then."""

    async def main():
        sources, manifest = await with_state(tmp_path, committed, lacking=(0, 2))
        first = Joiner.at(tmp_path / "joiner")
        with pytest.raises(PeerError, match="2 of 3 blobs"):
            await first.fetch(sources, manifest.digest)
        assert first.is_untouched()
        await sources.close()

        newer = PeerState(
            RoundId(7 + rounds_later), committed.params_N.copy(), committed.momentum_N.copy()
        )
        newer.params_N[-1] += rounds_later  # in the last chunk
        sources, manifest = await with_state(tmp_path, newer)
        second = Joiner.at(tmp_path / "joiner")
        fetched = await second.fetch(sources, manifest.digest)
        assert fetched.kept_bytes == CHUNK_BYTES
        assert fetched.num_bytes == 8 * SIZE - CHUNK_BYTES + len(manifest.encoded())
        assert second.state.round == newer.round
        assert np.array_equal(second.state.params_N, newer.params_N)
        await sources.close()

    run(main())


def test_a_state_is_gone_on_with_for_as_long_as_each_attempt_brings_something(tmp_path, committed):
    """First its line fails in the middle, then nobody has what is still missing."""

    async def main():
        joiner = Joiner.at(tmp_path / "joiner")
        sources, manifest = await with_state(tmp_path, committed, dies_after={B: 3})
        with pytest.raises(PeerError, match="1 of 3 blobs"):
            await joiner.fetch(sources, manifest.digest, B)
        assert joiner.store.arriving().digest == manifest.digest
        await sources.close()

        sources, _ = await with_state(tmp_path, committed, lacking=range(3))
        with pytest.raises(PeerError, match="1 of 1 blobs"):
            await joiner.fetch(sources, manifest.digest)
        assert joiner.store.arriving() is None, "the host may know of one that can be had"
        await sources.close()

        sources, _ = await with_state(tmp_path, committed)
        fetched = await joiner.fetch(sources, manifest.digest)
        assert fetched.kept_bytes == 2 * CHUNK_BYTES, "it is there nevertheless"
        await sources.close()

    run(main())


def test_of_many_joiners_some_wait_and_all_are_served(tmp_path, committed):
    """One member has the state; it serves few at a time."""

    async def main():
        sources, manifest = await with_state(tmp_path, committed)
        joiners = [Joiner.at(tmp_path / f"joiner{number}") for number in range(2 * AT_ONCE + 1)]

        async def join(number, joiner):
            links = Links(sources.network.transport(PeerId(f"{number:032x}")))
            await fetch_state(
                joiner.state,
                manifest.digest,
                sources=sources.addresses(B),
                links=links,
                store=joiner.store,
                run=RUN,
            )

        await asyncio.gather(*(join(number, joiner) for number, joiner in enumerate(joiners)))
        assert all(joiner.state.round == 7 for joiner in joiners)
        assert 2 * AWAY_S <= now() < 2 * AWAY_S + 4 * BUSY_S, "three times as many as at once"
        await sources.close()

    run(main())


def test_who_is_always_busy_is_not_waited_for_without_end(tmp_path, committed):
    async def main():
        sources, manifest = await with_state(tmp_path, committed)

        async def busy(connection):
            while True:
                await connection.receive()
                await connection.send(wire.Missing(busy=True))

        await sources.network.listeners[PORTS[B]].close()
        await sources.network.transport(B).listen(busy, host="h", port=PORTS[B])
        with pytest.raises(PeerError, match="none of 1 members"):
            await Joiner.at(tmp_path / "joiner").fetch(sources, manifest.digest, B)
        await Joiner.at(tmp_path / "other").fetch(sources, manifest.digest, B, C)
        await sources.close()

    run(main())


def test_a_source_that_gave_up_last_does_not_cost_what_others_have(tmp_path, committed):
    """B fails while it fetches the last chunk, when the others have nothing left to do."""

    async def main():
        sources, manifest = await with_state(tmp_path, committed)
        held_back = asyncio.Event()

        async def slow(connection):
            await connection.receive()
            await held_back.wait()

        await sources.network.listeners[PORTS[B]].close()
        await sources.network.transport(B).listen(slow, host="h", port=PORTS[B])
        joiner = Joiner.at(tmp_path / "joiner")
        fetching = asyncio.create_task(joiner.fetch(sources, manifest.digest, C, B, D))
        await asyncio.sleep(5)
        assert not fetching.done()
        held_back.set()
        await fetching
        assert joiner.state.round == 7
        await sources.close()

    run(main())


def test_a_manifest_of_another_run_is_refused(tmp_path, committed):
    async def main():
        sources, manifest = await with_state(tmp_path, committed)
        joiner = Joiner.at(tmp_path / "joiner")
        with pytest.raises(BadBlobError, match="another run"):
            await fetch_state(
                joiner.state,
                manifest.digest,
                sources=sources.addresses(),
                links=sources.links(),
                store=joiner.store,
                run=digest_of(b"other"),
            )
        assert joiner.is_untouched()
        await sources.close()

    run(main())


# --- the moments of an inner optimizer ----------------------------------------------------------

MOMENTS = np.random.default_rng(1).bytes(CHUNK_BYTES + 1000)
LIE = MOMENTS[:-1] + b"?"


async def with_moments(tmp_path, moments):
    """Return members that have these moments, by member; None: it does not train."""
    sources = Sources()
    for peer, content in moments.items():
        path = tmp_path / f"moments-{peer[:1]}"
        path.write_bytes(content or b"")
        parts = [content[k : k + CHUNK_BYTES] for k in range(0, len(content or b""), CHUNK_BYTES)]
        places = {
            digest_of(part): (path, k * CHUNK_BYTES, len(part)) for k, part in enumerate(parts)
        }

        async def offer(content=content, digests=tuple(places)):
            return None if content is None else wire.Inner(num_bytes=len(content), chunks=digests)

        asked = sources.asked[peer] = []

        def noted(digest, asked=asked, places=places):
            asked.append(digest)
            return places.get(digest)

        unused, _ = reducers(tmp_path / f"blobs-{peer[:1]}")
        transport = sources.network.transport(peer)
        serving = BlobServer(
            reducers=unused,
            updates=lambda _: None,
            states=[noted],
            links=Links(transport),
            inner=offer,
        )
        await transport.listen(serving.serve, host="h", port=PORTS[peer])
    return sources


async def fetched_inner(tmp_path, sources, *, at_most=2 * CHUNK_BYTES):
    def check(path):
        if path.read_bytes() != MOMENTS:
            raise BadBlobError("a lie")

    donor = await fetch_inner(
        tmp_path / "inner",
        check,
        sources=sources.addresses(),
        links=sources.links(),
        at_most=at_most,
    )
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("inner")]
    return donor, left


@pytest.mark.parametrize("fault", ["does not train", "lies", "damages", "is gone"])
def test_a_donor_that_is_no_good_costs_itself_alone(tmp_path, fault):
    async def main():
        first = {"does not train": None, "lies": LIE}.get(fault, MOMENTS)
        sources = await with_moments(tmp_path, {B: first, C: MOMENTS, D: MOMENTS})
        if fault == "damages":
            sources.network.damaging.add(B)
        if fault == "is gone":
            sources.network.unreachable.add(PORTS[B])
        assert await fetched_inner(tmp_path, sources) == (C, ["inner"])
        assert (tmp_path / "inner").read_bytes() == MOMENTS
        await sources.close()

    run(main())


def test_without_a_good_donor_there_is_nothing(tmp_path):
    async def main():
        sources = await with_moments(tmp_path, {B: None, C: LIE, D: LIE})
        assert await fetched_inner(tmp_path, sources) == (None, [])
        await sources.close()

    run(main())


def test_of_moments_that_had_arrived_from_the_same_donor_only_the_rest_is_fetched(tmp_path):
    """As after a kill in mid-transfer, with a chunk cut in two. Another donor has others."""

    async def main():
        arriving = tmp_path / "arriving"
        arriving.write_bytes(MOMENTS[: CHUNK_BYTES + 100])
        sources = await with_moments(tmp_path, {B: MOMENTS})
        assert await fetched_inner(tmp_path, sources) == (B, ["inner"])
        assert (tmp_path / "inner").read_bytes() == MOMENTS
        assert sources.asked[B] == [digest_of(MOMENTS[CHUNK_BYTES:])]
        assert not arriving.exists()
        await sources.close()

        arriving.write_bytes(LIE + b"of a file that was longer")
        sources = await with_moments(tmp_path, {C: MOMENTS})
        assert await fetched_inner(tmp_path, sources) == (C, ["inner"])
        assert (tmp_path / "inner").read_bytes() == MOMENTS
        await sources.close()

    run(main())


def test_more_than_an_inner_optimizer_can_have_is_not_fetched(tmp_path):
    async def main():
        sources = await with_moments(tmp_path, {B: MOMENTS, C: MOMENTS, D: MOMENTS})
        limit = len(MOMENTS) - 1
        assert await fetched_inner(tmp_path, sources, at_most=limit) == (None, [])
        await sources.close()

    run(main())


def test_a_donor_that_hangs_is_not_waited_for_for_ever(tmp_path):
    async def main():
        sources = await with_moments(tmp_path, {B: MOMENTS, C: MOMENTS, D: MOMENTS})

        async def hang(connection):
            await connection.receive()
            await asyncio.sleep(1e6)

        await sources.network.listeners[PORTS[B]].close()
        await sources.network.transport(B).listen(hang, host="h", port=PORTS[B])
        assert await fetched_inner(tmp_path, sources) == (C, ["inner"])
        await sources.close()

    run(main())


# --- the dataset ---------------------------------------------------------------------------------


@dataclass
class Original:
    """A dataset on the disk of a member."""

    folder: object
    digest: str
    files: dict

    @classmethod
    def make(cls, folder):
        folder.mkdir()
        contents = {"tokenizer.json": b"{}" * 50}
        shards = []
        for split, index, num_samples in (("train", 0, 6), ("train", 1, 4), ("validation", 0, 2)):
            content = np.arange(num_samples * 8 + 1, dtype="<u2").tobytes() + b""
            shard = Shard(
                split=split,
                source=0,
                index=index,
                num_samples=num_samples,
                digest=digest_of(content),
            )
            shards.append(shard)
            contents[shard.file] = content
        manifest = dataset_manifest.to_bytes(
            Manifest(
                key=digest_of(b"key"),
                sequence_length=8,
                token_bytes=2,
                start_token=0,
                weights=(1.0,),
                tokenizer=digest_of(contents["tokenizer.json"]),
                tokenizer_bytes=100,
                shards=tuple(shards),
            )
        )
        contents["manifest.json"] = manifest
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        files = {digest_of(content): folder / name for name, content in contents.items()}
        return cls(folder, digest_of(manifest), files)

    def locate(self, digest):
        path = self.files.get(digest)
        return None if path is None else (path, 0, path.stat().st_size)


async def with_dataset(tmp_path, *, dies_after=None):
    original = Original.make(tmp_path / "original")
    sources = Sources()
    for peer in (B, C):
        limit = (dies_after or {}).get(peer, 1000)
        await sources.serve(tmp_path, peer, original.locate, dies_after=limit)
    return sources, original


async def fetched(sources, digest, cache):
    return await fetch_dataset(
        digest, sources=sources.addresses(B, C), links=sources.links(), cache=cache
    )


def test_another_dataset_under_that_name_in_the_cache_is_damage(tmp_path):
    async def main():
        sources, original = await with_dataset(tmp_path)
        digest = digest_of(b"another")
        shutil.copytree(original.folder, tmp_path / "cache" / digest)
        with pytest.raises(DamagedError, match="another dataset") as caught:
            await fetched(sources, digest, tmp_path / "cache")
        assert "delete the folder" in caught.value.hint
        await sources.close()

    run(main())


@pytest.mark.parametrize("dies_after", [{}, {B: 2}, {C: 0}])
def test_the_dataset_comes_from_the_members_and_the_next_time_from_the_cache(tmp_path, dies_after):
    async def main():
        sources, original = await with_dataset(tmp_path, dies_after=dies_after)
        dataset = await fetched(sources, original.digest, tmp_path / "cache")
        assert_whole(dataset)
        assert dataset.digest == original.digest
        await sources.close()
        again = await fetched(sources, original.digest, tmp_path / "cache")
        assert again.folder == dataset.folder
        assert {p.name for p in dataset.folder.iterdir()} == {
            p.name for p in original.folder.iterdir()
        }

    run(main())


@pytest.mark.parametrize("dies_after", [{}, {B: 1}, {C: 0}])
def test_the_tokenizer_comes_without_the_samples(tmp_path, dies_after):
    async def main():
        sources, original = await with_dataset(tmp_path, dies_after=dies_after)
        content = await fetch_tokenizer(
            original.digest, sources=sources.addresses(B, C), links=sources.links()
        )
        assert content == (original.folder / "tokenizer.json").read_bytes()
        asked = {digest for peer in (B, C) for digest in sources.asked[peer]}
        assert asked == {original.digest, digest_of(content)}
        unknown = digest_of(b"unknown")
        with pytest.raises(PeerError, match="has the dataset"):
            await fetch_tokenizer(unknown, sources=sources.addresses(B, C), links=sources.links())
        await sources.close()

    run(main())


def test_an_interrupted_download_goes_on_with_what_is_whole(tmp_path):
    async def main():
        sources, original = await with_dataset(tmp_path, dies_after={B: 3, C: 0})
        cache = tmp_path / "cache"
        with pytest.raises(PeerError, match="not to be had"):
            await fetched(sources, original.digest, cache)
        partial = cache / f"{original.digest}.partial"
        kept = sorted(partial.iterdir())
        assert kept
        damaged = kept.pop()
        damaged.write_bytes(b"?" * damaged.stat().st_size)
        await sources.close()
        sources = Sources()
        await sources.serve(tmp_path, B, original.locate)
        dataset = await fetched(sources, original.digest, cache)
        assert_whole(dataset)
        asked = sources.asked[B]
        assert digest_of((dataset.folder / damaged.name).read_bytes()) in asked
        for path in kept:
            assert digest_of((dataset.folder / path.name).read_bytes()) not in asked
        await sources.close()

    run(main())


def test_a_dataset_that_is_larger_than_the_disk_is_not_begun(tmp_path):
    num_shards = shutil.disk_usage(tmp_path).free // GIB + 2
    samples = (GIB // 2 - 1) // 8

    def shard(split, index):
        return Shard(
            split=split, source=0, index=index, num_samples=samples, digest=digest_of(b"?")
        )

    manifest = dataset_manifest.to_bytes(
        Manifest(
            key=digest_of(b"key"),
            sequence_length=8,
            token_bytes=2,
            start_token=0,
            weights=(1.0,),
            tokenizer=digest_of(b"?"),
            tokenizer_bytes=100,
            shards=(
                *(shard("train", index) for index in range(num_shards)),
                shard("validation", 0),
            ),
        )
    )
    (tmp_path / "manifest").write_bytes(manifest)

    async def main():
        sources = Sources()
        place = (tmp_path / "manifest", 0, len(manifest))
        await sources.serve(tmp_path, B, lambda _: place)
        with pytest.raises(RunError, match="are free") as caught:
            await fetched(sources, digest_of(manifest), tmp_path / "cache")
        assert "make room" in caught.value.hint
        await sources.close()

    run(main())


def test_a_dataset_that_nobody_has(tmp_path):
    async def main():
        sources, _ = await with_dataset(tmp_path)
        with pytest.raises(PeerError, match="none of 2 members has the dataset"):
            await fetched(sources, digest_of(b"?"), tmp_path / "cache")
        await sources.close()

    run(main())


def test_peers_on_one_machine_wait_for_the_one_that_fetches(tmp_path):
    async def main():
        sources, original = await with_dataset(tmp_path)
        cache = tmp_path / "cache"
        cache.mkdir()
        with FileLock(cache / f"{original.digest}.lock"):
            waiting = asyncio.create_task(fetched(sources, original.digest, cache))
            await asyncio.sleep(10)
            assert not waiting.done()
        assert isinstance(await waiting, Dataset)
        assert now() < 11
        await sources.close()

    run(main())


def test_a_damaged_cache_is_said(tmp_path):
    async def main():
        sources, original = await with_dataset(tmp_path)
        (tmp_path / "cache" / original.digest).mkdir(parents=True)
        with pytest.raises(DamagedError):
            await fetched(sources, original.digest, tmp_path / "cache")
        await sources.close()

    run(main())


def test_without_room_for_it_the_machine_cannot_take_part(tmp_path):
    async def main():
        sources, original = await with_dataset(tmp_path)
        cache = tmp_path / "cache"
        cache.mkdir()
        (cache / f"{original.digest}.partial").write_bytes(b"in the way")
        with pytest.raises(RunError, match="cannot write"):
            await fetched(sources, original.digest, cache)
        (cache / f"{original.digest}.partial").unlink()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
        try:
            with pytest.raises(RunError):
                await fetched(sources, original.digest, cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await sources.close()

    run(main())
