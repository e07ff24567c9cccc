"""The bundled model: its size, and its retrieval, answers and citations on the open half of the hand-typed texts."""

from __future__ import annotations

import pytest

from benchmarks.encyclopedia_tasks import DOCUMENTS, MAX_TOKENS
from benchmarks.evaluate_typed import hybrid_ranking
from benchmarks.trust_typed import measure
from benchmarks.typed_tasks import FACTS, TypedSet, typed_set
from clara_core import ClaraEngine
from clara_core.checkpoint.config import Role
from clara_core.checkpoint.hub import BUNDLED
from clara_core.evaluation import exact_match, score_rankings

LARGEST = 22_000_000  # bytes of all files
# Lower bounds for the open half; benchmarks/evaluate_typed.py measures both halves completely.
HYBRID_RECALL_1 = 0.88
HYBRID_RECALL_5 = 0.96
EXACT_ALONE = 0.6  # each question with its own passage only
# Lower bounds for plain facts, answered from the five passages that rank best.
EXACT_FACTS = 0.8
CITED = 0.95  # right answers that cite their own passage
AUROC = 0.85  # of confidence


@pytest.fixture(scope="module")
def engine() -> ClaraEngine:
    return ClaraEngine.from_pretrained("pocket", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def typed() -> TypedSet:
    return typed_set("open")


def test_it_is_small():
    assert sum(file.stat().st_size for file in BUNDLED["pocket"].rglob("*") if file.is_file()) <= LARGEST


def test_it_has_all_three_roles(engine: ClaraEngine):
    assert set(engine.roles) == set(Role)
    assert engine.window == 64


def test_its_calibration_is_of_these_weights(engine: ClaraEngine):
    assert engine.calibration is not None
    assert engine.calibration.fingerprint == engine.fingerprint
    assert engine.answer("Where?", engine.remember(["The key is in the shed."]), min_confidence=0.0).calibrated


def test_it_finds_typed_passages(engine: ClaraEngine, typed: TypedSet):
    scores = score_rankings(
        hybrid_ranking(engine, [q.text for q in typed.answerable], typed.texts),
        [q.gold for q in typed.answerable],
        ks=(1, 5),
    )
    assert scores["recall@1"] >= HYBRID_RECALL_1
    assert scores["recall@5"] >= HYBRID_RECALL_5


def test_it_reads_typed_passages(engine: ClaraEngine, typed: TypedSet):
    memories = engine.remember(typed.texts)
    answers = engine.answer_batch(
        [(q.text, [memories[at] for at in q.gold]) for q in typed.answerable], max_tokens=MAX_TOKENS
    )
    right = [exact_match(said.text, q.answers) for said, q in zip(answers, typed.answerable, strict=True)]
    wrong = [(q.text, said.text) for said, q, hit in zip(answers, typed.answerable, right, strict=True) if not hit]
    assert sum(right) / len(right) >= EXACT_ALONE, wrong


def test_it_cites_what_it_read_and_is_surer_where_it_is_right(engine: ClaraEngine):
    found = measure(engine, typed_set("open", FACTS), top_k=DOCUMENTS)
    assert found.exact >= EXACT_FACTS
    assert found.cited >= CITED
    assert found.offsets == 1.0
    assert found.auroc >= AUROC
