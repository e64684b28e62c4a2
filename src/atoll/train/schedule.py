"""The inner learning rate: a function of the step, so that every peer that is at it takes the same.

       ______________________
      /                      |            warm-up: linear, over `warmup_steps`
     /                        '.          then constant
    /                            ' - .__  cool-down: 1 - sqrt(progress), the last `cooldown_steps`

A square-root cool-down ends lower than a linear one (arXiv 2405.18392); INTELLECT-1 used it, too.
"""

from math import sqrt

from atoll.config import RunConfig


def learning_rate(config: RunConfig, step: int, *, steps_since_fresh: int) -> float:
    """Return the learning rate of the inner step `step` (0, 1, 2, ...) of the run.

    `steps_since_fresh` is how many steps the state of the optimizer has seen. A state that began
    later than the run, on a peer that joined late, warms up over `fresh_warmup_steps`: the first
    updates of Adam are nearly +-lr for every weight, too rough for a model that has learnt.
    """
    inner = config.inner
    factor = 1.0
    if step < inner.warmup_steps:
        factor *= (step + 1) / inner.warmup_steps
    cooling = step - (config.total_steps - inner.cooldown_steps)
    if cooling > 0 and inner.cooldown_steps > 0:
        factor *= 1 - sqrt(min(1.0, cooling / inner.cooldown_steps))
    began_late = step > steps_since_fresh
    if began_late and steps_since_fresh < inner.fresh_warmup_steps:
        factor *= (steps_since_fresh + 1) / inner.fresh_warmup_steps
    return inner.lr * factor
