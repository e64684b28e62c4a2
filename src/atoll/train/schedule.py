"""The inner learning rate: a function of the step, so that every peer that is at it takes the same.

                warm-up: linear, over `warmup_steps`; then

    stable      ______________________
               /                      '.            constant, then 1 - sqrt(progress) over the
              /                         ' - .__     last `cooldown_steps`

    cosine      _______
               /        ' - .                       (1 + cos(pi progress)) / 2 to the end
              /               ' - .______

    constant    ______________________________
               /

Both that fall end at `final_share` of lr. A square-root cool-down ends lower than a linear one
(arXiv 2405.18392); INTELLECT-1 used it, too.
"""

from math import cos, pi, sqrt

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
    factor *= inner.final_share + (1 - inner.final_share) * _share_left(config, step)
    began_late = step > steps_since_fresh
    if began_late and steps_since_fresh < inner.fresh_warmup_steps:
        factor *= (steps_since_fresh + 1) / inner.fresh_warmup_steps
    return inner.lr * factor


def _share_left(config: RunConfig, step: int) -> float:
    """Return how much of the fall of the schedule is still to come: 1 at first, 0 at the end."""
    inner = config.inner
    num_falling = {
        "stable": inner.cooldown_steps,
        "cosine": config.total_steps - inner.warmup_steps,
        "constant": 0,
    }[inner.schedule]
    falling = step - (config.total_steps - num_falling)
    if falling <= 0 or num_falling == 0:
        return 1.0
    progress = min(1.0, falling / num_falling)
    return 1 - sqrt(progress) if inner.schedule == "stable" else (1 + cos(pi * progress)) / 2
