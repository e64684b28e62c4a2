"""One peer has a slow line: whoever has a fast one trains on while that one sends and receives."""

from pathlib import Path

import pytest
from tests.sim.cast import well

from atoll import events
from atoll.sim.judge import Outcome
from atoll.sim.play import Case
from atoll.sim.setting import PeerSpec, RunSpec, Setting

# A contribution has 2 MB: a tenth of a second of the fibre, six seconds of the slow line.
RUN = RunSpec(rounds=10, mode="overlap", vocab_size=16384, min_peers=3)
FAST, SLOW = ("anna", "ben"), "carl"


def share_of_training(outcome: Outcome, name: str) -> float:
    """Return how much of its time the peer trained, behind the first round and before the last."""
    timed = [
        (at, event)
        for at, who, event in outcome.trace
        if who == name and isinstance(event, events.PhaseTimed) and event.phase == "steps"
    ]
    steps_s = sum(event.seconds for _, event in timed[1:-1])
    return steps_s / (timed[-2][0] - timed[0][0])


@pytest.mark.parametrize("seed", range(5))
def test_fast_peers_do_not_stand_still_because_one_is_slow(seed: int, tmp_path: Path):
    fast = (PeerSpec(name=name, link="home-fibre", step_s=1.5) for name in FAST)
    slow = PeerSpec(name=SLOW, link="lte", step_s=1.5)
    outcome = well(Case(setting=Setting(seed=seed, peers=(*fast, slow), run=RUN)), tmp_path)
    shares = [share_of_training(outcome, name) for name in FAST]
    assert min(shares) > 0.95, f"{seed=}"
