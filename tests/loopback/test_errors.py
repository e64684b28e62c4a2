"""What goes wrong for users: one message, what to do about it, an exit code, and nothing lost."""

import asyncio
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.loopback.cluster import SLOW, Cluster, Process, wait_until, with_sync
from tests.loopback.proof import assert_all_leave, assert_contributes, assert_run_is_sound

from atoll.config import RunConfig, run_digest
from atoll.events import (
    PeerJoined,
    PhaseTimed,
    RoundClosed,
    TrainerDied,
    Warned,
)
from atoll.net import records, wire
from atoll.net.enrol import enrol
from atoll.net.identity import Identity
from atoll.net.invite import Invite, new_token
from atoll.net.transport import TcpTransport
from atoll.peer.home import RunFile, write_run_file
from atoll.units import MIB

pytestmark = pytest.mark.timeout(300)  # several processes import torch, one after the other


def assert_fails(process: Process, *, code: int, error: str, hint: str) -> None:
    """Check that the process ends with this code and one message; the texts are patterns."""
    assert process.wait() == code
    lines = process.output.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, process.output
    assert re.search(error, errors[0]), process.output
    assert len(hints) == 1, process.output
    assert re.search(hint, hints[0]), process.output
    assert "Traceback" not in process.output, process.output


def endless(config: RunConfig, **changes: object) -> RunConfig:
    return with_sync(config, rounds=1000, **changes)


# --- before anybody trains -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosted(tmp_path_factory, shared, config) -> Iterator[tuple[Cluster, Identity, RunFile]]:
    """A host whose invite has been used up, and the member who did that."""
    cluster = Cluster(tmp_path_factory.mktemp("hosted"), cache=shared / "datasets")
    try:
        cluster.write_run(config)
        cluster.start_host("--uses", "1")
        identity = Identity.create()
        invite = Invite.parse(cluster.invite)
        enrolled = asyncio.run(enrol(invite, identity, "member"))
        run_file = RunFile(
            config=config,
            host=invite.host,
            port=invite.port,
            host_id=enrolled.host,
            built_in=enrolled.built_in,
        )
        yield cluster, identity, run_file
    finally:
        cluster.close()


def test_host_unreachable(cluster):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    nowhere = Invite(host="127.0.0.1", port=port, authority="00" * 32, token=new_token())
    anna = cluster.join_by(nowhere.format(), "anna")
    assert_fails(anna, code=1, error=f"nothing listens on 127.0.0.1:{port}", hint="running")
    # What this machine cannot give is found out before, so no invite is used up for it.
    anna = cluster.join_by(nowhere.format(), "anna", "--device", "cpu", "--gpu-memory", "50%")
    assert_fails(anna, code=2, error="--gpu-memory is for a GPU", hint="--micro-batch")


def test_the_port_of_the_built_in_member_is_taken(config, cluster):
    cluster.write_run(endless(config))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        host = cluster.start_host("--reducer-port", str(port))
        told = host.wait_for(Warned, lambda event: "built-in" in event.text)
        assert re.search(rf"ended with code 1: .*\b{port}\b.*; starting it again", told.text)
        assert "--reducer-port" in told.hint
    host.wait_for(PeerJoined, lambda event: event.name == "built-in")  # the port is free now


def test_an_invite_that_was_cut_off(hosted, cluster):
    anna = cluster.join_by(hosted[0].invite[:-5], "anna")
    assert_fails(anna, code=2, error="invite is damaged or cut off", hint="copy the whole line")


def test_an_invite_that_the_host_does_not_know(hosted, cluster):
    wrong = msgspec.structs.replace(Invite.parse(hosted[0].invite), token=new_token())
    anna = cluster.join_by(wrong.format(), "anna")
    assert_fails(anna, code=2, error="does not know this invite", hint="ask .* a new invite")


def test_an_invite_of_another_run(hosted, cluster):
    wrong = msgspec.structs.replace(Invite.parse(hosted[0].invite), authority="ab" * 32)
    anna = cluster.join_by(wrong.format(), "anna")
    assert_fails(anna, code=2, error="is not the host of this invite", hint="a new invite")


def test_an_invite_that_was_used_up(hosted, cluster):
    anna = cluster.join_by(hosted[0].invite, "anna")
    assert_fails(anna, code=2, error="has been used up", hint="ask .* a new invite")


