"""The hand-typed passages and questions, and the program that measures models on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evaluate_typed
from benchmarks.evaluate_typed import is_refusal
from benchmarks.trust_typed import measure
from benchmarks.typed_tasks import FACTS, OTHERS, TYPED, TypedSet, typed_set
from clara_core import ClaraEngine

HALVES = json.loads(TYPED.read_text(encoding="utf-8"))
ENTRIES = [entry for half in HALVES.values() for entry in half]
BY_OTHERS = [entry for half in json.loads(OTHERS.read_text(encoding="utf-8")).values() for entry in half]
OF_ITS_KIND = json.loads(FACTS.read_text(encoding="utf-8"))["open"]


def test_there_are_enough_of_all_kinds():
    questions = [question for entry in ENTRIES for question in entry["questions"]]
    assert len(ENTRIES) >= 80
    assert len(questions) >= 240
    for half in HALVES.values():
        kinds = {question["kind"] for entry in half for question in entry["questions"]}
        assert kinds >= {"who", "whose", "when", "where", "which", "what", "howmany", "howmuch", "why", "yesno", "none"}


@pytest.mark.parametrize("entries", [ENTRIES, BY_OTHERS], ids=["typed", "others"])
def test_each_passage_and_question_stands_once(entries: list[dict]):
    texts = [entry["text"] for entry in entries]
    assert len(set(texts)) == len(texts)
    asked = [(entry["text"], question["question"]) for entry in entries for question in entry["questions"]]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("entry", [*ENTRIES, *BY_OTHERS, *OF_ITS_KIND], ids=lambda entry: entry["text"][:30])
def test_answers_are_words_of_their_passage(entry: dict):
    for question in entry["questions"]:
        answers = question["answers"]
        assert (question["kind"] == "none") == (not answers)
        if answers and question["kind"] not in ("yesno", "whose"):
            assert any(answer.lower() in entry["text"].lower() for answer in answers), question


def test_no_sentence_stands_in_the_examples():
    examples = Path(__file__).parents[2] / "examples" / "data"
    shown = "\n".join(file.read_text(encoding="utf-8") for file in sorted(examples.iterdir()) if file.is_file())
    assert not [entry["text"] for entry in ENTRIES if entry["text"][:30] in shown]


def test_a_half_is_searched_among_the_passages_of_both():
    for half in ("open", "closed"):
        typed = typed_set(half)
        assert typed.texts == [entry["text"] for entry in ENTRIES]
        asked = [*typed.answerable, *typed.unanswerable]
        assert len(asked) == sum(len(entry["questions"]) for entry in HALVES[half])
        own = {entry["text"] for entry in HALVES[half]}
        assert all(typed.texts[question.gold[0]] in own for question in asked)
        assert all(question.answers for question in typed.answerable)
        assert not any(question.answers for question in typed.unanswerable)


def test_a_refusal_is_told_from_an_answer():
    assert is_refusal("The documents do not say.")
    assert is_refusal("the documents do not say")
    assert not is_refusal("The documents say nothing of Paris.")
    assert not is_refusal("")


def test_the_program_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The program of `make eval` on a small part of the questions."""
    whole = typed_set("open")
    small = TypedSet(whole.texts[:12], [q for q in whole.answerable if q.gold[0] < 12][:8], whole.unanswerable[:2])
    monkeypatch.setattr(evaluate_typed, "typed_set", lambda half, data: small)
    file = tmp_path / "figures.json"
    evaluate_typed.main(["pocket"], half="open", json_file=file)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    [model] = printed["models"]
    assert model.pop("model") == "pocket"
    assert all(0 <= value <= 1 for value in model.values())
    [written] = json.loads(file.read_text())["models"]
    assert written["figures"] == model
    assert len(written["wrong"]) == round((1 - model["alone, exact"]) * len(small.answerable))
    assert sum(count for _, count in written["kinds"].values()) == len(small.answerable)


def test_another_half_is_refused():
    with pytest.raises(SystemExit, match="open or closed"):
        evaluate_typed.main(["pocket"], half="both")


def test_evidence_of_the_frozen_weights_on_facts_of_their_kinds(encyclopedia: ClaraEngine):
    found = measure(encyclopedia, typed_set("open", FACTS))
    assert found.answerable >= 40
    assert found.unanswerable >= 15
    assert found.exact >= 0.5  # enough right answers for a statement
    assert found.cited >= 0.95
    assert found.offsets == 1.0
    assert found.auroc >= 0.85
