"""Names in a text."""

from __future__ import annotations

import pytest

from clara_core.engine.quoting.names import asked_names, names_of


@pytest.mark.parametrize(
    "text, names",
    [
        ("New Kallor elected Merlin Menofa.", {"new kallor", "merlin menofa"}),
        ("The River Rakzor's shores", {"river rakzor"}),
        ("On Tram 14 to Dunmore-by-Sea", {"tram 14", "dunmore-by-sea"}),
        ("Anna. Ben", {"anna", "ben"}),
        ("Zoë O\u2019Neill, Émile", {"zoë o\u2019neill", "émile"}),
        ("nothing here, 14 or \U0001f600", set()),
    ],
)
def test_a_name_is_as_long_as_it_stands_there(text: str, names: set[str]) -> None:
    assert names_of(text) == names


@pytest.mark.parametrize(
    "question, names",
    [
        ("When was Kallor founded?", {"kallor"}),
        ("Villagers make what from Parlosa?", {"parlosa"}),
        ("Rosalind Ashby founded what?", {"rosalind ashby"}),
        ("Is Rakzor a river?", {"rakzor"}),
        ("who owns the mill?", set()),
        ("", set()),
    ],
)
def test_the_first_word_of_a_question_is_no_name_alone(question: str, names: set[str]) -> None:
    assert asked_names(question) == names
