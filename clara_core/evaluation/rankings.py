"""Metrics of rankings, all in [0, 1]: recall, hit rate, precision, reciprocal rank, nDCG.

A ranking is a list of distinct ids, best first; `relevant` is the set of relevant ids. If a ranking is shorter than
`k`, the missing places count as misses; so do relevant ids that are not in the ranking.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from statistics import fmean
from typing import TypeVar

from clara_core.evaluation.aggregate import check_lengths

Id = TypeVar("Id", bound=Hashable)


def recall_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Share of the relevant ids that are among the first `k`.

    Raises:
        ValueError: There is no relevant id, `k` is below 1, or the ranking holds an id twice.
    """
    found, relevant_ids = _found(ranked, relevant, k)
    return sum(found) / len(relevant_ids)


def hit_rate(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """1.0 if at least one relevant id is among the first `k`, else 0.0; raises as `recall_at_k`."""
    found, _ = _found(ranked, relevant, k)
    return float(any(found))


def precision_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Relevant ids among the first `k`, divided by `k` (also for shorter rankings); raises as `recall_at_k`."""
    found, _ = _found(ranked, relevant, k)
    return sum(found) / k


def reciprocal_rank(ranked: Sequence[Id], relevant: Collection[Id], k: int | None = None) -> float:
    """``1 / rank`` of the first relevant id, 0.0 if none is among the first `k` (None: in the whole ranking).

    Raises:
        ValueError: As `recall_at_k`.
    """
    found, _ = _found(ranked, relevant, max(1, len(ranked)) if k is None else k)
    return next((1 / rank for rank, hit in enumerate(found, start=1) if hit), 0.0)


def ndcg_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Normalised discounted cumulative gain with gains of 0 and 1; raises as `recall_at_k`.

    The gain at rank r is divided by ``log2(r + 1)``; the sum is divided by that of an ideal ranking, which has relevant
    ids in the first ``min(k, number of relevant ids)`` places.
    """
    found, relevant_ids = _found(ranked, relevant, k)
    gain = sum(_discount(rank) for rank, hit in enumerate(found, start=1) if hit)
    return gain / sum(_discount(rank) for rank in range(1, min(k, len(relevant_ids)) + 1))


def mrr(rankings: Sequence[Sequence[Id]], relevant: Sequence[Collection[Id]], k: int | None = None) -> float:
    """Mean reciprocal rank over questions.

    Raises:
        ValueError: There is no question, the lengths differ, or as `recall_at_k`.
    """
    check_lengths("rankings", rankings, "relevant", relevant)
    return fmean(
        reciprocal_rank(ranked, relevant_ids, k) for ranked, relevant_ids in zip(rankings, relevant, strict=True)
    )


def score_rankings(
    rankings: Sequence[Sequence[Id]], relevant: Sequence[Collection[Id]], ks: Sequence[int] = (1, 5, 20)
) -> dict[str, float]:
    """Means over questions: ``recall@k``, ``hit@k``, ``precision@k`` for each of `ks`, ``mrr``, ``ndcg@10``.

    Raises:
        ValueError: As `mrr`.
    """
    check_lengths("rankings", rankings, "relevant", relevant)
    pairs = list(zip(rankings, relevant, strict=True))
    measures = {"recall": recall_at_k, "hit": hit_rate, "precision": precision_at_k}
    scores = {
        f"{name}@{k}": fmean(measure(ranked, relevant_ids, k) for ranked, relevant_ids in pairs)
        for name, measure in measures.items()
        for k in ks
    }
    scores["mrr"] = mrr(rankings, relevant)
    scores["ndcg@10"] = fmean(ndcg_at_k(ranked, relevant_ids, 10) for ranked, relevant_ids in pairs)
    return scores


def _found(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> tuple[list[bool], set[Id]]:
    """Whether each of the first `k` ids is relevant, and the set of relevant ids."""
    relevant_ids = set(relevant)
    if not relevant_ids:
        raise ValueError("a question needs at least one relevant id, got none; leave such questions out")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(set(ranked)) < len(ranked):
        twice = next(id_ for id_, count in Counter(ranked).items() if count > 1)
        raise ValueError(f"a ranking must hold each id once, got {twice!r} more than once")
    return [id_ in relevant_ids for id_ in ranked[:k]], relevant_ids


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


def with_gold(ranked: Sequence[int], gold: Collection[int], k: int) -> list[int]:
    """`k` documents of a ranking that include the gold passages (the first `k` of them, if there are more).

    A gold passage below rank `k` replaces the last document that is not gold. The order is that of the ranking.
    """
    places = [place for place, index in enumerate(ranked) if index in gold][:k]
    others = [place for place, index in enumerate(ranked) if index not in gold]
    return [ranked[place] for place in sorted([*places, *others[: k - len(places)]])]
