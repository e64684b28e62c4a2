"""Whatever members say, in whatever order: the host goes on, and its journal can be read."""

from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, SYNC, A, B, C, D, Scene, name
from tests.unit.net.messages import messages

from atoll.host.effects import Append, Report, Send
from atoll.host.run import OfRound
from atoll.ids import LeaseId, PeerId, RoundId
from atoll.net import records, wire

MEMBERS = (BUILT_IN, A, B, C)
SYNCS = {
    "blocking": SYNC,
    "in flight": replace(SYNC, mode="overlap", fragments=2, in_flight=2, inner_steps=4, rounds=9),
    "regions": replace(SYNC, region_size=2),
}


@dataclass(frozen=True)
class Lie:
    """A message of which most names and numbers mean something here, and some anything else."""

    speaker: PeerId
    message: wire.Message
    means: dict[str, Any]

    def about(self, scene: Scene) -> wire.Message:
        fields = {field.name for field in msgspec.structs.fields(self.message)}
        told = {key: value for key, value in self.means.items() if key in fields}
        rounds = list(scene.run.open_rounds.values())
        if rounds and told.get("roster_version") == 0:
            told["roster_version"] = rounds[0].roster_version
        return replace(self.message, **told)


meanings = st.fixed_dictionaries(
    {"round": st.sampled_from((0, 1, 1, 1, 2)).map(RoundId), "roster_version": st.just(0)},
    optional={
        "slice": st.integers(0, 2),
        "start": st.integers(0, 2),
        "stop": st.integers(0, 3),
        "group": st.none() | st.integers(0, 3),
        "contributor": st.sampled_from((*MEMBERS, D)),
        "reducer": st.sampled_from((*MEMBERS, D)),
        "squared_norm": st.sampled_from((0.0, 1e-320, 1.0, 1e300)),
        "digests": st.lists(st.sampled_from([name(k) for k in range(3)]), max_size=3).map(tuple),
        "digest": st.sampled_from([name(k) for k in range(3)]),
        "leases": st.sets(st.integers(1, 6).map(LeaseId), max_size=3).map(tuple),
        "parts": st.just(()),
        "state": st.sampled_from([name("state", 0, "all"), name("state", 1, "all")]),
    },
)
heard = messages(
    *get_args(OfRound), wire.AtState, wire.Heartbeat, wire.Resting, wire.Evaluated, wire.Leaving
)
lies = st.builds(Lie, st.sampled_from(MEMBERS), heard | messages(), meanings)
facts = st.sampled_from(("time", "delivers", "lost", "joins"))


def let_happen(scene: Scene, what: Lie | str) -> None:
    match what:
        case "time":
            scene.passes(SYNC.grace_floor_s)
        case "delivers":
            scene.delivers(A, B)
        case "lost":
            scene.lost(C)
        case "joins":
            scene.join(C)
        case Lie(speaker=speaker) if scene.run.membership.is_connected(speaker):
            scene.says(speaker, what.about(scene))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(SYNCS)), st.lists(lies | facts, min_size=1, max_size=12))
def test_no_word_of_a_member_stops_the_host(sync, happens):
    config = SYNCS[sync]
    scene = Scene.of(config, slice_bytes=((7, 8),) * config.fragments)
    scene.join(*MEMBERS)
    scene.passes(SYNC.grace_floor_s)
    for what in happens:
        let_happen(scene, what)
        for effect in scene.effects:
            if isinstance(effect, Send):
                wire.decode(wire.encode(effect.message))
            elif isinstance(effect, Report):
                msgspec.json.encode(effect.event)
            elif isinstance(effect, Append):
                assert tuple(map(records.decode, map(records.encode, effect.records))) == (
                    effect.records
                )
    again = scene.restart().run
    assert (again.committed, again.agreed) == (scene.run.committed, scene.run.agreed)