def test_another_protocol_version(hosted):
    _, identity, run_file = hosted
    newer = wire.PROTOCOL + 1
    hello = wire.Hello(
        protocol=newer,
        run=run_digest(run_file.config),
        name="member",
        trains=True,
        listen_host="",
        listen_port=0,
        codecs=(),
        round=0,
        state="00" * 32,
    )

    async def answer_to(member: Identity | None, message: wire.Message) -> wire.Message:
        connection = await TcpTransport(member).dial(
            run_file.host, run_file.port, expect=None, timeout_s=10.0
        )
        try:
            async with asyncio.timeout(10.0):
                await connection.send(message)
                return await connection.receive()
        finally:
            await connection.close()

    for member, message in ((None, wire.GetAuthority(protocol=newer)), (identity, hello)):
        refused = asyncio.run(answer_to(member, message))
        assert isinstance(refused, wire.Refused)
        assert refused.final
        assert refused.reason == f"you speak protocol {newer}, the host speaks {wire.PROTOCOL}"
        assert "update atoll" in refused.hint


def test_another_run_digest(hosted, cluster):
    _, identity, run_file = hosted
    home = cluster.peers / "anna"
    changed = msgspec.structs.replace(run_file.config, seed=1)
    write_run_file(home, msgspec.structs.replace(run_file, config=changed))
    identity.save(home)
    anna = cluster.join_again("anna")
    assert_fails(anna, code=2, error="your run is .*, this one is", hint="another run.toml")


def test_the_port_is_taken(cluster, config):
    cluster.write_run(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        host = cluster.launch_host(port=port)
        assert_fails(host, code=1, error=f"port {port} is taken", hint="choose another port")


def test_a_second_host_in_the_same_directory(hosted):
    cluster, _, _ = hosted
    host = cluster.launch_host()
    assert_fails(host, code=1, error="another host process serves", hint="stop it first")


@pytest.mark.parametrize(
    ("content", "error", "hint"),
    [
        (None, "no such file or folder: .*corpus.txt", "check data.sources"),
        (b"", "no text in the source: .*corpus.txt", "check data.sources"),
        (b"fine\nK\xf6nig\n", "corpus.txt, line 2: not UTF-8", "convert it"),
    ],
    ids=["missing", "empty", "not UTF-8"],
)
def test_a_corpus_that_cannot_be_read(cluster, config, content, error, hint):
    path = cluster.run / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    source = msgspec.structs.replace(config.data.sources[0], name=str(path))
    data = msgspec.structs.replace(config.data, sources=(source,))
    cluster.write_run(msgspec.structs.replace(config, data=data))
    assert_fails(cluster.launch_host(), code=2, error=error, hint=hint)


def test_a_tokenizer_larger_than_the_vocabulary(cluster, hosted, config):
    dataset = hosted[0].records(records.Genesis)[0].dataset
    path = cluster.run / "tokenizer.json"
    shutil.copy(cluster.cache / dataset / "tokenizer.json", path)
    data = msgspec.structs.replace(
        config.data,
        tokenizer=msgspec.structs.replace(config.data.tokenizer, kind="file", path=str(path)),
    )
    model = msgspec.structs.replace(config.model, vocab_size=256)
    cluster.write_run(msgspec.structs.replace(config, data=data, model=model))
    assert_fails(
        cluster.launch_host(),
        code=2,
        error="the tokenizer has 300 tokens, the model a vocabulary of 256",
        hint="set model.vocab_size to 300",
    )


# --- in the middle of a run ----------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def small_disk(request) -> Iterator[None]:
    mounted: list[Path] = []

    def mount(folder: Path, *, num_bytes: int) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system takes root")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave not one byte free, and return the file that took them."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_the_disks_of_a_peer_and_of_the_host_are_full(small_disk, cluster, config):
    config = endless(config, min_peers=1)
    small_disk(cluster.peers / "ben", num_bytes=24 * MIB)
    small_disk(cluster.run, num_bytes=24 * MIB)
    host, anna, ben = cluster.start(config, anna=(), ben=())

    filler = fill(ben.home)
    assert_fails(
        ben,
        code=1,
        error=f"(cannot write|cannot be written:) {ben.home}/.*No space left",
        hint="free some space|make room on the disk|is the disk full",
    )
    assert_contributes(cluster, host, "anna")
    filler.unlink()
    ben = cluster.join("ben")
    assert_contributes(cluster, host, "ben")

    filler = fill(cluster.run)
    assert_fails(
        host,
        code=1,
        error="cannot append to the journal|cannot write .*/events.jsonl",  # what comes first
        hint="make room on the disk",
    )
    filler.unlink()
    host = cluster.start_host(port=host.port)
    assert_contributes(cluster, host, "anna")
    assert_contributes(cluster, host, "ben")
    assert_all_leave(cluster, config, host, [anna, ben])


def test_a_trainer_that_runs_out_of_memory(cluster, config):
    inner = msgspec.structs.replace(config.inner, batch_sequences=2000)
    config = with_sync(config, rounds=1, inner_steps=1, min_peers=1)
    config = msgspec.structs.replace(config, inner=inner)
    cluster.write_run(config)
    host = cluster.start_host()

    anna = cluster.join("anna", "--micro-batch", "2000")
    limit_trainers(anna)
    assert_fails(
        anna,
        code=1,
        error="died 3 times in a row.* has run out of memory",
        hint="a smaller --micro-batch needs less, and changes no result",
    )

    anna = cluster.join("anna")
    limit_trainers(anna)
    assert [anna.wait(), host.wait()] == [0, 0]
    assert anna.find(TrainerDied), "what it chose itself was too much, too; then it took less"
    assert_run_is_sound(cluster, config, rounds=1)


def limit_trainers(peer: Process) -> None:
    """Give each trainer of the peer, until that ends, memory for torch and for a small batch."""

    def limit() -> bool:
        for pid in peer.trainers:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_AS, (1500 * MIB, 1500 * MIB))
        return peer.has_ended()

    wait_until(limit, f"end of {peer.name}")


