"""Accidents for the demo: a trainer is killed in mid-round, then a whole peer, which comes back."""

from typing import Final

from atoll import system
from atoll.cli.processes import Process
from atoll.cli.story import Story, Tone
from atoll.clock import wall_s
from atoll.ids import RoundId

MIN_PEERS: Final = 2
MIN_ROUNDS: Final = 6  # so that the peer is back before the last


class Chaos:
    """What is still to happen. Call `act` often."""

    def __init__(self, story: Story, *, peer: Process, other: Process) -> None:
        rounds = story.config.sync.rounds
        self._story = story
        self._peer = peer
        self._other = other
        self._trainer_dies_in = RoundId(max(2, rounds // 6))
        self._peer_dies_in = RoundId(self._trainer_dies_in + max(1, rounds // 8))
        self._acts = [self._kill_trainer, self._kill_peer, self._restart_peer]

    def act(self) -> None:
        """Do what comes next, if it is time."""
        if self._acts and self._acts[0]():
            del self._acts[0]

    def _kill_trainer(self) -> bool:
        if not self._is_training(self._other, since=self._trainer_dies_in):
            return False
        self._say(f"killed {self._other.name}'s trainer")
        self._kill_trainer_of(self._other)
        return True

    def _kill_peer(self) -> bool:
        if not self._is_training(self._peer, since=self._peer_dies_in):
            return False
        self._say(f"killed {self._peer.name}, agent and trainer")
        self._peer.kill()
        self._kill_trainer_of(self._peer)
        return True

    def _restart_peer(self) -> bool:
        if self._story.committed < self._peer_dies_in:
            return False
        self._say(f"started {self._peer.name} again", tone="good")
        self._peer.start()
        return True

    def _is_training(self, process: Process, *, since: RoundId) -> bool:
        """Return whether the peer is in the middle of that round, or of a later one."""
        actor = self._story.actors[process.name]
        return self._story.committed + 1 >= since and actor.doing == "training" and actor.step > 0

    def _kill_trainer_of(self, process: Process) -> None:
        pid = self._story.actors[process.name].trainer
        assert pid is not None, "it has trained"
        system.kill(pid)

    def _say(self, text: str, *, tone: Tone = "alarm") -> None:
        self._story.say(text, at=wall_s(), tone=tone)
