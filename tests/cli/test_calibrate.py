"""The command `clara calibrate`: it reads a file of questions and writes a file beside the checkpoint."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from clara_core import ClaraEngine
from clara_core.engine.calibration import Calibration
from tools.pocket_factory.world import ENCYCLOPEDIA, make_corpus


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions about each of ten passages, each with its passage and two others."""
    corpus = make_corpus(random.Random(8), 10, split="test", words=(20, 50), questions_per_passage=3, two_passage=0.0)
    texts = [passage.text for passage in corpus.passages]
    path = tmp_path_factory.mktemp("calibrate") / "questions.jsonl"
    lines = []
    for asked in corpus.questions:
        [gold] = asked.gold
        docs = [texts[gold], texts[(gold + 1) % 10], texts[(gold + 2) % 10]]
        lines.append(json.dumps({"question": asked.text, "docs": docs, "answer": asked.answer, "pos_index": [0]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_it_writes_what_the_engine_reads(questions: Path, tmp_path: Path, clara) -> None:
    options = ("--model", ENCYCLOPEDIA, "--out", tmp_path, "--unanswerable", "0.4")
    code, out, err = clara("calibrate", questions, *options, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["file"] == str(tmp_path / "calibration.json")
    assert {"bare", "fast", "checked"} <= set(facts["levels"]) <= {"bare", "fast", "checked", "joined"}
    engine = ClaraEngine.from_pretrained(ENCYCLOPEDIA)
    made = Calibration.read(tmp_path, engine.fingerprint)
    assert made.questions <= 30
    assert made.unanswerable == pytest.approx(0.4)
    before = engine.calibration
    try:
        engine.calibration = made
        memories = engine.remember(["Tolmet Mill was built in 1712. It grinds oats.", "Dorven Hall seats 900 people."])
        answer = engine.answer("When was Tolmet Mill built?", memories, citations=True)
        assert answer.calibrated
        assert 0 < answer.confidence < 1
    finally:
        engine.calibration = before


def test_what_it_shows(questions: Path, tmp_path: Path, clara) -> None:
    code, out, _ = clara("calibrate", questions, "--model", ENCYCLOPEDIA, "--out", tmp_path, "--unanswerable", "0.4")
    assert code == 0
    assert "checked" in out
    assert "error <= 0.05" in out


def test_too_few_questions_are_one_line(questions: Path, tmp_path: Path, clara) -> None:
    code, _, err = clara("calibrate", questions, "--model", ENCYCLOPEDIA, "--out", tmp_path, "--limit", "3")
    assert code == 2
    assert "a calibration needs at least 20 answers" in err
    assert not list(tmp_path.iterdir())
