"""Which of some documents holds the answer."""

from __future__ import annotations

import pytest

from clara_core.engine.quoting.answerability import answer_shares
from tests.engine.quoting.test_shared_words import HOSTILE, HOSTILE_QUESTIONS

BAKERY = "The bakery on Kettle Street opened in 1926 and sells rye bread until six in the evening."
FOUNDER = "Rosalind Ashby founded the bakery on Kettle Street. She had been a miller's daughter."
CLOSED = "The bakery on Kettle Street is closed on Mondays, because the oven rests."
OTHER = "Tomas Weber founded the brewery on Mill Lane."


@pytest.mark.parametrize(
    "question, best",
    [
        ("Who founded the bakery on Kettle Street?", FOUNDER),
        ("When did the bakery on Kettle Street open?", BAKERY),
        ("On which day is the bakery on Kettle Street shut?", CLOSED),
        ("Who founded the brewery?", OTHER),
    ],
)
def test_the_text_with_an_answer_of_the_right_kind_has_the_largest_share(question: str, best: str) -> None:
    texts = [BAKERY, FOUNDER, CLOSED, OTHER]
    for order in (texts, texts[::-1]):
        shares = answer_shares(question, order, [(0.5, 0.5)] * 4)
        assert order[shares.index(max(shares))] == best


def test_of_a_long_text_the_sentences_are_read_that_tell_of_the_question() -> None:
    filler = "The weather was fine and the road was dry. " * 400
    long = f"{filler}{FOUNDER} {filler}"
    asked = "Who founded the bakery on Kettle Street?"
    found = answer_shares(asked, [OTHER, long], [(0.5, 0.5)] * 2)
    assert found == pytest.approx(answer_shares(asked, [OTHER, FOUNDER], [(0.5, 0.5)] * 2), abs=0.1)
    unbroken = "word " * 5000
    assert sum(answer_shares(asked, [unbroken, long], [(0.9, 0.9), (0.1, 0.1)])) == pytest.approx(1)


def test_what_the_search_found_counts() -> None:
    asked = "Who founded the bakery on Kettle Street?"
    for found in ([(score, 0.5) for score in (0.4, 0.5, 0.6)], [(0.5, score) for score in (0.4, 0.5, 0.6)]):
        shares = [answer_shares(asked, [FOUNDER, FOUNDER], [own, (0.5, 0.5)])[0] for own in found]
        assert shares[0] < shares[1] < shares[2]


def test_a_part_of_a_longer_name_is_another_name() -> None:
    texts = ["Ida Moss owns New Kettle.", "Tomas Weber owns Kettle."]
    for question, best in (("Who owns New Kettle?", 0), ("Who owns Kettle?", 1)):
        shares = answer_shares(question, texts, [(0.5, 0.5)] * 2)
        assert shares.index(max(shares)) == best


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize("texts", HOSTILE)
def test_shares_of_hostile_texts_add_up_to_one(question: str, texts: list[str]) -> None:
    shares = answer_shares(question, texts, [(0.5, 0.5)] * len(texts))
    assert len(shares) == len(texts)
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) == pytest.approx(1)


def test_no_texts_have_no_shares() -> None:
    assert answer_shares("Who?", [], []) == []
