"""Metrics of confidences: how well they separate right from wrong answers, and how well they are calibrated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from clara_core.evaluation.aggregate import check_lengths, mean

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
    error = sum(
        len(some) * abs(mean([v for v, _ in some]) - mean([float(h) for _, h in some])) for some in _bins(pairs, bins)
    )
    return error / len(pairs)


def brier(pairs: Pairs) -> float:
    """Brier score: mean squared distance of confidence and correctness (0 or 1)."""
    return mean([(value - hit) ** 2 for value, hit in pairs])


def risk_coverage(pairs: Pairs) -> list[tuple[float, float]]:
    """Coverage and error rate if only the n most confident answers are given, for each n."""
    points, wrong = [], 0
    for count, (_, hit) in enumerate(sorted(pairs, key=lambda pair: -pair[0]), start=1):
        wrong += not hit
        points.append((count / len(pairs), wrong / count))
    return points


def aurc(pairs: Pairs) -> float:
    """Area under the risk-coverage curve: the mean error rate over all coverages."""
    return mean([error for _, error in risk_coverage(pairs)])


def augrc(pairs: Pairs) -> float:
    """Area under the curve of the generalized risk (error rate times coverage), in which high coverage weighs more."""
    return mean([coverage * error for coverage, error in risk_coverage(pairs)])


def coverage_at_error(pairs: Pairs, error: float) -> float:
    """The highest coverage with at most this error rate."""
    return max((coverage for coverage, found in risk_coverage(pairs) if found <= error), default=0.0)


def reliability(pairs: Pairs, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of each bin; bins have equal size."""
    return [(mean([v for v, _ in some]), mean([float(h) for _, h in some]), len(some)) for some in _bins(pairs, bins)]


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
