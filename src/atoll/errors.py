"""What can go wrong, sorted by who has to act.

    AtollError
    +-- ConfigError          the user: the command line prints it and exits with 2
    +-- PeerError            us, about one peer: drop it, keep the round
    |   +-- ProtocolError      its bytes are not a message we know, or not one it may send now
    |   +-- ConnectionLost     it is gone, or was never there
    |   +-- BusyError          it has no time for us now: ask others, or again later
    |   +-- BadBlobError       a blob of it is damaged, or does not decode
    +-- RoundError           us, about one round: contribute nothing to it, keep the run
    |   +-- BadUpdateError     our own pseudo-gradient must not be shared
    +-- RunError             the operator: the process stops with exit code 1
        +-- DamagedError       a file of ours is not what it was when it was written
        +-- DeposedError       another host leads the run by now: this one must say nothing more

A broken invariant of our own is none of these: that is an `assert`, and a bug.
"""


class AtollError(Exception):
    """One sentence that says what is wrong, and a hint that says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(AtollError): ...


class PeerError(AtollError): ...


class ProtocolError(PeerError): ...


class ConnectionLost(PeerError): ...


class BusyError(PeerError): ...


class BadBlobError(PeerError): ...


class RoundError(AtollError): ...


class BadUpdateError(RoundError): ...


class RunError(AtollError): ...


class DamagedError(RunError): ...


class DeposedError(RunError): ...
