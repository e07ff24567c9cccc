"""Means over questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    given = list(values)
    return math.fsum(given) / len(given)


def check_lengths(name: str, left: Sequence[object], other: str, right: Sequence[object]) -> None:
    """Refuse two lists that do not belong together, and empty ones.

    Raises:
        ValueError: Says both lengths, or which is empty.
    """
    if len(left) != len(right):
        raise ValueError(f"{name} ({len(left)}) and {other} ({len(right)}) differ in number")
    if not left:
        raise ValueError(f"{name} is empty: a mean needs at least one question")
