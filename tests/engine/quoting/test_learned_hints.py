"""Hints with learned sizes, and the features that they read."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from clara_core.engine.quoting import learned_hints
from clara_core.engine.quoting.answer_kinds import kind_of
from clara_core.engine.quoting.end_features import ends_of
from clara_core.engine.quoting.hints import Hints
from clara_core.engine.quoting.learned_hints import END_WEIGHTS, WEIGHTS, HintWeights, LearnedHints
from clara_core.engine.quoting.place_features import PlaceFeatures
from clara_core.engine.quoting.shared_words import SharedWords
from clara_core.engine.quoting.verbatim import OTHER_ANSWERS, REFUSAL
from clara_core.engine.quoting.word_classes import FUNCTION, word_class
from clara_core.retrieval.words import place_spans, word_spans
from tests.engine.quoting.test_shared_words import HOSTILE, HOSTILE_QUESTIONS, NOTES


def features_of(question: str, *texts: str) -> PlaceFeatures:
    return PlaceFeatures(question, texts, kind_of(question), SharedWords(question, texts))


def features_at(question: str, text: str, word: str) -> set[str]:
    features = features_of(question, text)
    at = features.documents[0].at[text.index(word)]
    return {f"{group}={values[at]}" for group, values in features.columns(0).items() if values[at]}


def ends_at(question: str, text: str, said: str) -> dict[str, str]:
    [words] = features_of(question, text).documents
    start = text.index(said)
    return ends_of(words, kind_of(question), words.at[start])[start + len(said)]


@pytest.mark.parametrize(
    "word, begins, found",
    [
        ("the", False, "the"), ("The", True, "the"), ("14:30", False, "#clock"), ("1926", False, "#year"),
        ("3,400", False, "#number"), ("B-12", False, "#code"), ("seven", False, "#numeral"), (",", False, ","),
        ("NASA", False, "#capitals"), ("Rosa", False, "#name"), ("Rosa", True, "#first"), ("baking", False, "#ing"),
        ("baked", False, "#ed"), ("slowly", False, "#ly"), (".", False, "."), ("May", False, "#month"),
        ("may", False, "may"), ("Friday", True, "#day"), ("euros", False, "#unit"), ("weeks", False, "#span"),
        ("noon", False, "#time"), ("sold", False, "#irregular"), ("loaves", False, "#irregular"),
        ("ferries", False, "#s"), ("bread", False, "#word"), ("ﬀ", False, "#word"),
    ],
)  # fmt: skip
def test_words_are_classed_by_their_form(word: str, begins: bool, found: str) -> None:
    assert word_class(word, begins=begins) == found


def test_features_tell_what_stands_around_a_place() -> None:
    text = "The tea room opened in 1931. Rosa Lind baked the bread for it in Falun."
    assert features_at("When did the tea room open?", text, "1931") >= {
        "word=#year", "before=in", "at 1=.", "follows=yes", "left asked=2 clause", "right asked=far", "fits=1 of 1",
        "sentence=1", "clause asked=3 of 3",
    }  # fmt: skip
    assert features_at("Who baked the bread?", text, "Rosa") >= {
        "before=sentence", "word=#first", "right same=2 clause", "at 1=#name", "sentence=2 last",
    }  # fmt: skip
    assert features_at("Where was the bread from?", text, "Falun") >= {"before=in", "word=#name"}
    assert features_at("From where is the bread?", "bread from Falun", "from") >= {"leading here=yes"}
    assert features_at("Where is the bread from?", "bread from Falun", "Falun") >= {"trailing before=yes", "at 1=end"}
    assert "before=line" in features_at("Who?", "one\ntwo", "two")
    assert "before=cut" in features_at("When?", "on 3 May", "May")
    assert "before=cut" not in features_at("When?", "on 3, May", "May")
    assert "inside=bracket" in features_at("Who?", "two (Ada, Bo) came", "Bo")
    assert "inside=quotes" in features_at("Who?", 'the "red hen" came', "hen")


def test_names_synonyms_and_words_of_the_question_are_told_apart() -> None:
    question = "When did Rosa buy the flat?"
    [words] = features_of(question, "Rosa bought an apartment and kept the flat.").documents
    assert [one for one in words.asked if one] == ["name", "same", "synonym", "same"]


def test_documents_are_told_apart_by_how_much_of_the_question_they_have() -> None:
    question = "Who directs the Galzel Mills?"
    features = features_of(question, "Falsol Mills has a director.", "Galzel Mills has a director, Ada.", "A boat.")
    told = ("document", "document names", "document share", "document less")
    found = [[features.columns(number)[group][0] for group in told] for number in range(3)]
    assert [own[:2] for own in found] == [["0", "1 of 2"], ["1", "2 of 2"], ["2", "0 of 2"]]
    shares, less = ([float(own[at]) for own in found] for at in (2, 3))
    assert shares[1] > shares[0] > shares[2] == 0.0
    assert less == pytest.approx([shares[1] - share for share in shares], abs=0.1)
    assert not {"document", "document names"} & features_of(question, "Galzel Mills has a director.").columns(0).keys()


def test_a_refusal_is_told_by_what_the_documents_lack() -> None:
    def refusal(question: str) -> dict[str, str]:
        return features_of(question, *NOTES).of_refusal()

    assert refusal("Who repairs the organ?")["refusal missing"] == "0.7"
    assert refusal("costs ticket")["refusal missing"] == "0.0"
    assert refusal("What did Xaver say?")["refusal name"] == "True"
    assert refusal("What costs a ticket?")["refusal name"] == "False"


def test_yes_or_no_is_told_by_words_that_deny() -> None:
    def no(question: str, text: str) -> dict[str, str]:
        return features_of(question, text).of_yes_or_no("No")

    assert no("Are dogs allowed?", "Guests are welcome, but dogs are not allowed.")["No denied"] == "1 True"
    assert no("Are dogs allowed?", "Dogs are allowed in the garden.")["No denied"] == "4 False"
    assert no("Who has a dog?", "Ada has a dog.") == {"not yes or no": "No"}


def test_features_tell_where_an_answer_ends() -> None:
    text = "The shop in Mill Lane opens from 9 to 17 in all weathers, says Ada's aunt."
    assert ends_at("Where is the shop?", text, "in Mill")["name goes on"] == "yes"
    lane = ends_at("Where is the shop?", text, "in Mill Lane")
    assert (lane["first"], lane["last"], lane["next"], lane["length"]) == ("in", "#name", "#s", "3")
    assert ends_at("When is it open?", text, "from 9")["open pair"] == "yes"
    assert ends_at("When is it open?", text, "from 9 to 17")["open pair"] == ""
    assert ends_at("Who says so?", text, "Ada")["owner"] == "cut"
    assert ends_at("Who says so?", text, "Ada's")["owner"] == "yes"


def test_a_gain_is_what_the_network_adds_to_the_rules() -> None:
    weights = HintWeights.read(WEIGHTS)
    question, text = "How much is a ticket?", NOTES[0]
    hints = LearnedHints(question, [text], 0.5)
    at, (start, end) = next((at, span) for at, span in enumerate(place_spans(text)) if text[slice(*span)].isdigit())
    sort = weights.sorts[hints.sort]
    rows = [weights.rows[group][values[at]] for group, values in hints.columns(0).items()
            if values[at] in weights.rows.get(group, {})]  # fmt: skip
    hidden = sum(weights.hidden[row] for row in rows) * weights.scale[sort] + weights.shift[sort]
    learned = sum(float(weights.plain[row] + weights.by_sort[sort, row]) for row in rows)
    learned += float(torch.relu(hidden) @ weights.out)
    by_rules = Hints(question, [text]).gain(0, start, text[start:end])
    assert hints.sort == "price"
    assert math.isclose(hints.gain(0, start, text[start:end]), 0.5 * (weights.rules * by_rules + learned), abs_tol=1e-4)


def test_questions_of_unknown_sorts_share_a_table() -> None:
    """Else every new pair of small words in a question would keep a table in memory."""
    small = sorted(FUNCTION)
    for first, second in pairwise(small):
        LearnedHints(f"{first} {second} zzz", NOTES).other(REFUSAL)
    assert learned_hints._table.cache_info().currsize <= sum(
        len(HintWeights.read(file).sorts) for file in (WEIGHTS, END_WEIGHTS)
    )


def test_an_end_in_the_middle_of_a_name_loses() -> None:
    text = "The key is kept by Ada Brandvik of the museum."
    hints = LearnedHints("Who keeps the key?", [text])
    start = text.index("Ada")
    whole, part = (hints.gain_of_end(0, start, start + len(said)) for said in ("Ada Brandvik", "Ada"))
    assert whole > part
    assert hints.gain_of_end(0, start, len(text) + 5) == 0.0


@pytest.mark.parametrize("file", [WEIGHTS, END_WEIGHTS])
def test_values_without_weights_add_nothing(file: Path) -> None:
    weights = HintWeights.read(file)
    none = weights.find_rows("nothing", ["such"])[0]
    assert none == len(weights.plain) - 1
    assert not any(tensor[..., none].any() for tensor in (weights.plain, weights.by_sort, weights.hidden.T))


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize("texts", HOSTILE)
def test_hostile_questions_and_texts_have_finite_gains(question: str, texts: list[str]) -> None:
    hints = LearnedHints(question, texts)
    gains = [
        hints.gain(number, start, text[start:end])
        for number, text in enumerate(texts)
        for start, end in word_spans(text)
    ]
    ends = [
        hints.gain_of_end(number, start, end)
        for number, text in enumerate(texts)
        for start, _ in place_spans(text)
        for _, end in word_spans(text)
    ]
    assert all(map(math.isfinite, [*gains, *ends, *map(hints.other, OTHER_ANSWERS)]))


def test_places_are_the_words_of_a_text_in_order() -> None:
    text = "Ada's, well: 3.40 euros"
    assert [text[start:end] for start, end in place_spans(text)] == ["Ada's", ",", "well", ":", "3.40", "euros"]
    assert {start for start, _ in word_spans(text)} == {start for start, _ in place_spans(text)}
