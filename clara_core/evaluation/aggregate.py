"""Means over questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def mean(values: Iterable[float]) -> float:
    """Mean of at least one value."""
    given = list(values)
    return math.fsum(given) / len(given)


def check_lengths(name: str, left: Sequence[object], other: str, right: Sequence[object]) -> None:
    """Check that two lists have the same length and are not empty.

    Raises:
        ValueError: They have different lengths or are empty.
    """
    if len(left) != len(right):
        raise ValueError(f"{name} ({len(left)}) and {other} ({len(right)}) must have the same length")
    if not left:
        raise ValueError(f"{name} is empty: a mean needs at least one question")
