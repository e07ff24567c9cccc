"""Calibration: the regression from signals to confidence, its properties, its file, and its fit with an engine."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from clara_core import CheckpointError, ClaraEngine, FingerprintMismatch
from clara_core.data.examples import RetrievalLine
from clara_core.engine.calibrating import without_gold
from clara_core.engine.calibration import Calibration, Level, Signals, fit_level, fit_levels, upper_bound
from tests.engines import PASSAGES, open_engine
from tests.tiny import build


def sample(count: int, seed: int = 0) -> tuple[list[list[float]], list[bool]]:
    """Answers that are right by a known law: logit = 2 x - 1 + noise."""
    rng = random.Random(seed)
    vectors = [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in range(count)]
    return vectors, [rng.random() < 1 / (1 + math.exp(1 - 2 * vector[0])) for vector in vectors]


def test_the_regression_finds_the_law() -> None:
    vectors, right = sample(4000)
    level = fit_level(vectors, right)
    slope = [weight / scale for weight, scale in zip(level.weights, level.scales, strict=False)]
    assert slope == pytest.approx([2.0, 0.0], abs=0.15)
    assert level.probability([0.5, 3.0]) == pytest.approx(0.5, abs=0.05)
    assert level.probability([1e6, 0.0]) == pytest.approx(1.0)


def test_a_signal_that_tells_all_or_nothing_breaks_nothing() -> None:
    level = fit_level([[float(n % 2), 1.0] for n in range(40)], [n % 2 == 1 for n in range(40)])
    assert level.probability([1.0, 1.0]) > 0.99
    assert level.probability([0.0, 1.0]) < 0.01
    with pytest.raises(ValueError, match="at least 20 answers, 5 of them right and 5 wrong; got 20, 20 of them right"):
        fit_level([[0.0]] * 20, [True] * 20)


@pytest.mark.parametrize("wrong, count, bound", [(0, 59, 0.0495), (0, 300, 0.00994), (5, 100, 0.1023), (10, 10, 1.0)])
def test_bounds_are_those_of_clopper_and_pearson(wrong: int, count: int, bound: float) -> None:
    assert upper_bound(wrong, count) == pytest.approx(bound, abs=5e-4)


def test_a_threshold_keeps_its_promise_on_other_answers() -> None:
    calibration = Calibration("f", {"fast": fit_level(*sample(4000))}, questions=4000)
    vectors, right = sample(4000, seed=1)
    sure = calibration.threshold(0.15, "fast")
    chances = [calibration.levels["fast"].probability(vector) for vector in vectors]
    kept = [hit for chance, hit in zip(chances, right, strict=True) if chance >= sure]
    assert len(kept) > 400
    assert 1 - sum(kept) / len(kept) <= 0.15
    table = calibration.levels["fast"].table
    assert [row.confidence for row in table] == sorted(row.confidence for row in table)
    assert all(row.error <= row.bound for row in table)
    assert table[0].coverage == 1.0
    with pytest.raises(
        ValueError, match="no threshold keeps the error at most 0: the lowest bound from 4000 questions"
    ):
        calibration.threshold(0.0, "fast")
    with pytest.raises(ValueError, match="level must be one of 'fast', got 'checked'"):
        calibration.threshold(0.05)


def test_the_level_is_the_richest_that_is_known() -> None:
    assert Signals(-1.0).level == "bare"
    assert Signals(-1.0, 0.5).level == "fast"
    checked = Signals(-100.0, 0.5, 0.2, 0.9, 0.4, verbatim=False)
    assert checked.level == "checked"
    assert checked.vector("checked") == pytest.approx([-8.0, 0.4, 0.1, 0.2, 0.0, 1.0, 0.9])
    assert checked.vector("fast") == pytest.approx([-8.0, 0.5, 0.2, 0.9])
    assert replace(checked, joined=True).level == replace(checked, named=0.5).level == "joined"


def test_extracts_and_other_answers_have_a_regression_each() -> None:
    rng = random.Random(2)
    signals = [Signals(rng.gauss(-1, 1), 0.5, cited_cosine=0.5, joined=n % 2 == 1) for n in range(2000)]
    right = [one.logprob > -1 if not one.joined else rng.random() < 0.5 for one in signals]
    made = Calibration("f", fit_levels(signals, right), questions=2000)
    sure, unsure = Signals(0.0, 0.5, cited_cosine=0.5), Signals(0.0, 0.5, cited_cosine=0.5, joined=True)
    assert made.confidence(sure) > 0.95
    assert made.confidence(unsure) == pytest.approx(0.5, abs=0.05)
    assert len(made.levels["checked"].table) > 0 == len(made.levels["joined"].table)
    # The coverage of a threshold is counted over both.
    assert made.levels["checked"].table[0].error == pytest.approx(1 - sum(right) / 2000)
    with pytest.raises(ValueError, match="level must be one of 'bare', 'fast', 'checked', got 'joined'"):
        made.threshold(0.1, "joined")
    few = fit_levels(signals[::2] + signals[1:20:2], right[::2] + right[1:20:2])
    assert set(few) == {"bare", "fast", "checked"}
    assert Calibration("f", few).confidence(unsure) == Calibration("f", few).confidence(sure)


def fast_level() -> Level:
    vectors, right = sample(200)
    return fit_level([[*vector, 0.0, 1.0] for vector in vectors], right)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration("f" * 64, {"fast": fast_level()}, 200, 0.3, 5, "float32")
    calibration.write(tmp_path)
    assert Calibration.read(tmp_path, "f" * 64) == calibration
    assert Calibration.read(tmp_path / "nowhere", "f" * 64) is None
    with pytest.raises(FingerprintMismatch, match="made for the model ffffffffffff, this engine is eeeeeeeeeeee"):
        Calibration.read(tmp_path, "e" * 64)
    for broken in ("{", "[]", '{"levels": {"fast": {}}}', '{"fingerprint": 1}'):
        (tmp_path / "calibration.json").write_text(broken)
        with pytest.raises(CheckpointError, match="is not a calibration"):
            Calibration.read(tmp_path, "f" * 64)
    Calibration("f" * 64, {"fast": fit_level(*sample(200))}).write(tmp_path)
    with pytest.raises(CheckpointError, match="the level 'fast' must have 4 features"):
        Calibration.read(tmp_path, "f" * 64)


def lines(count: int) -> list[RetrievalLine]:
    docs = PASSAGES[:3]
    return [RetrievalLine(f"What is {n}?", docs, f"answer {n}", (f"answer {n}",), (n % 3,)) for n in range(count)]


def test_gold_is_taken_away_from_a_share() -> None:
    given = lines(40)
    some = without_gold(given, 0.25)
    gone = [at for at, line in enumerate(some) if not line.pos_index]
    assert len(gone) == 10
    for at, line in enumerate(some):
        if at in gone:
            assert line.docs == tuple(doc for n, doc in enumerate(PASSAGES[:3]) if n != at % 3)
            assert line.references == ()  # no other document has the answer
        else:
            assert line == given[at]
    with pytest.raises(ValueError, match="at least 0 and below 1, got 1"):
        without_gold(given, 1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("calibration"), "mistral", seed=5))


def test_an_engine_that_is_nearly_always_wrong_is_not_calibrated(engine: ClaraEngine) -> None:
    with pytest.raises(ValueError, match="a calibration needs at least 20 answers"):
        engine.calibrate(lines(24), top_k=2)


def test_what_is_set_is_used_and_checked(engine: ClaraEngine) -> None:
    assert engine.calibration is None
    memories = engine.remember(PASSAGES[:2])
    with pytest.raises(FingerprintMismatch):
        engine.calibration = Calibration("f" * 64, {})
    engine.calibration = Calibration(engine.fingerprint, {"fast": fast_level()})
    answer = engine.answer("Where?", memories, max_tokens=3, min_confidence=0.0)
    assert (answer.confidence is not None) == (answer.finish_reason == "stop")
    engine.calibration = None
    assert engine.calibration is None


def test_a_file_of_other_weights_is_said_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = build(tmp_path, "mistral", seed=6)
    Calibration("f" * 64, {"fast": fast_level()}).write(tiny.folder)
    engine = open_engine(tiny)
    assert engine.calibration is None
    assert "calibration.json is not used" in caplog.text
    Calibration(engine.fingerprint, {"fast": fast_level()}).write(tiny.folder)
    engine.unload()
    assert engine.calibration is None  # the file is read once
    again = open_engine(tiny, dtype="bfloat16")
    assert again.calibration is not None
    assert again.fingerprint == engine.fingerprint
