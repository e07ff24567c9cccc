"""Learning rates over the steps of a phase."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def scheduled(schedule: Schedule, rate: float, steps: int, warmup: float, number: int) -> float:
    """The rate of a step.

    Args:
        schedule: "cosine" falls to zero at the end; "constant" stays.
        rate: The greatest rate.
        steps: Of the phase.
        warmup: Share of the steps in which a cosine rate climbs in a straight line.
        number: The step, from 0 on.
    """
    if schedule == "constant":
        return rate
    climbing = round(warmup * steps)
    if number < climbing:
        return rate * (number + 1) / climbing
    done = (number - climbing) / max(1, steps - climbing)
    return rate * 0.5 * (1 + math.cos(math.pi * done))


def held_then_falling(rates: tuple[float, float], hold: float, steps: int, number: int) -> float:
    """A warm-up of 50 steps, then the first rate for a share of the steps, then a straight line to the second."""
    start, end = rates
    warm = min(1.0, (number + 1) / 50)
    held = hold * steps
    fallen = max(0.0, number - held) / max(steps - 1 - held, 1)
    return warm * (start + (end - start) * fallen)
