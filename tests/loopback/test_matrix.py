"""Faults in mid-transfer on real processes: ways to train, codecs and faults.

Anna is behind NAT, Ben and Carl reduce, and everything happens to Carl, behind a line that a test
can slow, hold and cut (relay.py). A fault comes when his line stands still with a part of what he
has to send: no matter how fast the machine is, it is in the middle.

    make chaos-loopback      every fault in every way with every codec; long, run by hand
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec
import pytest
from tests.loopback.cluster import Cluster, Process, wait_until, with_sync
from tests.loopback.proof import assert_all_leave, assert_contributes
from tests.loopback.relay import Line, Lines

from atoll.config import RunConfig
from atoll.events import (
    PeerLeft,
    PhaseTimed,
    RoundClosed,
    RoundCommitted,
    RoundPlanned,
    StateDiffers,
    StateSynced,
    TrainerDied,
)
from atoll.exchange.sizes import encoded_slices
from atoll.host.audit import audit
from atoll.ids import RoundId
from atoll.model.layout import layout_of
from atoll.net import records

pytestmark = pytest.mark.timeout(600)  # several processes import torch, one after the other

WAYS: dict[str, dict[str, object]] = {
    "blocking": {"fragments": 2},
    "overlap": {"mode": "overlap"},
    "streaming": {"mode": "overlap", "fragments": 2},
    "in flight": {"mode": "overlap", "fragments": 2, "in_flight": 2},
}
UPDATE_CODECS = {"int8": "int8", "int4": "int4", "sparse": "sparse8"}
ONE_PERCENT_S = 200.0  # for one contribution; the lines carry one in much less than 2 s


@dataclass
class Scene:
    cluster: Cluster
    lines: Lines
    host: Process
    peers: dict[str, Process]
    contribution_bytes: int
    options: tuple[str, ...]  # to join as Carl
    setbacks: int = 0  # of the survivors, before anything happened

    @property
    def carl(self) -> Process:
        return self.peers["carl"]

    @property
    def line(self) -> Line:
        return self.lines["carl"]

    def stop_in_the_middle(self) -> None:
        """Return when Carl's line stands still with a part of what he sends in a round."""
        self.line.hold_after(self.contribution_bytes // 4)
        wait_until(lambda: self.line.is_held, "bytes of Carl", watch=self.carl)

    def waits_for_anna(self) -> RoundId:
        """Return a round that Carl reduces, to which all but Anna have brought their parts.

        From then on Carl's line lets little more through: Anna may have to dial him.
        Without Anna a round may be closed as soon as these are there; and if Carl has to wait for
        the processor, its commit overtakes the word that his last part was taken: then he ends the
        round without having reported what he sent. Another one it is, then.
        """
        carl, anna = self.cluster.id_of("carl"), self.lines["anna"]
        while True:
            anna.hold_after(0)
            number = self.host.wait_for_next(
                RoundPlanned, lambda event: carl in event.reducers
            ).round
            known = partial(self.carl_has_sent_or_it_is_over, number)
            wait_until(known, "part of Carl's in a round", watch=self.carl)
            self.line.hold_after(self.contribution_bytes // 4)
            if not self.is_closed(number):
                return number
            self.line.heal()
            anna.heal()
            assert_contributes(self.cluster, self.host, "anna")
            self.setbacks = self.count_setbacks()  # she may have fetched a state

    def carl_has_sent_or_it_is_over(self, number: RoundId) -> bool:
        sent = [event.round for event in self.carl.find(PhaseTimed) if event.phase == "send"]
        return number in sent or self.is_closed(number)

    def is_closed(self, number: RoundId) -> bool:
        return any(event.round == number for event in self.host.find(RoundClosed))

    def goes_on_without_carl(self) -> None:
        """Return when the other two have committed a round by themselves."""
        carl = self.cluster.id_of("carl")
        self.host.wait_for_next(RoundCommitted, lambda event: carl not in event.roster)

    def carl_comes_back(self) -> None:
        """Return when he takes part, as a new process if the one before was killed."""
        self.line.heal()
        if self.carl.has_ended():
            self.peers["carl"] = join(self.cluster, self.lines, "carl", self.options)
        assert_contributes(self.cluster, self.host, "carl")

    def count_setbacks(self) -> int:
        """Return how often Anna and Ben had to begin something again."""
        survivors = self.peers["anna"], self.peers["ben"]
        kinds = (TrainerDied, StateSynced, StateDiffers)
        return sum(len(peer.find(kind)) for peer in survivors for kind in kinds)


# --- the faults ----------------------------------------------------------------------------------


def loses_its_trainer(scene: Scene) -> None:
    """The agent is still there, and the others wait for what it has under way."""
    scene.stop_in_the_middle()
    left = len(scene.host.find(PeerLeft))
    known = len(scene.carl.find(TrainerDied))
    os.kill(*scene.carl.trainers, signal.SIGKILL)
    scene.line.heal()  # a trainer that had nothing to do is missed when there is something again
    wait_until(lambda: len(scene.carl.find(TrainerDied)) > known, "its end", watch=scene.carl)
    died = scene.carl.find(TrainerDied)[known]
    assert died.in_a_row == 1
    assert "Killed" in died.reason
    scene.carl_comes_back()
    assert len(scene.host.find(PeerLeft)) == left, "the peer stays while its trainer starts"


def dies_as_a_contributor(scene: Scene) -> None:
    scene.stop_in_the_middle()
    scene.carl.kill()
    scene.goes_on_without_carl()


def dies_as_a_reducer_before_its_result(scene: Scene) -> None:
    anna = scene.lines["anna"]
    anna.hold_after(scene.contribution_bytes // 4)
    wait_until(lambda: anna.is_held, "bytes of Anna", watch=scene.peers["anna"])
    scene.carl.kill()
    anna.heal()
    scene.goes_on_without_carl()


def dies_as_a_reducer_at_the_close(scene: Scene) -> None:
    """All that a round needs is there, its roster is final, and nobody has all updates of his."""
    carl, number = scene.cluster.id_of("carl"), scene.waits_for_anna()
    scene.lines["anna"].heal()
    scene.host.wait_for(RoundClosed, lambda event: event.round == number)
    scene.carl.kill()
    scene.host.wait_for(
        RoundPlanned, lambda event: event.round == number and carl not in event.reducers
    )
    scene.goes_on_without_carl()


def dies_as_a_reducer_after_its_result(scene: Scene) -> None:
    """What he has formed stays with him, or with whoever was quick enough to fetch it."""
    formed = scene.carl.wait_for_next(PhaseTimed, lambda event: event.phase == "reduce")
    scene.line.hold_after(0)
    scene.carl.kill()
    scene.host.wait_for(RoundCommitted, lambda event: event.round == formed.round)
    scene.goes_on_without_carl()


def freezes(scene: Scene) -> None:
    scene.stop_in_the_middle()
    scene.carl.freeze()
    scene.line.heal()
    scene.host.wait_for_next(PeerLeft)
    scene.goes_on_without_carl()
    scene.carl.thaw()


def is_cut_off_without_a_word(scene: Scene) -> None:
    scene.stop_in_the_middle()
    scene.line.cut()
    scene.host.wait_for_next(PeerLeft)
    scene.goes_on_without_carl()


def drops_to_one_percent(scene: Scene) -> None:
    scene.stop_in_the_middle()
    scene.line.heal()
    scene.line.bytes_per_s = scene.contribution_bytes / ONE_PERCENT_S
    scene.goes_on_without_carl()
    scene.host.wait_for_next(RoundCommitted)
    assert not scene.carl.has_ended()


Fault = Callable[[Scene], None]
FAULTS: tuple[Fault, ...] = (
    loses_its_trainer,
    dies_as_a_contributor,
    dies_as_a_reducer_before_its_result,
    dies_as_a_reducer_at_the_close,
    dies_as_a_reducer_after_its_result,
    freezes,
    is_cut_off_without_a_word,
    drops_to_one_percent,
)


# Each way, each codec and each fault once: what a change has to pass.
CHOSEN: tuple[tuple[str, str, tuple[Fault, ...]], ...] = (
    ("blocking", "sparse", (drops_to_one_percent, dies_as_a_reducer_at_the_close, freezes)),
    ("overlap", "int8", (freezes, dies_as_a_reducer_before_its_result)),
    (
        "streaming",
        "int4",
        (is_cut_off_without_a_word, dies_as_a_contributor, dies_as_a_reducer_after_its_result),
    ),
    ("in flight", "int8", (loses_its_trainer, dies_as_a_contributor)),
)


# --- the runs ------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[Lines]:
    with Lines() as lines:
        yield lines


def config_of(config: RunConfig, *, way: str, codec: str) -> RunConfig:
    model = msgspec.structs.replace(config.model, num_layers=2)
    codecs = {"codec": codec, "update_codec": UPDATE_CODECS[codec]}
    config = msgspec.structs.replace(config, model=model)
    # A machine may be slow: only who was stopped on purpose is to be taken for dead.
    patient = {"silent_s": 5.0, "reconnect_s": 120.0}
    return with_sync(config, rounds=100_000, **patient, **WAYS[way], **codecs)


def join(cluster: Cluster, lines: Lines, name: str, options: tuple[str, ...]) -> Process:
    process = cluster.join_by(options[0], name, *options[1:])
    lines.own(name, process.pid)
    return process


def started(cluster: Cluster, lines: Lines, config: RunConfig) -> Scene:
    """Return a run with three peers, once all are in a round that is committed."""
    cluster.write_run(config)
    host = cluster.start_host(*lines.add_host())
    peers, options = {}, {}
    for name in ("anna", "ben", "carl"):
        own = cluster.peers / f"{name}.toml"
        own.write_text('listen_host = "127.0.0.1"\n', encoding="utf-8")
        options[name] = (*lines.add(name, cluster.invite), "--config", str(own))
        if name == "anna":
            options[name] += ("--advertise", "127.0.0.3")  # where nobody answers
        peers[name] = join(cluster, lines, name, options[name])
    host.wait_for(RoundCommitted, lambda event: len(event.roster) == 3)
    slices = encoded_slices(layout_of(config), config.sync.codec)
    scene = Scene(cluster, lines, host, peers, min(map(sum, slices)), options["carl"])
    scene.setbacks = scene.count_setbacks()  # who came late may have fetched a state
    return scene


def assert_survivors_lost_nothing(scene: Scene) -> None:
    """Anna and Ben went on with the trainers, the states and the samples that they had."""
    assert scene.count_setbacks() == scene.setbacks
    ids = {scene.cluster.id_of(name) for name in ("anna", "ben")}
    released = [r for r in scene.cluster.records(records.Released) if r.peer in ids and r.leases]
    assert not released


def let_happen(faults: tuple[Fault, ...], scene: Scene, config: RunConfig) -> None:
    for fault in faults:
        fault(scene)
        scene.carl_comes_back()
        assert_survivors_lost_nothing(scene)
    assert_all_leave(scene.cluster, config, scene.host, list(scene.peers.values()))
    assert list(audit(scene.cluster.run)), "as `atoll verify` proves it"


@pytest.mark.parametrize(("way", "codec", "faults"), CHOSEN)
def test_each_fault_each_way_and_each_codec(cluster, lines, config, way, codec, faults):
    config = config_of(config, way=way, codec=codec)
    let_happen(faults, started(cluster, lines, config), config)


@pytest.mark.chaos
@pytest.mark.parametrize("codec", UPDATE_CODECS)
@pytest.mark.parametrize("way", WAYS)
def test_every_fault_in_every_way_with_every_codec(cluster, lines, config, way, codec):
    config = config_of(config, way=way, codec=codec)
    let_happen(FAULTS, started(cluster, lines, config), config)
