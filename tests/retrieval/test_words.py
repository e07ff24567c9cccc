"""The words of texts and questions: endings, question words, and what must stay as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core.retrieval.words import _cut, question_words, words_of

FORMS = [
    ["ticket", "tickets", "Tickets"],
    ["city", "cities"],
    ["study", "studies", "studied", "studying"],
    ["stop", "stops", "stopped", "stopping"],
    ["call", "calls", "called", "calling"],
    ["price", "prices", "priced", "pricing"],
    ["house", "houses", "housed"],
    ["bus", "buses"],
    ["box", "boxes", "boxed"],
    ["church", "churches"],
    ["glass", "glasses"],
    ["potato", "potatoes"],
    ["tree", "trees"],
    ["plan", "planned", "plans"],
    ["repair", "repaired", "repairs"],
    ["CAFÉS", "café", "cafe"],
]


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: forms[0])
def test_forms_of_a_word_are_one(forms: list[str]):
    assert len({tuple(words_of(form)) for form in forms}) == 1


def test_different_words_stay_different():
    text = "bring bridge spring string king kin bee be speed seed need used use gas glass bus news lens free red"
    assert len(set(words_of(text))) == len(text.split())


@pytest.mark.parametrize("code", ["E17s", "v2.0s", "1990s", "AB-1234/9", "x1ing", "b42ed"])
def test_codes_keep_their_letters(code: str):
    assert words_of(code)[0] == code.lower()


def test_a_megabyte_of_one_word_is_not_kept():
    word = "x" * 1_000_000 + "s"
    before = _cut.cache_info().currsize
    assert words_of(word) == [word]
    assert _cut.cache_info().currsize == before


def test_other_scripts_keep_their_endings():
    assert words_of("дома") == ["дома"]
    assert words_of("straßes") == ["strass"]  # "ß" is folded first


@pytest.mark.parametrize(
    "question, words",
    [
        ("How many tickets did Ivo buy?", ["ticket", "ivo", "buy"]),
        ("what does a boat cost", ["a", "boat", "cost"]),
        ("Whose is it?", ["is", "it"]),
        ("who", ["who"]),
        ("Where do whales sleep, and why?", ["whal", "sleep", "and"]),
        ("How much?", ["how", "much"]),
    ],
)
def test_question_words_are_not_searched(question: str, words: list[str]):
    assert question_words(question) == words


@given(st.text())
def test_words_have_no_spaces(text: str):
    words = words_of(text)
    assert all(word and not any(c.isspace() for c in word) for word in words)
    assert set(question_words(text)) <= set(words)


@pytest.mark.parametrize(
    "asked, stated, word",
    [
        ("Who sells it?", "It was sold.", "sell"), ("the child's knife", "children and knives", "knif"),
        ("When does it leave?", "She left.", "leav"), ("What did he make?", "a toy, made of wood", "mak"),
        ("When does the train leave?", "It leaves at 6.", "leav"),
    ],
)  # fmt: skip
def test_irregular_forms_are_their_base(asked: str, stated: str, word: str) -> None:
    assert word in words_of(asked)
    assert word in words_of(stated)


def test_forms_that_are_more_often_another_word_stay() -> None:
    assert words_of("Rose founded it, and lay down") == ["ros", "found", "it", "and", "lay", "down"]
