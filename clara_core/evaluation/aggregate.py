"""The check of metrics that are means over questions."""

from __future__ import annotations

from collections.abc import Sequence


def check_lengths(name: str, left: Sequence[object], other: str, right: Sequence[object]) -> None:
    """Check that two lists have the same length and are not empty.

    Raises:
        ValueError: They have different lengths or are empty.
    """
    if len(left) != len(right):
        raise ValueError(f"{name} ({len(left)}) and {other} ({len(right)}) must have the same length")
    if not left:
        raise ValueError(f"{name} is empty: a mean needs at least one question")
