"""Aggregates the outcomes of single questions to the metrics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from clara_core.evaluation.answers import score_answers
from clara_core.evaluation.outcomes import Outcome
from clara_core.evaluation.paraphrases import Paraphrase
from clara_core.evaluation.rankings import recall_at_k, score_rankings
from clara_core.evaluation.text_overlap import bleu, score_paraphrases

KS = (1, 3, 5, 10, 20)
_CURVE = 20  # largest k of a recall curve


def summarize(outcomes: Sequence[Outcome], paraphrases: Sequence[Paraphrase]) -> dict[str, Any]:
    """Compute the metrics of a run.

    Returns:
        dict: ``questions``; ``answers`` by mode and system (scores, ``bleu``, ``failed``, mean ``memory_tokens`` and
        ``source_tokens`` of a question); ``retrieval`` by ranker, over the ``with_gold`` questions whose gold passages
        are known (missing if there are none); mean ``size`` of a passage; ``paraphrase`` (missing without paraphrases).
    """
    figures: dict[str, Any] = {"questions": len(outcomes), "answers": _answers(outcomes)}
    known = _with_gold(outcomes)
    figures["with_gold"] = len(known)
    if known:
        figures["retrieval"] = _retrieval(known)
    figures["size"] = _size(outcomes)
    if paraphrases:
        scores = score_paraphrases([one.passage for one in paraphrases], [one.again for one in paraphrases])
        figures["paraphrase"] = {"passages": len(paraphrases), **scores}
    return figures


def recall_curves(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Recall at 1, 2, 3, … by ranker; empty if no gold passage is known."""
    known = _with_gold(outcomes)
    if not known:
        return {}
    last = min(_CURVE, max(outcome.sizes.passages for outcome in known))
    curves = {}
    for ranker in known[0].rankings:
        pairs = [_as_ranking(outcome, ranker) for outcome in known]
        curves[ranker] = [fmean(recall_at_k(*pair, k) for pair in pairs) for k in range(1, last + 1)]
    return curves


def _with_gold(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of questions whose gold passages are known."""
    return [outcome for outcome in outcomes if any(one.gold_ranks for one in outcome.rankings.values())]


def _answers(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for number, first in enumerate(outcomes[0].replies):
        replies = [outcome.replies[number] for outcome in outcomes]
        texts, golds = [reply.text for reply in replies], [outcome.references for outcome in outcomes]
        figures.setdefault(first.mode, {})[first.system] = {
            **score_answers(texts, golds),
            "bleu": bleu(texts, golds),
            "failed": sum(bool(reply.failed) for reply in replies),
            "memory_tokens": fmean(reply.memory_tokens for reply in replies),
            "source_tokens": fmean(reply.source_tokens for reply in replies),
        }
    return figures


def _retrieval(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    most = max(outcome.sizes.passages for outcome in outcomes)
    ks = [k for k in KS if k == 1 or k <= most]
    figures = {}
    for ranker in outcomes[0].rankings:
        pairs = [_as_ranking(outcome, ranker) for outcome in outcomes]
        figures[ranker] = score_rankings([ranked for ranked, _ in pairs], [gold for _, gold in pairs], ks)
    return figures


def _as_ranking(outcome: Outcome, ranker: str) -> tuple[range, set[int]]:
    """A ranking with the ranks as ids, since the metrics do not depend on the ids."""
    return range(1, outcome.sizes.passages + 1), set(outcome.rankings[ranker].gold_ranks)


def _size(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the candidates of all questions; a candidate of two questions counts twice."""
    passages = sum(outcome.sizes.passages for outcome in outcomes)
    return {
        name: sum(getattr(outcome.sizes, name) for outcome in outcomes) / passages
        for name in ("memory_bytes", "text_bytes", "memory_tokens", "text_tokens")
    }
