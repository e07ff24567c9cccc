"""Learning rate schedules."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def scheduled(schedule: Schedule, rate: float, steps: int, warmup: float, number: int) -> float:
    """The learning rate of a step.

    Args:
        schedule: "cosine", with linear warm-up and decay to zero, or "constant".
        rate: Peak learning rate.
        steps: Steps of the phase.
        warmup: Share of the steps of the warm-up.
        number: Number of the step, from 0.
    """
    if schedule == "constant":
        return rate
    warm = round(warmup * steps)
    if number < warm:
        return rate * (number + 1) / warm
    done = (number - warm) / max(1, steps - warm)
    return rate * 0.5 * (1 + math.cos(math.pi * done))


def held_then_falling(rates: tuple[float, float], hold: float, steps: int, number: int) -> float:
    """Warm up for 50 steps, hold the first rate for a share `hold` of the steps, then decay linearly to the second."""
    start, end = rates
    warm = min(1.0, (number + 1) / 50)
    held = hold * steps
    fallen = max(0.0, number - held) / max(steps - 1 - held, 1)
    return warm * (start + (end - start) * fallen)
