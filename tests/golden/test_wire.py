"""The bytes of every message: one that changes here can no longer talk to older peers."""

from pathlib import Path
from typing import get_args

import pytest

from atoll.ids import Digest, Lease, LeaseId, PeerId, RoundId
from atoll.net import wire

GOLDEN = Path(__file__).parent / "wire"

ANNA, BEN = PeerId("0a" * 16), PeerId("0b" * 16)
D1, D2 = Digest("d1" * 32), Digest("d2" * 32)
ROUND = RoundId(7)
ADDRESS = wire.Address(peer=ANNA, host="2001:db8::1", port=4433)
LEASE = Lease(id=LeaseId(3), start=2**40, stop=2**40 + 80)

EXAMPLES: tuple[wire.Message, ...] = (
    wire.GetAuthority(protocol=1),
    wire.Authority(certificate=b"\x30\x82\x00", now_s=1.8e9, seen_host="198.51.100.7"),
    wire.Enrol(token="0123456789abcdef" * 2, public_key=bytes(range(32)), name="Zoë's laptop"),
    wire.Enrolled(certificate=b"\x30\x82\x01", run_config=b'{"name":"r"}', host=ANNA, built_in=BEN),
    wire.Refused(reason="the invite is used up", hint="ask for another", final=False),
    wire.Hello(
        protocol=1,
        run=D1,
        name="anna",
        trains=True,
        listen_host="",
        listen_port=65535,
        codecs=("fp32", "int8"),
        round=ROUND,
        state=D2,
        trained=(LeaseId(1), LeaseId(2)),
        place="São Tomé",
        arriving=wire.Arriving(round=RoundId(5), state=D1, num_bytes=2**40),
        instance="0123456789abcdef",
    ),
    wire.AtState(
        round=ROUND,
        state=D1,
        device="CPU",
        samples_per_s=12.5,
        round_trips=(wire.RoundTrip(peer=BEN, seconds=0.0625),),
        peak_flops=312e9,
    ),
    wire.Contribution(
        round=ROUND, leases=(LeaseId(3),), num_steps=10, mean_loss=2.5, digests=(D1, D2)
    ),
    wire.Delivered(round=ROUND, contributor=BEN, slice=2, digest=D1, squared_norm=0.125),
    wire.Reduced(round=ROUND, roster_version=1, slice=2, digest=D1, group=3, parts=(D1, D2)),
    wire.Held(round=ROUND, roster_version=1, digests=(D1, D2)),
    wire.Fetched(round=ROUND, roster_version=1, start=2, stop=5),
    wire.Unreachable(round=ROUND, reducer=BEN),
    wire.Heartbeat(round=ROUND, step=4, loss=3.25, tokens_per_s=1e6),
    wire.Resting(rests=True),
    wire.Evaluated(round=ROUND, loss=3.25, text="The reef"),
    wire.Leaving(reason="Ctrl-C"),
    wire.Leader(
        led=wire.Commit(seq=1, previous=D1, body=b"{}", hash=D2, signature=bytes(64)),
        hosts=(wire.HostAddress(host="2001:db8::1", port=7777),),
    ),
    wire.Welcome(
        committed=ROUND,
        base_round=RoundId(5),
        base_state=D1,
        dataset=D2,
        held=(LEASE,),
        reset=False,
        sources=(ADDRESS,),
    ),
    wire.Plan(
        round=ROUND,
        version=2,
        fragment=0,
        first_step=60,
        codec="int8",
        update_codec="bf16",
        reductions=(wire.Reduction(reducer=ADDRESS, start=0, stop=64),),
        leases=(LEASE,),
        sources=(ADDRESS,),
        num_samples=80,
        also=(wire.Run(start=2, stop=5),),
        measure=(ADDRESS,),
    ),
    wire.Closed(round=ROUND, roster_version=1),
    wire.Reduce(
        round=ROUND,
        roster_version=1,
        slice=2,
        inputs=(wire.ReduceInput(peer=ANNA, share=1.0, digest=D1),),
        parts=(wire.Part(group=0, reducer=ADDRESS), wire.Part(group=1, reducer=None)),
        group=4,
        parent=ADDRESS,
    ),
    wire.Commit(
        seq=2**63 - 1,
        previous=D1,
        body=b"{}",
        hash=D2,
        signature=bytes(64),
        counted=wire.Counted(
            leases=(LEASE.id,),
            contribution=D2,
            num_tokens=1024,
            round_tokens=3072,
            total_tokens=8192,
        ),
    ),
    wire.Resync(round=ROUND, state=D1),
    wire.Evaluate(round=ROUND, state=D1),
    wire.Stop(reason="the run is complete", complete=True),
    wire.Bring(round=ROUND),
    wire.Holding(slices=(wire.NamedSlice(slice=1, digest=D2),)),
    wire.Slice(round=ROUND, slice=2, digest=D1, num_bytes=67584),
    wire.Taken(slice=2),
    wire.FetchUpdates(round=ROUND, roster_version=1, slices=(2, 3), seconds=30.0, group=1),
    wire.Update(slice=2, digest=D1, num_bytes=67584),
    wire.Fetch(digest=D1),
    wire.Blob(digest=D1, num_bytes=0),
    wire.FetchInner(),
    wire.Inner(num_bytes=5_000_000, chunks=(D1, D2)),
    wire.Missing(),
)


def tag_of(message: wire.Message) -> str:
    return str(message.__struct_config__.tag)


def rewrite() -> None:
    for path in GOLDEN.glob("*.bin"):
        path.unlink()
    GOLDEN.mkdir(exist_ok=True)
    for message in EXAMPLES:
        (GOLDEN / f"{tag_of(message)}.bin").write_bytes(wire.encode(message))


@pytest.mark.parametrize("message", EXAMPLES, ids=tag_of)
def test_bytes_on_the_wire_do_not_change(message):
    golden = (GOLDEN / f"{tag_of(message)}.bin").read_bytes()
    assert wire.encode(message) == golden
    assert wire.decode(golden) == message


def test_every_message_has_an_example_and_every_file_a_message():
    assert [type(message) for message in EXAMPLES] == list(get_args(wire.Message))
    assert {path.stem for path in GOLDEN.iterdir()} == {tag_of(message) for message in EXAMPLES}
