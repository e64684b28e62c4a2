"""How fast our trainer takes inner steps, for the host to share out work by. Pure bookkeeping.

A round counts as a whole, and as much as all before it together: one with a hiccup halves the
estimate at worst, and a machine that has become slower shows in two or three.
"""

from dataclasses import dataclass

NEWEST = 0.5  # what the newest round counts for


@dataclass(slots=True)
class Speed:
    """`samples_per_s` of the rounds so far, in inner steps; 0.0: unknown."""

    samples_per_s: float = 0.0
    _samples: int = 0
    _seconds: float = 0.0

    def note(self, num_samples: int, seconds: float) -> None:
        """Note an inner step."""
        self._samples += num_samples
        self._seconds += seconds

    def close_round(self) -> None:
        """Learn from the inner steps since the last round, if there were any."""
        if self._samples and self._seconds > 0:
            measured = self._samples / self._seconds
            before = self.samples_per_s or measured
            self.samples_per_s = NEWEST * measured + (1 - NEWEST) * before
        self._samples, self._seconds = 0, 0.0
