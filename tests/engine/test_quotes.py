"""Finding the words of an answer in a text: literally, approximately, or not."""

from __future__ import annotations

import pytest

from clara_core.engine.quotes import find_quote, says_yes_or_no, share_of_names, split_sentences, stands_in

TEXT = (
    "The Aln bridge was opened on 4 May 1907. Dr. J. Moss designed it, as St. Mary's records say. It is 3,776 m long!"
    "\n\nIn 1907 the mill closed"
)
WHOLE = [(0, len(TEXT))]


def sentence(said: str, question: str = "", windows=WHOLE) -> str | None:
    quote = find_quote(said, TEXT, windows, question)
    return None if quote is None else TEXT[quote.start : quote.end]


def test_sentences_end_where_they_end():
    assert [TEXT[start:end] for start, end in split_sentences(TEXT)] == [
        "The Aln bridge was opened on 4 May 1907.",
        "Dr. J. Moss designed it, as St. Mary's records say.",
        "It is 3,776 m long!",
        "In 1907 the mill closed",
    ]
    assert split_sentences("  \n") == []
    assert split_sentences("one") == [(0, 3)]


@pytest.mark.parametrize(
    "said, expected",
    [
        ("J. Moss", "Dr. J. Moss designed it, as St. Mary's records say."),
        ("j moss!", "Dr. J. Moss designed it, as St. Mary's records say."),
        ("3,776 m", "It is 3,776 m long!"),
        (
            "1907. Dr. J.",
            "The Aln bridge was opened on 4 May 1907. Dr. J. Moss designed it, as St. Mary's records say.",
        ),
        ("the mill", "In 1907 the mill closed"),
    ],
)
def test_verbatim_is_the_sentence_around(said: str, expected: str):
    assert sentence(said) == expected
    assert find_quote(said, TEXT, WHOLE).verbatim
    assert stands_in(said, TEXT)


@pytest.mark.parametrize(
    "question, share",
    [
        ("Who designed St. Mary's bridge in 1907?", 1.0),
        ("Who met J. Moss and Ada Quill in 1950?", 0.4),
        ("When did the mill close?", 1.0),  # not a name
        ("Where was I? Tolmet knows.", 1.0),  # the first word of a sentence
        ("is the mill 12 m long", 0.0),
    ],
)
def test_which_names_of_a_question_a_text_has(question: str, share: float):
    assert share_of_names(question, ["Nothing.", TEXT]) == pytest.approx(share)
    assert share_of_names(question, []) == (0.0 if share != 1.0 or "1907" in question else 1.0)


def test_of_several_sentences_the_one_that_is_asked_for():
    assert sentence("1907", "When was the bridge opened?") == "The Aln bridge was opened on 4 May 1907."
    assert sentence("1907", "When did the mill close, the one that closed?") == "In 1907 the mill closed"


def test_the_nearest_run_of_as_many_words():
    quote = find_quote("4 May 1917", TEXT, WHOLE)
    assert TEXT[quote.start : quote.end] == "4 May 1907"
    assert not quote.verbatim
    assert not stands_in("4 May 1917", TEXT)


@pytest.mark.parametrize("said", ["", "—", "nothing of this", "x" * 500, "1"])
def test_what_is_not_there_is_not_found(said: str):
    assert find_quote(said, TEXT, WHOLE) is None


def test_only_what_was_read_is_looked_at():
    end = TEXT.index("Dr.")
    assert sentence("J. Moss", windows=[(0, end)]) is None
    assert sentence("the mill", windows=[(TEXT.index("In 1907"), len(TEXT))]) == "In 1907 the mill closed"
    assert find_quote("1907", TEXT, []) is None


def test_other_scripts_and_cases():
    text = "Das Haus in der STRASSE 5 ist alt. 富士山の高さ。新しい"
    assert find_quote("straße 5", text, [(0, len(text))]).verbatim
    assert text[slice(*split_sentences(text)[0])] == "Das Haus in der STRASSE 5 ist alt."


def test_answers_that_stand_in_no_text():
    assert says_yes_or_no("Yes.")
    assert says_yes_or_no(" no ")
    assert not says_yes_or_no("yes, in 1907")
    assert not says_yes_or_no("")
