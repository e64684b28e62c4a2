"""Events as words, and as curves where their packages are: none of them is ours to test, but that
what we hand over arrives is."""

import pytest
from tensorboardX.proto.event_pb2 import Event

from atoll import events
from atoll.cli.measures import Measures
from atoll.cli.sinks import SINKS, Trackio, WeightsAndBiases
from atoll.events import EventLog, Stamped
from atoll.ids import Digest, PeerId, RoundId
from atoll.traffic import Traffic

A, B = PeerId("a" * 32), PeerId("b" * 32)


def committed(round_id, *, loss, seconds=4.0):
    return events.RoundCommitted(
        round=RoundId(round_id),
        roster=(A, B),
        num_tokens=1000,
        mean_loss=loss,
        update_bytes=7,
        seconds=seconds,
        exchange_s=1.5,
    )


STORY = (
    events.HostStarted(run="reef", address="h:1", committed=RoundId(0)),
    events.PeerJoined(peer=A, name="anna", device="cpu", reachable=True),
    events.Training(peer=A, round=RoundId(1), step=3, loss=5.0, tokens_per_s=10.0),
    events.RoundClosed(round=RoundId(1), roster=(A, B), missing=(B,), reason=""),
    committed(1, loss=5.0),
    events.StateAgreed(round=RoundId(1), digest=Digest("0" * 64), peers=(A, B)),
    events.Evaluated(round=RoundId(1), peer=A, loss=5.25, text="The sea"),
    events.PhaseTimed(round=RoundId(1), phase="encode", seconds=0.25),
    events.BytesMoved(round=RoundId(1), traffic=Traffic(contributions_sent=5), bits=0.2),
    events.RoundTaken(
        round=RoundId(1), num_contributors=2, num_tokens=250, round_tokens=1000, total_tokens=250
    ),
    committed(2, loss=4.5, seconds=0.0),
    events.Stopped(reason="the run is complete"),
)


@pytest.fixture
def run(tmp_path):
    log = EventLog(tmp_path / "my-run" / "events.jsonl", show=lambda _: None)
    for event in STORY:
        log.emit(event)
    log.close()
    return tmp_path / "my-run"


def test_points_are_what_was_reported():
    measures = Measures()
    points = [measures.point(Stamped(at=9.0, event=event)) for event in STORY]
    found = [(point.round, dict(point.values)) for point in points if point]
    first = {
        "loss": 5.0,
        "tokens": 1000,
        "tokens_per_s": 250.0,
        "peers": 2,
        "round_s": 4.0,
        "exchange_s": 1.5,
        "update_bytes": 7,
    }
    assert found == [
        (1, {"late": 1}),
        (1, first),
        (1, {"agreed": 2}),
        (1, {"validation_loss": 5.25}),
        (1, {"phase_s/encode": 0.25}),
        (1, {"bytes/sent": 5, "bytes/received": 0, "bits": 0.2}),
        (1, {"own/tokens": 250, "own/total_tokens": 250, "own/share": 0.25}),
        (2, {**first, "loss": 4.5, "tokens": 2000, "tokens_per_s": 0.0, "round_s": 0.0}),
    ]


def test_in_words(atoll, run):
    outcome = atoll("follow", run)  # it ends by itself: the run is complete
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert "+ anna joined (cpu)" in lines[1]
    assert any("state 1: validation loss 5.250, says anna" in line for line in lines)
    assert "round 2: committed, 1.0 k tokens, loss 4.500" in lines[-2]
    assert not any("10 tokens/s" in line for line in lines)
    assert any("round 1: taken, with 250 tokens of our own among 1.0 k" in line for line in lines)


def test_tensorboard_has_the_curves(atoll, run, tmp_path):
    outcome = atoll("follow", run, "--to", "tensorboard", "--place", tmp_path / "tb")
    assert (outcome.code, outcome.err) == (0, "")
    (file,) = (tmp_path / "tb" / "my-run").iterdir()
    scalars = [
        (value.tag, event.step, value.simple_value)
        for event in read_tensorboard(file.read_bytes())
        for value in event.summary.value
    ]
    assert [s for s in scalars if s[0] == "loss"] == [("loss", 1, 5.0), ("loss", 2, 4.5)]
    assert ("phase_s/encode", 1, 0.25) in scalars


def read_tensorboard(content):
    """Yield the events of a file: each is its length, a checksum, its bytes, a checksum."""
    while content:
        length = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_weights_and_biases_takes_them_offline(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    fill(WeightsAndBiases("reefs", "my-run"))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio_takes_them(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    fill(Trackio("reefs", "my-run"))
    logged = trackio.Api().runs("reefs")
    assert [each.name for each in logged] == ["my-run"]


def fill(sink):
    measures = Measures()
    for event in STORY:
        if point := measures.point(Stamped(at=9.0, event=event)):
            sink.put(point)
    sink.close()


@pytest.mark.parametrize("name", SINKS)
def test_a_package_that_is_missing_is_named(atoll, run, monkeypatch, name):
    def missing(package):
        raise ImportError(package)

    monkeypatch.setattr("atoll.cli.sinks.import_module", missing)
    outcome = atoll("follow", run, "--to", name)
    assert outcome.code == 2
    assert f"pip install 'atoll[{name}]'" in outcome.err


def test_there_is_nothing_to_follow(atoll, run, tmp_path):
    outcome = atoll("follow", tmp_path)
    assert (outcome.code, "nothing has happened" in outcome.err) == (2, True)
    outcome = atoll("follow", run, "--to", "paper")
    assert (outcome.code, "no such place for curves: paper" in outcome.err) == (2, True)
    (run / "events.jsonl").write_text("{}\n")
    assert "is damaged" in atoll("follow", run, "--once").err


def test_it_ends_with_the_run_though_members_leave_after_that(atoll, tmp_path):
    log = EventLog(tmp_path / "events.jsonl", show=lambda _: None)
    again = events.HostStarted(run="reef", address="h:1", committed=RoundId(2))
    left = events.PeerLeft(peer=A, name="anna", reason="the run is complete")
    for event in (*STORY, again, events.Stopped(reason="the run is complete"), left):
        log.emit(event)
    log.close()
    outcome = atoll("follow", tmp_path)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].endswith("- anna is gone: the run is complete")
