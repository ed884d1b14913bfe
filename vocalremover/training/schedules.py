"""How the learning rate goes over a run."""

import math


def warm_cosine(progress: float, step: int, warm_steps: int) -> float:
    """Factor of the learning rate: up along a line for `warm_steps`, then down a half cosine to 0 at progress 1."""
    warm = min(1.0, (step + 1) / warm_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
