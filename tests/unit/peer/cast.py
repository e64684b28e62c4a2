"""A member's directory as enrolment leaves it, and commits as its host signs them."""

from pathlib import Path

from atoll.config import run_digest
from atoll.data.manifest import MANIFEST_FILE, SPLITS, Manifest, Shard, to_bytes
from atoll.data.shards import Dataset
from atoll.ids import PeerId, RoundId, digest_of
from atoll.net import records, wire
from atoll.net.authority import Authority
from atoll.net.identity import Identity
from atoll.net.records import (
    NO_HASH,
    Committed,
    Entry,
    Led,
    RosterEntry,
    SliceUpdate,
    entry_hash,
)
from atoll.peer.home import RunFile, write_run_file

HOST_PORT = 7


def empty_dataset(folder: Path) -> Dataset:
    """Return a dataset for those who look at no sample of it."""
    shards = tuple(
        Shard(split=split, source=0, index=0, num_samples=1, digest=digest_of(b"?"))
        for split in SPLITS
    )
    manifest = Manifest(
        key=digest_of(b"key"),
        sequence_length=8,
        token_bytes=2,
        start_token=0,
        weights=(1.0,),
        tokenizer=digest_of(b"?"),
        tokenizer_bytes=100,
        shards=shards,
    )
    content = to_bytes(manifest)
    folder.mkdir()
    (folder / MANIFEST_FILE).write_bytes(content)
    return Dataset(folder, digest_of(content), manifest)


class Enrolled:
    """What a run and one of its members know of each other."""

    def __init__(self, directory: Path, config) -> None:
        self.directory = directory
        self.config = config
        self.authority = Authority.create(run=run_digest(config))
        self.host = PeerId("e" * 32)
        self.identity = Identity.create()
        certificate = self.authority.sign_member(self.identity.public_key, "anna")
        self.identity.certify(certificate, self.authority.certificate)
        self.identity.save(directory)
        write_run_file(
            directory,
            RunFile(
                config=config,
                host="reef",
                port=HOST_PORT,
                host_id=self.host,
                built_in=PeerId("f" * 32),
            ),
        )

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def commit(self, round_id: int, *updates: bytes) -> wire.Commit:
        """Return the announcement of a round with these updates, and one contributor."""
        record = Committed(
            round=RoundId(round_id),
            fragment=0,
            codec=self.config.sync.codec,
            update_codec=self.config.sync.update_codec,
            roster=(
                RosterEntry(
                    peer=PeerId("b" * 32),
                    share=1.0,
                    num_tokens=512,
                    num_steps=2,
                    mean_loss=2.5,
                    leases=(),
                    contribution=digest_of(b"c"),
                ),
            ),
            updates=tuple(SliceUpdate(digest=digest_of(u), num_bytes=len(u)) for u in updates),
        )
        return self.announced(record)

    def leader(self, *, epoch: int, address: str = "reef:7", hosts: tuple = ()) -> wire.Leader:
        """Return how a host says that it leads."""
        led = self.announced(Led(epoch=epoch, address=address, at=0.0))
        return wire.Leader(led=led, hosts=hosts)

    def announced(self, record: records.Record) -> wire.Commit:
        body = records.encode(record)
        digest = entry_hash(seq=9, previous=NO_HASH, body=body)
        signature = self.authority.sign(bytes.fromhex(digest))
        return Entry(9, NO_HASH, body, digest, signature).to_commit()
