"""Metrics of confidences, and a run that measures citations, confidences and second readings on questions.

The metrics say how well confidences separate right from wrong answers, and how well they are calibrated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clara_core.data.examples import RetrievalLine
from clara_core.evaluation.aggregate import check_lengths
from clara_core.evaluation.answers import cover_match, exact_match

if TYPE_CHECKING:
    from clara_core.engine.engine import ClaraEngine
    from clara_core.engine.sampling import Answer

_BATCH = 16  # questions of a call

Pairs = Sequence[tuple[float, bool]]
"""A confidence, and whether the answer was right."""


def auroc(pairs: Pairs) -> float:
    """Probability that a right answer has more confidence than a wrong one (ties count half); 0.5 without a pair."""
    right, wrong = (sorted(value for value, hit in pairs if hit is kind) for kind in (True, False))
    if not right or not wrong:
        return 0.5
    ordered = sorted({*right, *wrong})
    places = {value: at for at, value in enumerate(ordered)}
    counts = [0] * len(ordered)
    for value in wrong:
        counts[places[value]] += 1
    below, total = [], 0
    for count in counts:
        below.append(total + count / 2)
        total += count
    return sum(below[places[value]] for value in right) / (len(right) * len(wrong))


def calibration_error(pairs: Pairs, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal size."""
    error = sum(len(some) * abs(fmean(v for v, _ in some) - fmean(h for _, h in some)) for some in _bins(pairs, bins))
    return error / len(pairs)


def brier(pairs: Pairs) -> float:
    """Brier score: mean squared distance of confidence and correctness (0 or 1)."""
    return fmean((value - hit) ** 2 for value, hit in pairs)


def risk_coverage(pairs: Pairs) -> list[tuple[float, float]]:
    """Coverage and error rate if only the n most confident answers are given, for each n."""
    points, wrong = [], 0
    for count, (_, hit) in enumerate(sorted(pairs, key=lambda pair: -pair[0]), start=1):
        wrong += not hit
        points.append((count / len(pairs), wrong / count))
    return points


def aurc(pairs: Pairs) -> float:
    """Area under the risk-coverage curve: the mean error rate over all coverages."""
    return fmean(error for _, error in risk_coverage(pairs))


def augrc(pairs: Pairs) -> float:
    """Area under the curve of the generalized risk (error rate times coverage), in which high coverage weighs more."""
    return fmean(coverage * error for coverage, error in risk_coverage(pairs))


def coverage_at_error(pairs: Pairs, error: float) -> float:
    """The highest coverage with at most this error rate."""
    return max((coverage for coverage, found in risk_coverage(pairs) if found <= error), default=0.0)


def reliability(pairs: Pairs, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of each bin; bins have equal size."""
    return [(fmean(v for v, _ in some), fmean(h for _, h in some), len(some)) for some in _bins(pairs, bins)]


def bootstrap(
    pairs: Pairs, measure: Callable[[Pairs], float], rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % confidence interval of a metric by bootstrap."""
    rng = random.Random(seed)
    found = sorted(measure(rng.choices(pairs, k=len(pairs))) for _ in range(rounds))
    return found[math.floor(0.025 * rounds)], found[min(math.ceil(0.975 * rounds), rounds) - 1]


def trust_scores(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    """All metrics: ``auroc``, ``ece``, ``brier``, ``aurc``, ``augrc`` and coverage at 1, 2 and 5 % error.

    Raises:
        ValueError: There is no answer, or the lengths differ.
    """
    check_lengths("confidences", confidences, "right", right)
    pairs = list(zip(confidences, right, strict=True))
    return {
        "auroc": auroc(pairs),
        "ece": calibration_error(pairs),
        "brier": brier(pairs),
        "aurc": aurc(pairs),
        "augrc": augrc(pairs),
        **{f"coverage@{error:.0%}": coverage_at_error(pairs, error) for error in (0.01, 0.02, 0.05)},
    }


def _bins(pairs: Pairs, bins: int) -> list[Pairs]:
    ordered = sorted(pairs, key=lambda pair: pair[0])  # stable, so that ties are not sorted by correctness
    edges = [round(len(ordered) * at / bins) for at in range(bins + 1)]
    return [ordered[start:end] for start, end in pairwise(edges) if end > start]


# --- a run --------------------------------------------------------------------------------------------


def measure_trust(
    engine: ClaraEngine, lines: Sequence[RetrievalLine], *, top_k: int = 5, max_tokens: int = 64
) -> dict[str, Any]:
    """Answer all questions from their best candidates, with evidence, and score the evidence.

    Args:
        engine: The engine; without a calibration, the confidence is the probability of the answer.
        lines: Questions with candidates.
        top_k: Documents that are read for a question.
        max_tokens: Most tokens of an answer.

    Returns:
        dict: ``confidence`` (`trust_scores`; an answer is right if it covers a reference) and its baseline
        ``logprob_auroc``; ``citations`` (share of right answers whose first citation is a gold document) and its
        baseline ``first_ranked`` (the same for the best ranked document); ``passed`` (share of answers that pass all
        checks, and their accuracy); ``exact_match``, and ``again`` (the same with a second reading of doubtful
        answers). Values that no question determines are None.
    """
    answers: list[Answer] = []
    again: list[Answer] = []
    golds: list[set[int]] = []
    for start in range(0, len(lines), _BATCH):
        items = []
        for line in lines[start : start + _BATCH]:
            memories = engine.remember(line.docs)
            order = [hit.index for hit in engine.rank(line.question, memories, top_k)] if engine.ranks else range(top_k)
            kept = [at for at in order if at < len(memories)]
            items.append((line.question, [memories[at] for at in kept]))
            golds.append({place for place, at in enumerate(kept) if at in line.pos_index})
        answers += engine.answer_batch(
            items, max_tokens=max_tokens, citations=True, logprobs=True, min_confidence=0.0
        )  # fmt: skip
        again += engine.answer_batch(items, max_tokens=max_tokens, read="again")
    right = [cover_match(one.text, line.references) == 1.0 for one, line in zip(answers, lines, strict=True)]
    known = [(one, hit) for one, hit in zip(answers, right, strict=True) if one.confidence is not None]
    cited = [
        (one.citations[0].document in gold if one.citations else False, 0 in gold)
        for one, gold, hit in zip(answers, golds, right, strict=True)
        if hit and gold
    ]
    passed = [hit for one, hit in zip(answers, right, strict=True) if _passes(one)]
    exact, second = (
        fmean(exact_match(one.text, line.references) for one, line in zip(some, lines, strict=True))
        for some in (answers, again)
    )
    return {
        "questions": len(lines),
        "calibrated": all(one.calibrated for one, _ in known) and bool(known),
        "confidence": trust_scores([one.confidence or 0.0 for one, _ in known], [hit for _, hit in known])
        if known
        else None,
        "logprob_auroc": auroc([(_logprob(one), hit) for one, hit in known]) if known else None,
        "citations": fmean(hit for hit, _ in cited) if cited else None,
        "first_ranked": fmean(hit for _, hit in cited) if cited else None,
        "passed": {"share": len(passed) / len(lines), "accuracy": fmean(passed) if passed else None},
        "exact_match": exact,
        "again": {"exact_match": second, "taken": fmean(one.reading == "again" for one in again)},
    }


def _passes(answer: Answer) -> bool:
    checks = answer.checks
    return checks is not None and bool(checks.cited_first and checks.verbatim and checks.grounded)


def _logprob(answer: Answer) -> float:
    return sum(token.logprob for token in answer.logprobs or ())
