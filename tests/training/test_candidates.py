"""Training sets of the later stages: candidates from a search, with the gold passage, and the share of misses."""

from __future__ import annotations

from collections import Counter

import pytest
from langchain_core.documents import Document

from clara_core.common.errors import DataError
from clara_core.data.jsonl import CompressionLine, TrainingSet, read_lines, write_lines
from clara_core.retrieval.bm25 import Bm25
from clara_core.store import MemoryStore
from clara_core.training.candidates import end_to_end_sets, find_candidates
from clara_core.training.synthesis import synthesize
from tests.engines import open_engine
from tests.tiny import build
from tests.training.teacher import TEXTS, Teacher


@pytest.fixture
def folder(tmp_path):
    synthesize(TEXTS, Teacher(), tmp_path)
    return tmp_path


def qa(question, answer, *docs):
    return CompressionLine("qa", (question,), (answer,), docs)


class Listed:
    """A search with given results."""

    def __init__(self, *hits):
        self.hits, self.asked = hits, []

    def search(self, question, k):
        self.asked.append((question, k))
        return self.hits[:k]


def test_every_line_has_the_passage_it_was_written_about(folder):
    report = end_to_end_sets(folder, n_candidates=6, top_k=3)
    assert (report.questions, report.ambiguous, report.missed) == (40, 0, 0)
    answers = {
        (question, answer): line.docs[0]
        for line in read_lines(folder / "stage1.jsonl", "stage1")
        for question, answer in zip(line.questions, line.answers, strict=False)
    }
    for stage, n in (("stage1_2", 3), ("stage2", 6)):
        lines = TrainingSet(folder / f"{stage}.jsonl", stage)
        assert len(lines) == 40
        for line in lines:
            gold = answers[line.question, line.answer]
            assert gold in line.docs
            assert len(set(line.docs)) == len(line.docs) == n
            assert set(line.docs) <= set(TEXTS)
    for line in TrainingSet(folder / "stage2.jsonl", "contrastive"):
        assert [line.docs[at] for at in line.pos_index] == [answers[line.question, line.answer]]


def test_the_place_of_the_gold_passage_says_nothing_and_is_the_same_again(folder, tmp_path):
    end_to_end_sets(folder, n_candidates=8, top_k=4)
    first = (folder / "stage2.jsonl").read_bytes(), (folder / "stage1_2.jsonl").read_bytes()
    places = Counter(line.pos_index[0] for line in read_lines(folder / "stage2.jsonl", "stage2"))
    assert set(places) == set(range(8))
    assert max(places.values()) <= 12
    end_to_end_sets(folder, n_candidates=8, top_k=4)
    assert ((folder / "stage2.jsonl").read_bytes(), (folder / "stage1_2.jsonl").read_bytes()) == first
    end_to_end_sets(folder, n_candidates=8, top_k=4, seed=1)
    assert (folder / "stage2.jsonl").read_bytes() != first[0]


def test_a_missed_gold_passage_is_added_and_counted(folder, caplog):
    # Finds the same two passages for every question, so the other six are missed.
    search = Listed(*TEXTS[:2], TEXTS[1])
    report = end_to_end_sets(folder, search, n_candidates=2, top_k=1)
    assert (report.missed, report.questions, report.missed_rate) == (30, 40, 0.75)
    assert "missed the gold passage of 30 of 40 questions (75.0 %) with 2 candidates" in caplog.text
    assert "30 of them (75.0%) whose gold passage the search missed" in str(report)
    assert {k for _, k in search.asked} == {2}
    for line in read_lines(folder / "stage2.jsonl", "stage2"):
        assert len(line.docs) == 2
        assert TEXTS[0] in line.docs  # the best hit stays, the last one is replaced
        assert len(line.pos_index) == 1
    for line in read_lines(folder / "stage1_2.jsonl", "stage1_2"):
        assert line.answer.split()[-1].rstrip(",") in line.docs[0] or line.answer.split(",")[0] in line.docs[0]


def test_too_few_hits_are_filled_up_with_other_passages():
    asked = [("Where?", "Here.", ("gold",))]
    (found,) = find_candidates(asked, Listed("hit", "gold", "hit", " "), ["hit", "gold", "a", "b", "c"], 4)
    assert found.docs[:2] == ("hit", "gold")
    assert len(found.docs) == len(set(found.docs)) == 4
    assert set(found.docs[2:]) < {"a", "b", "c"}
    assert not found.missed
    (found,) = find_candidates(asked, Listed(), ["hit", "gold"], 4)
    assert (found.docs, found.missed) == (("gold", "hit"), True)


