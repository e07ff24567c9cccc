"""How good answers and rankings are. Plain Python: knows nothing of models, tensors or files.

Answers are compared as the published evaluation of CLaRa does it (the normalisation of SQuAD, then exact match,
cover exact match, F1). Every measure speaks of one question, takes one or several gold answers and lies in [0, 1];
`score_answers` and `score_rankings` average over questions.

Rankings are lists of ids, best first, that name no id twice; what is relevant is a set of ids. A ranking may be
shorter than `k`: places that were not filled count as misses. An id in the set that no ranking could name counts as
missed, too.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

__all__ = [
    "cover_match",
    "exact_match",
    "f1",
    "hit_rate",
    "mrr",
    "ndcg_at_k",
    "normalize_answer",
    "precision_at_k",
    "recall_at_k",
    "reciprocal_rank",
    "score_answers",
    "score_rankings",
]

Id = TypeVar("Id", bound=Hashable)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BOOLEANS = {"True": "yes", "False": "no"}  # how some models write the answer to a yes-no question
_CLOSED = frozenset({"yes", "no", "noanswer"})  # answers of which a part is worth nothing


# --- answers ---------------------------------------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces.

    Punctuation goes first and leaves no space: ``"1,200"`` becomes ``"1200"``, ``"co-op"`` becomes ``"coop"``.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str | Sequence[str]) -> float:
    """1.0 if the prediction is one of the gold answers after normalisation, else 0.0.

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_same, prediction, gold)


def cover_match(prediction: str, gold: str | Sequence[str]) -> float:
    """1.0 if every word of one of the gold answers is a word of the prediction after normalisation, else 0.0.

    As published: words are compared whole (``no`` is not in ``north``), their order is not. A gold answer that has
    no word left after normalisation (``"The"``) is covered only by a prediction that has none either.

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_covers, prediction, gold)


def f1(prediction: str, gold: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the words, the best of the gold answers.

    Words count as often as they occur. ``yes``, ``no`` and ``noanswer`` are right or wrong as a whole. Two texts
    without any word left after normalisation agree (1.0).

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_overlap, prediction, gold)


def score_answers(predictions: Sequence[str], golds: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Means over questions: ``exact_match``, ``cover_match``, ``f1``.

    Raises:
        ValueError: No question, another number of gold answers than of predictions, or a question without gold.
    """
    _check_lengths("predictions", predictions, "golds", golds)
    pairs = list(zip(predictions, golds, strict=True))
    return {
        measure.__name__: _mean(measure(prediction, gold) for prediction, gold in pairs)
        for measure in (exact_match, cover_match, f1)
    }


def _best(measure: Callable[[str, str], float], prediction: str, gold: str | Sequence[str]) -> float:
    answers = [gold] if isinstance(gold, str) else list(gold)
    if not answers:
        raise ValueError("a question needs at least one gold answer, got none")
    said = _normal(prediction)
    return max(measure(said, _normal(answer)) for answer in answers)


def _normal(text: str) -> str:
    return normalize_answer(_BOOLEANS.get(text, text))


def _same(prediction: str, gold: str) -> float:
    return float(prediction == gold)


def _covers(prediction: str, gold: str) -> float:
    if not gold:
        return float(not prediction)
    return float(set(gold.split()) <= set(prediction.split()))


def _overlap(prediction: str, gold: str) -> float:
    if prediction in _CLOSED or gold in _CLOSED or not prediction or not gold:
        return _same(prediction, gold)
    said, wanted = prediction.split(), gold.split()
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


# --- rankings --------------------------------------------------------------------------------------------


def recall_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Share of the relevant ids that are among the first `k`.

    Raises:
        ValueError: Nothing is relevant (the share of nothing has no value), `k` is below 1, or an id is ranked twice.
    """
    found, wanted = _found(ranked, relevant, k)
    return sum(found) / len(wanted)


def hit_rate(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """1.0 if at least one relevant id is among the first `k`, else 0.0; raises as `recall_at_k`."""
    found, _ = _found(ranked, relevant, k)
    return float(any(found))


def precision_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Relevant ids among the first `k`, divided by `k` also where fewer were ranked; raises as `recall_at_k`."""
    found, _ = _found(ranked, relevant, k)
    return sum(found) / k


def reciprocal_rank(ranked: Sequence[Id], relevant: Collection[Id], k: int | None = None) -> float:
    """``1 / rank`` of the first relevant id, 0.0 where none is among the first `k` (None: all that are ranked).

    Raises:
        ValueError: As `recall_at_k`.
    """
    found, _ = _found(ranked, relevant, max(1, len(ranked)) if k is None else k)
    return next((1 / rank for rank, hit in enumerate(found, start=1) if hit), 0.0)


def ndcg_at_k(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> float:
    """Normalised discounted cumulative gain with gains of 0 and 1; raises as `recall_at_k`.

    The gain at rank r is divided by ``log2(r + 1)``; the sum is divided by that of the best ranking possible, which
    has the first ``min(k, number of relevant ids)`` places right.
    """
    found, wanted = _found(ranked, relevant, k)
    gain = sum(_discount(rank) for rank, hit in enumerate(found, start=1) if hit)
    return gain / sum(_discount(rank) for rank in range(1, min(k, len(wanted)) + 1))


def mrr(rankings: Sequence[Sequence[Id]], relevant: Sequence[Collection[Id]], k: int | None = None) -> float:
    """Mean reciprocal rank over questions.

    Raises:
        ValueError: No question, as many rankings as sets of relevant ids are not given, or as `recall_at_k`.
    """
    _check_lengths("rankings", rankings, "relevant", relevant)
    return _mean(reciprocal_rank(ranked, wanted, k) for ranked, wanted in zip(rankings, relevant, strict=True))


def score_rankings(
    rankings: Sequence[Sequence[Id]], relevant: Sequence[Collection[Id]], ks: Sequence[int] = (1, 5, 20)
) -> dict[str, float]:
    """Means over questions: ``recall@k``, ``hit@k``, ``precision@k`` for each of `ks`, ``mrr``, ``ndcg@10``.

    Raises:
        ValueError: As `mrr`.
    """
    _check_lengths("rankings", rankings, "relevant", relevant)
    pairs = list(zip(rankings, relevant, strict=True))
    measures = {"recall": recall_at_k, "hit": hit_rate, "precision": precision_at_k}
    scores = {
        f"{name}@{k}": _mean(measure(ranked, wanted, k) for ranked, wanted in pairs)
        for name, measure in measures.items()
        for k in ks
    }
    scores["mrr"] = mrr(rankings, relevant)
    scores["ndcg@10"] = _mean(ndcg_at_k(ranked, wanted, 10) for ranked, wanted in pairs)
    return scores


def _found(ranked: Sequence[Id], relevant: Collection[Id], k: int) -> tuple[list[bool], set[Id]]:
    """Whether each of the first `k` is relevant, and the set of what is."""
    wanted = set(relevant)
    if not wanted:
        raise ValueError("a question needs at least one relevant id, got none; leave such questions out")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(set(ranked)) < len(ranked):
        twice = next(id_ for id_, count in Counter(ranked).items() if count > 1)
        raise ValueError(f"a ranking must name each id once, got {twice!r} more than once")
    return [id_ in wanted for id_ in ranked[:k]], wanted


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1)


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return math.fsum(given) / len(given)


def _check_lengths(name: str, left: Sequence[object], other: str, right: Sequence[object]) -> None:
    if len(left) != len(right):
        raise ValueError(f"{name} ({len(left)}) and {other} ({len(right)}) differ in number")
    if not left:
        raise ValueError(f"{name} is empty: a mean needs at least one question")
