"""What is done of a `Train`: our own loop and those of others count and report it alike."""

from dataclasses import dataclass

from atoll.train.channel import Trained


@dataclass(slots=True)
class Tally:
    num_steps: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    total_loss: float = 0.0  # the sum over all tokens

    def note(self, num_samples: int, num_tokens: int, *, loss: float) -> None:
        """Note an inner step; `loss` is its mean per token."""
        self.num_steps += 1
        self.num_samples += num_samples
        self.num_tokens += num_tokens
        self.total_loss += loss * num_tokens

    def report(self, *, halted: bool) -> Trained:
        """Return what the agent is told; `halted`: it was stopped before all was done."""
        return Trained(
            num_steps=self.num_steps,
            num_samples=self.num_samples,
            num_tokens=self.num_tokens,
            mean_loss=self.total_loss / max(1, self.num_tokens),
            halted=halted,
        )
