"""The bundled model: its size, and its retrieval, answers and citations on the open half of the hand-typed texts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.encyclopedia_tasks import DOCUMENTS, MAX_TOKENS
from benchmarks.evaluate_typed import hybrid_ranking
from benchmarks.trust_typed import measure
from benchmarks.typed_tasks import FACTS, OTHERS, TypedSet, typed_set
from clara_core import ClaraEngine
from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.evaluation import exact_match, score_rankings
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.hub import BUNDLED
from clara_core.store import MemoryStore

LARGEST = 22_000_000  # bytes of all files
# Lower bounds for the open half; benchmarks/evaluate_typed.py measures both halves completely.
HYBRID_RECALL_1 = 0.95
HYBRID_RECALL_5 = 0.97
EXACT_ALONE = 0.86  # each question with its own passage only
EXACT_FIVE = 0.79  # with the five passages that the search finds
REFUSED = 0.50  # with the five that the search finds, but the right one
# The same of questions by other hands, half of them in other words than their passage.
OTHERS_ALONE = 0.65
OTHERS_REFUSED = 0.13  # at most: wrongly refused
NEAR_REFUSED = 0.70  # of questions that their own passage does not answer, in both sets
# Lower bounds for plain facts, answered from the five passages that rank best.
EXACT_FACTS = 0.85
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
    asked = typed.answerable
    memories = engine.remember(typed.texts)
    ranked = hybrid_ranking(engine, [q.text for q in asked], typed.texts)

    def say(documents: Sequence[Sequence[int]]) -> list[str]:
        items = [(q.text, [memories[at] for at in few]) for q, few in zip(asked, documents, strict=True)]
        return [answer.text for answer in engine.answer_batch(items, max_tokens=MAX_TOKENS)]

    for floor, documents in ((EXACT_ALONE, [q.gold for q in asked]), (EXACT_FIVE, [few[:DOCUMENTS] for few in ranked])):
        said = say(documents)
        right = [exact_match(one, q.answers) for one, q in zip(said, asked, strict=True)]
        wrong = [(q.text, one) for one, q, hit in zip(said, asked, right, strict=True) if not hit]
        assert sum(right) / len(right) >= floor, wrong
    others = [[at for at in few if at not in q.gold][:DOCUMENTS] for q, few in zip(asked, ranked, strict=True)]
    assert say(others).count(REFUSAL) / len(asked) >= REFUSED
    assert refusals(engine, typed) >= NEAR_REFUSED


def refusals(engine: ClaraEngine, typed: TypedSet) -> float:
    """Share of the questions without an answer that are refused, each with its own passage."""
    items = [(q.text, engine.remember([typed.texts[at] for at in q.gold])) for q in typed.unanswerable]
    said = [answer.text for answer in engine.answer_batch(items, max_tokens=MAX_TOKENS)]
    return said.count(REFUSAL) / len(said)


def test_it_reads_what_others_typed(engine: ClaraEngine):
    typed = typed_set("open", OTHERS)
    memories = engine.remember(typed.texts)
    items = [(q.text, [memories[at] for at in q.gold]) for q in typed.answerable]
    said = [answer.text for answer in engine.answer_batch(items, max_tokens=MAX_TOKENS)]
    right = [exact_match(one, q.answers) for one, q in zip(said, typed.answerable, strict=True)]
    assert sum(right) / len(right) >= OTHERS_ALONE
    assert said.count(REFUSAL) / len(said) <= OTHERS_REFUSED
    assert refusals(engine, typed) >= NEAR_REFUSED


def test_a_place_is_not_one_with_a_longer_name(engine: ClaraEngine):
    """Not even if the text about the other place has the words of the question."""
    store = MemoryStore.open("memory://", engine)
    hill = "The mayor of Garrow Hill is Petra Lindqvist. She was elected in 2019."
    town = "Garrow elected Anders Voss as mayor last spring. He is a retired teacher."
    store.add([hill, town, "The Garrow hostel costs 28 euros a night. Breakfast is extra."])
    for question, best in (("Who is the mayor of Garrow?", town), ("Who is the mayor of Garrow Hill?", hill)):
        [hit] = store.search(question, 1, rerank=10)
        assert hit.text == best


def test_it_cites_what_it_read_and_is_surer_where_it_is_right(engine: ClaraEngine):
    found = measure(engine, typed_set("open", FACTS), top_k=DOCUMENTS)
    assert found.exact >= EXACT_FACTS
    assert found.cited >= CITED
    assert found.offsets == 1.0
    assert found.auroc >= AUROC
