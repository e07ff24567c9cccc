"""Gold passages put among those that are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def with_gold(ranked: Sequence[int], gold: Collection[int], k: int) -> list[int]:
    """The first `k` of a ranking, in which every gold passage has a place (the first `k` of them, if they are more).

    A gold passage that the ranking left out takes the place of the last one that is not gold. The order stays that of
    the ranking.
    """
    places = [place for place, index in enumerate(ranked) if index in gold][:k]
    others = [place for place, index in enumerate(ranked) if index not in gold]
    return [ranked[place] for place in sorted([*places, *others[: k - len(places)]])]
