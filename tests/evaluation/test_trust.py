"""Measures of confidence, compared with values computed by hand or with their definition."""

from __future__ import annotations

import random

import pytest

from clara_core.evaluation.trust import (
    augrc,
    aurc,
    auroc,
    bootstrap,
    brier,
    calibration_error,
    coverage_at_error,
    reliability,
    risk_coverage,
    trust_scores,
)

PAIRS = [(0.9, True), (0.8, True), (0.7, False), (0.4, True), (0.2, False)]


def drawn(count: int, seed: int = 0) -> list[tuple[float, bool]]:
    rng = random.Random(seed)
    return [(value := round(rng.random(), 1), rng.random() < value) for _ in range(count)]


def test_by_hand():
    assert auroc(PAIRS) == pytest.approx(5 / 6)
    assert brier(PAIRS) == pytest.approx((0.01 + 0.04 + 0.49 + 0.36 + 0.04) / 5)
    assert risk_coverage(PAIRS) == [(0.2, 0.0), (0.4, 0.0), (0.6, 1 / 3), (0.8, 0.25), (1.0, 0.4)]
    assert aurc(PAIRS) == pytest.approx((0 + 0 + 1 / 3 + 0.25 + 0.4) / 5)
    assert augrc(PAIRS) == pytest.approx((0 + 0 + 0.2 + 0.2 + 0.4) / 5)
    assert coverage_at_error(PAIRS, 0.0) == 0.4
    assert coverage_at_error(PAIRS, 0.25) == 0.8
    assert coverage_at_error([(0.9, False)], 0.5) == 0.0
    assert reliability(PAIRS, 5) == [(value, float(hit), 1) for value, hit in sorted(PAIRS)]
    assert calibration_error(PAIRS, 5) == pytest.approx((0.1 + 0.2 + 0.7 + 0.6 + 0.2) / 5)


def test_the_area_is_the_share_of_pairs_in_order():
    pairs = drawn(200)
    right = [value for value, hit in pairs if hit]
    wrong = [value for value, hit in pairs if not hit]
    plain = sum((one > other) + (one == other) / 2 for one in right for other in wrong) / (len(right) * len(wrong))
    assert auroc(pairs) == pytest.approx(plain)
    assert auroc([(0.3, True)]) == 0.5


def test_confidence_that_is_the_probability_is_calibrated():
    assert calibration_error(drawn(20_000)) < 0.02
    assert calibration_error([(0.9, hit) for _, hit in drawn(2000)]) > 0.3


def test_the_interval_holds_the_measure():
    pairs = drawn(300)
    low, high = bootstrap(pairs, auroc, rounds=200)
    assert low < auroc(pairs) < high
    assert high - low < 0.2


def test_all_of_them_together():
    scores = trust_scores([value for value, _ in PAIRS], [hit for _, hit in PAIRS])
    assert scores["auroc"] == auroc(PAIRS)
    assert list(scores)[-3:] == ["coverage@1%", "coverage@2%", "coverage@5%"]
    for confidences in ([], [0.5]):
        with pytest.raises(ValueError, match=r"confidences|right"):
            trust_scores(confidences, [])
