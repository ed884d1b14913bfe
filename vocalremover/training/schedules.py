"""How the learning rate goes over a run: (settings, step) -> factor of the learning rate, pure functions.

The warm-up and the polynomial decay are those of carperbr/frame-transformer: "plain" up to 9da2cd8 (the primer),
"steep" from f55bcef on (thin, V1 and later). His ran below zero after the last step; here the target is the end.
"""

import math

from vocalremover.training.recipe import Schedule


def factor(schedule: Schedule, learning_rate: float, step: int, end: int | None, progress: float) -> float:
    """What to multiply `learning_rate` by at `step`, counted from 0.

    end: the step at which a polynomial or a cosine has come down. A cosine in a run that is limited by its minutes has
    none and follows `progress`, 0..1 of the run, instead.
    """
    warm = warm_up(step, schedule.warm_up)
    target = schedule.target / learning_rate
    if schedule.kind == "constant" or (schedule.kind == "polynomial" and end is None):
        return warm
    if schedule.kind == "cosine":
        done = progress if end is None else step / max(end, 1)
        return warm * (target + (1 - target) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    return warm * (target + (1 - target) * polynomial(step, schedule.warm_up, end, schedule.power, schedule.form))


def warm_up(step: int, steps: int) -> float:
    """1 / (steps + 1) at step 0, 1 from step `steps` on, a line between."""
    return min(1.0, (step + 1) / (steps + 1))


def polynomial(step: int, start: int, end: int, power: float, form: str) -> float:
    """1 until step `start`, 0 from step `end` on: `1 - p^power` (steep) or `(1 - p)^power` (plain), p being the share
    of the way. A steep one with a power below 1 falls at once: with 0.1 it has halved after a thousandth of the way."""
    done = min(max((step - start) / max(end - start, 1), 0.0), 1.0)
    return 1 - done**power if form == "steep" else (1 - done) ** power