def test_hits_may_be_documents_and_may_hold_more_than_the_passage(folder):
    long = [Document(f"{TEXTS[0]} {TEXTS[1]}"), Document(TEXTS[2])]
    report = end_to_end_sets(folder, Listed(*long), n_candidates=3, top_k=3)
    assert report.missed == 25
    line = next(iter(read_lines(folder / "stage2.jsonl", "stage2")))
    assert [line.docs[at] for at in line.pos_index] == [long[0].page_content]


def test_a_question_with_two_different_answers_is_left_out(tmp_path):
    lines = [
        qa("Who leads?", "Ada.", "First passage."),
        qa("who leads", "Bob.", "Second passage."),
        qa("Where is it?", "In Aln.", "First passage."),
        qa("Where is it?", "in Aln", "Third passage."),
    ]
    write_lines(tmp_path / "stage1.jsonl", lines)
    report = end_to_end_sets(tmp_path, n_candidates=3, top_k=1)
    assert (report.questions, report.ambiguous) == (1, 1)
    (line,) = read_lines(tmp_path / "stage2.jsonl", "stage2")
    assert {line.docs[at] for at in line.pos_index} == {"First passage.", "Third passage."}


def test_held_out_questions_get_their_own_set(tmp_path):
    synthesize(TEXTS, Teacher(), tmp_path, held_out=0.3)
    report = end_to_end_sets(tmp_path, n_candidates=4, top_k=2)
    assert [path.name for path in report.files] == ["stage1_2.jsonl", "stage2.jsonl", "evaluation.jsonl"]
    learned = {
        line.question for name in ("stage1_2", "stage2") for line in read_lines(tmp_path / f"{name}.jsonl", name)
    }
    measured = list(read_lines(tmp_path / "evaluation.jsonl", "stage2"))
    held_out = {q for line in read_lines(tmp_path / "held_out.jsonl", "stage1") for q in line.questions}
    assert {line.question for line in measured} == held_out
    assert not learned & held_out
    assert len(learned) + len(held_out) == 40
    assert all(line.pos_index for line in measured)
    synthesize(TEXTS, Teacher(), tmp_path)
    end_to_end_sets(tmp_path, n_candidates=4, top_k=2)
    assert not (tmp_path / "evaluation.jsonl").exists()


def test_a_store_finds_candidates(folder, tmp_path_factory):
    with_store = MemoryStore.open("memory://", engine=open_engine(build(tmp_path_factory.mktemp("tiny"))))
    with_store.add([*TEXTS, "Something else altogether."])
    report = end_to_end_sets(folder, with_store, n_candidates=9, top_k=2)
    assert report.missed == 0  # all nine are found
    for line in read_lines(folder / "stage2.jsonl", "stage2"):
        assert set(line.docs) == {*TEXTS, "Something else altogether."}


def test_errors_come_before_anything_is_written(folder, tmp_path):
    with pytest.raises(ValueError, match="top_k must lie between 1 and n_candidates, got 5 of 3"):
        end_to_end_sets(folder, n_candidates=3)
    with pytest.raises(TypeError, match="a document must be a text"):
        end_to_end_sets(folder, Listed(7))
    assert sorted(path.name for path in folder.glob("*.jsonl")) == ["journal.jsonl", "stage1.jsonl"]
    with pytest.raises(DataError, match=r"stage1.jsonl:1: the file cannot be read any further: No such file"):
        end_to_end_sets(tmp_path / "none")


# --- BM25 ------------------------------------------------------------------------------------------------


def test_bm25_finds_by_words_best_first():
    texts = ["The bridge opened in 1907.", "The mill burned down.", "The bridge of the mill is old.", "Short note."]
    index = Bm25(texts)
    assert index.search("When did the BRIDGE open, in 1907?", 2)[0] == texts[0]
    assert set(index.search("bridge mill", 10)) == {texts[0], texts[1], texts[2]}
    assert index.search("bridge mill", 1) == [texts[2]]


@pytest.mark.parametrize("question", ["", "?!", "zebra", "\x00 \ud83d"])
def test_bm25_finds_nothing_where_no_word_is_shared(question):
    assert Bm25(["The bridge.", "..."]).search(question, 3) == []
    assert Bm25([]).search(question, 3) == Bm25(["...", ""]).search("bridge", 3) == []


def test_bm25_reads_scripts_without_spaces():
    texts = [
        "東京タワーは1958年に完成した。",
        "富士山の高さは三千七百七十六メートルです。",
        "Le mont Blanc culmine à 4 806 mètres.",
    ]
    assert Bm25(texts).search("富士山はどれくらい高い", 1) == [texts[1]]
    assert Bm25(texts).search("Quand le MONT BLANC ?", 1) == [texts[2]]
