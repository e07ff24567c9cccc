"""Synonyms of the words of a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_core.retrieval import thesaurus
from clara_core.retrieval.thesaurus import read_thesaurus, search_terms, synonyms
from clara_core.retrieval.words import words_of


@pytest.mark.parametrize(
    "question, word, meant",
    [
        ("How long can visitors stay?", "guest", "visitor"),
        ("when do we put the bins out", "trash", "bin"),
        ("Who repairs the lift?", "elevator", "lift"),
        ("How long can visitors sleep over?", "stay", "sleep"),
        ("When did the parcel arrive?", "arrival", "arriv"),
        ("Who translated the book?", "translation", "translat"),
    ],
)
def test_synonyms_stand_for_words_of_a_question(question: str, word: str, meant: str) -> None:
    assert meant in synonyms(question)[word]


@pytest.mark.parametrize(
    "question", ["", "?", "Wann ist die Sitzung?", "いつですか", "\ud800", "when? " * 1000, "who is it", "</s><MEM0>"]
)
def test_any_text_may_be_asked(question: str) -> None:
    assert all(word and meant for word, meant in synonyms(question).items())


@pytest.mark.parametrize(
    "question, weights",
    [
        ("How much is the season ticket?", {"is": 0.5, "the": 0.5, "season": 1.0, "ticket": 1.0, "pass": 0.5}),
        ("Who is it?", {"is": 1.0, "it": 1.0}),  # without telling words, all count
        ("", {}),
    ],
)
def test_small_words_and_synonyms_weigh_less(question: str, weights: dict[str, float]) -> None:
    terms = search_terms(question)
    assert {word: terms.get(word) for word in weights} == weights
    assert all(weight == 0.5 for word, weight in terms.items() if word not in weights)


def test_a_word_of_the_question_is_no_synonym() -> None:
    question = "Do guests and visitors stay or sleep over?"
    assert not synonyms(question).keys() & {"guest", "visitor", "stay", "sleep"}


def test_words_that_tell_of_what_is_asked_are_searched_and_are_no_synonyms() -> None:
    assert search_terms("How tall is the tower?")["height"] == 0.5
    assert "pupil" in search_terms("Who taught Anna?")
    assert "pupil" not in synonyms("Who taught Anna?")
    assert "holiday" not in search_terms("Who may leave?")


def test_no_word_is_related_twice() -> None:
    lines = Path(thesaurus.__file__).with_name("related.txt").read_text(encoding="utf-8").splitlines()[1:]
    asked = [words_of(line.partition(":")[0]) for line in lines]
    assert len({*map(tuple, asked)}) == len(lines) > 100
    assert all(len(words) == 1 for words in asked)


def test_every_group_has_two_different_items_in_lower_case() -> None:
    groups = [group for section in read_thesaurus() for group in section]
    assert len(groups) > 3000
    assert [group for group in groups if len(set(group)) < 2 or [item.lower() for item in group] != list(group)] == []


@pytest.mark.parametrize("line", ["alone", "one, ", ", two", ""])
def test_a_line_is_a_group(tmp_path: Path, line: str) -> None:
    file = tmp_path / "thesaurus.txt"
    file.write_text(f"# section\none, two\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"thesaurus\.txt:3: expected at least two items"):
        read_thesaurus(file)
