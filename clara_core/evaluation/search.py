"""Adds gold passages to the documents of a ranking that are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def with_gold(ranked: Sequence[int], gold: Collection[int], k: int) -> list[int]:
    """`k` documents of a ranking that include the gold passages (the first `k` of them, if there are more).

    A gold passage below rank `k` replaces the last document that is not gold. The order is that of the ranking.
    """
    places = [place for place, index in enumerate(ranked) if index in gold][:k]
    others = [place for place, index in enumerate(ranked) if index not in gold]
    return [ranked[place] for place in sorted([*places, *others[: k - len(places)]])]
