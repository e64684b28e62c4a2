"""The states of a run computed anew, from its config and the updates that are at hand.

state 0 = f(config; weights that it names)
state r = outer step(state r - 1, updates of round r)

Where updates are missing, the walk goes on from the next state that is on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.config import RunConfig, run_digest
from atoll.errors import DamagedError, RunError
from atoll.exchange.codec import CODECS
from atoll.exchange.initial import initial_params
from atoll.exchange.step import apply_updates_
from atoll.ids import INITIAL, Digest, RoundId, digest_of
from atoll.model.layout import layout_of
from atoll.net.records import Committed
from atoll.outer.manifest import manifest_of
from atoll.outer.nesterov import suited_to
from atoll.outer.saved import read_saved
from atoll.outer.state import PeerState


@dataclass(frozen=True, slots=True)
class Retraced:
    """The rounds whose states were found to be the agreed ones, and how."""

    saved: list[RoundId] = field(default_factory=list)  # on disk, every chunk
    recomputed: list[RoundId] = field(default_factory=list)
    updates: list[RoundId] = field(default_factory=list)  # all of the round, at hand and whole


def retrace(
    home: Path,
    config: RunConfig,
    *,
    commits: Mapping[RoundId, Committed],
    agreed: Mapping[RoundId, Digest],
    kept: Sequence[RoundId],
) -> Retraced:
    """Return what is proved of the states of these commits (rounds 1, 2, ...).

    `home` is the directory of the host's built-in member, `kept` the rounds whose states are on its
    disk.

    Raises:
        DamagedError: a state or an update on disk is not what it was.
        RunError: a state that was computed anew is not the agreed one.
    """
    walk = _Walk(home, config, agreed)
    walk.begin()
    if INITIAL in kept:
        walk.meet_saved(INITIAL)
    for round_id, commit in commits.items():
        walk.step(commit)
        if round_id in kept:
            walk.meet_saved(round_id)
    return walk.result


class _Walk:
    """The state of one round after the other, as far as it can be known."""

    def __init__(self, home: Path, config: RunConfig, agreed: Mapping[RoundId, Digest]) -> None:
        self._home = home
        self._config = config
        self._agreed = agreed
        self._run = run_digest(config)
        self._state: PeerState | None = None
        self.result = Retraced()

    def begin(self) -> None:
        """Compute state 0, if the weights that it is made of are known."""
        params_N = initial_params(self._config, self._home.parent)
        if params_N is not None:
            self._state = PeerState.initial(params_N)
            self._compare(INITIAL)

    def step(self, commit: Committed) -> None:
        """Go on to the state after this commit; its updates that are at hand must be sound."""
        updates = [_blob(self._home / "blobs", update.digest) for update in commit.updates]
        whole = [update for update in updates if update is not None]
        if len(whole) == len(updates):
            self.result.updates.append(commit.round)
        else:
            self._state = None
        if self._state is None:
            return
        codec = CODECS[commit.update_codec]
        layout = layout_of(self._config)
        outer = suited_to(self._config.outer, num_contributors=len(commit.roster))
        apply_updates_(self._state, whole, codec=codec, outer=outer, layout=layout)
        self._compare(commit.round)

    def meet_saved(self, round_id: RoundId) -> None:
        """Go on from the state on disk, which must be the agreed one."""
        states = self._home / "states"
        if not (states / f"{round_id:06}").exists():
            return  # dropped meanwhile: the run goes on
        state, digest = read_saved(states, round_id, run=self._run)
        self._state = state
        if round_id not in self._agreed:
            return
        if digest != self._agreed[round_id]:
            raise DamagedError(
                f"{states / f'{round_id:06}'} is not the state that the members agreed on",
                hint="delete that folder: the state will be fetched from other members",
            )
        self.result.saved.append(round_id)

    def _compare(self, round_id: RoundId) -> None:
        assert self._state is not None
        digest = manifest_of(self._state, run=self._run).digest
        if round_id not in self._agreed:
            return
        if digest != self._agreed[round_id]:
            raise RunError(
                f"state {round_id} computed anew is {digest[:12]}, "
                f"but the journal says {self._agreed[round_id][:12]}",
                hint="the members were faulty or not honest, or this machine computes otherwise",
            )
        self.result.recomputed.append(round_id)


def _blob(directory: Path, digest: Digest) -> bytes | None:
    """Return the blob, or None if it is not here; a damaged one is an error."""
    path = directory / digest
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        return None
    if digest_of(payload) != digest:
        raise DamagedError(
            f"{path} is damaged", hint="delete that file: it will be fetched from other members"
        )
    return payload
