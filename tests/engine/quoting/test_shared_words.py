"""The words that a question shares with places of its documents."""

from __future__ import annotations

import pytest

from clara_core.engine.quoting.shared_words import SharedWords
from clara_core.retrieval.words import word_spans

NOTES = [
    "The pool opens at 7:30, and the sauna opens at noon. A ticket costs 14 euros.",
    "The ferry sails at 9:10 on weekdays.",
]
HOSTILE_QUESTIONS = ("", "?", "Where?", "   ", "\ud800", "富士山", "</s><MEM0>", "how many " * 500)
HOSTILE = ([""], ["   "], ["a"], ["\ud800 b"], ["富士山は、高い。"], ["...", "x" * 5000], NOTES)


def gain_at(question: str, texts: list[str], number: int, word: str) -> float:
    return SharedWords(question, texts).gain(number, texts[number].index(word))


@pytest.mark.parametrize(
    "question, best",
    [
        ("When does the sauna open?", "noon"),
        ("How much is a ticket?", "14"),
        ("What do tickets cost?", "14"),
        ("When does the ferry sail?", "9:10"),
        ("ferry weekday", "9:10"),
    ],
)
def test_the_clause_that_repeats_the_question_gains_most(question: str, best: str) -> None:
    gains = {
        word: gain_at(question, NOTES, number, word)
        for number, words in enumerate((("7:30", "noon", "14"), ("9:10",)))
        for word in words
    }
    assert max(gains, key=gains.__getitem__) == best


def test_a_narrow_place_gains_more_than_a_wide_one() -> None:
    question = "Which colour is the door?"
    texts = ["The door is green, the wall blue. The lamp is red.", "The dog is old."]
    words = ((0, "green"), (0, "blue"), (0, "red"), (1, "old"))
    green, blue, red, old = (gain_at(question, texts, *word) for word in words)
    assert green > blue > red > old > 0  # "the" and "is" stand everywhere, and count for little


def test_the_words_of_the_question_are_known_with_other_endings() -> None:
    shared = SharedWords("How much are the tickets?", NOTES)
    assert shared.repeats("ticket")
    assert not shared.repeats("much")
    assert not shared.repeats("14")


def test_a_rare_word_counts_for_more_than_a_frequent_one() -> None:
    texts = ["The bus is late, the bus is full, the bus is old.", "The Ikarus stands still."]
    assert gain_at("bus Ikarus", texts, 1, "still") > gain_at("bus Ikarus", texts, 0, "full")


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize("texts", HOSTILE)
def test_hostile_questions_and_texts_have_finite_gains(question: str, texts: list[str]) -> None:
    shared = SharedWords(question, texts)
    gains = [shared.gain(n, start) for n, text in enumerate(texts) for start, _ in word_spans(text)]
    assert all(0 <= gain <= min(shared.best, 11) for gain in gains)