def test_ends_at_many_moments_and_a_checkpoint_that_is_damaged_afterwards(cluster, config):
    config = endless(config, min_peers=1, grace_floor_s=5.0, reconnect_s=600.0)
    host, ben = cluster.start(config, ben=())
    moments: dict[str, Callable[[Process], object]] = {
        "enrolled": lambda peer: wait_until((peer.home / "run.json").exists, "enrolment"),
        "starting": lambda peer: wait_until(lambda: peer.trainers, "a trainer"),
        "uploading": lambda peer: peer.wait_for(PhaseTimed, lambda event: event.phase == "encode"),
    }

    for moment, reached in moments.items():
        anna = cluster.join("anna", *SLOW)
        reached(anna)
        anna.interrupt()
        assert anna.wait() == 0, moment
        assert "Traceback" not in anna.output, moment
    # It was in the middle of a round, with leases; it gave them back before it went.
    gone = cluster.id_of("anna")
    wait_until(
        lambda: [r for r in cluster.records(records.Released) if r.peer == gone and r.leases],
        "leases of Anna that are free again",
    )

    damaged = max((anna.home / "states").iterdir())
    flip_a_bit(damaged / "state.safetensors")
    anna = cluster.join("anna")
    folder = f"{damaged.parent.name}/{damaged.name}"
    assert_fails(
        anna, code=1, error=f"{folder}/state.safetensors is damaged", hint=f"delete .*{folder}"
    )
    shutil.rmtree(damaged)
    anna = cluster.join("anna", *SLOW)
    assert_contributes(cluster, host, "anna")

    host.wait_for_next(RoundClosed)
    host.interrupt()
    assert host.wait() == 0
    assert "Traceback" not in host.output
    host = cluster.start_host(port=host.port)
    assert_contributes(cluster, host, "anna")

    anna.wait_for_next(PhaseTimed, lambda event: event.phase == "encode")
    anna.press_ctrl_c()
    assert anna.wait() == 0
    assert "left after the round" in anna.output, "what she had begun was to count"
    assert_all_leave(cluster, config, host, [ben])


def test_ctrl_c_while_the_host_prepares_its_text(cluster, config):
    cluster.cache = cluster.run / "datasets"  # nothing is prepared there
    cluster.write_run(config)
    host = cluster.launch_host()
    wait_until(cluster.cache.exists, "the beginning of a dataset", watch=host)
    host.interrupt()
    assert host.wait() == 0
    assert "Traceback" not in host.output
    cluster.start_host()
