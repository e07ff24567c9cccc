"""How well a confidence tells right answers from wrong ones: plain functions of pairs (confidence, right or not)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from clara_core.evaluation.aggregate import check_lengths, mean

Pairs = Sequence[tuple[float, bool]]
"""A confidence, and whether the answer was right."""


def auroc(pairs: Pairs) -> float:
    """Chance that a right answer has a higher confidence than a wrong one; ties count half. 0.5 where no pair is."""
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
    """Mean distance of confidence and accuracy over bins of equal mass (ECE)."""
    error = sum(
        len(some) * abs(mean([v for v, _ in some]) - mean([float(h) for _, h in some])) for some in _bins(pairs, bins)
    )
    return error / len(pairs)


def brier(pairs: Pairs) -> float:
    """Mean squared distance of confidence and truth."""
    return mean([(value - hit) ** 2 for value, hit in pairs])


def risk_coverage(pairs: Pairs) -> list[tuple[float, float]]:
    """Coverage and error if only the most confident answers are given: one point for each number of them."""
    points, wrong = [], 0
    for count, (_, hit) in enumerate(sorted(pairs, key=lambda pair: -pair[0]), start=1):
        wrong += not hit
        points.append((count / len(pairs), wrong / count))
    return points


def aurc(pairs: Pairs) -> float:
    """Area under the curve of risk and coverage: the mean error over all numbers of answers given."""
    return mean([error for _, error in risk_coverage(pairs)])


def augrc(pairs: Pairs) -> float:
    """The same of the generalized risk (error times coverage), in which high coverage weighs more."""
    return mean([coverage * error for coverage, error in risk_coverage(pairs)])


def coverage_at_error(pairs: Pairs, error: float) -> float:
    """The largest share of the questions that can be answered with at most this share of wrong answers."""
    return max((coverage for coverage, found in risk_coverage(pairs) if found <= error), default=0.0)


def reliability(pairs: Pairs, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of each bin of equal mass."""
    return [(mean([v for v, _ in some]), mean([float(h) for _, h in some]), len(some)) for some in _bins(pairs, bins)]


def bootstrap(
    pairs: Pairs, measure: Callable[[Pairs], float], rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The interval that holds 95 % of a measure over samples drawn with replacement."""
    rng = random.Random(seed)
    found = sorted(measure(rng.choices(pairs, k=len(pairs))) for _ in range(rounds))
    return found[math.floor(0.025 * rounds)], found[min(math.ceil(0.975 * rounds), rounds) - 1]


def trust_scores(confidences: Sequence[float], right: Sequence[bool]) -> dict[str, float]:
    """All of them: ``auroc``, ``ece``, ``brier``, ``aurc``, ``augrc`` and coverage at 1, 2 and 5 % error.

    Raises:
        ValueError: No answer, or another number of truths.
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
    ordered = sorted(pairs, key=lambda pair: pair[0])  # equal ones in their order, not by their truth
    edges = [round(len(ordered) * at / bins) for at in range(bins + 1)]
    return [ordered[start:end] for start, end in pairwise(edges) if end > start]
