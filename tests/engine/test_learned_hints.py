"""Hints with learned sizes, and the features that they read."""

from __future__ import annotations

import json
import math

import pytest

from clara_core.engine.answer_kinds import kind_of
from clara_core.engine.hints import Hints
from clara_core.engine.learned_hints import FOR, RULES, WEIGHTS, LearnedHints
from clara_core.engine.place_features import PlaceFeatures, word_class
from clara_core.engine.shared_words import SharedWords
from clara_core.engine.verbatim import OTHER_ANSWERS, REFUSAL
from clara_core.retrieval.words import place_spans, word_spans
from tests.engine.test_shared_words import HOSTILE, HOSTILE_QUESTIONS, NOTES


def features_at(question: str, text: str, word: str) -> set[str]:
    features = PlaceFeatures(question, [text], kind_of(question), SharedWords(question, [text]))
    return {name for name, value in features.of(0, text.index(word)) if value == 1.0}


@pytest.mark.parametrize(
    "word, begins, found",
    [
        ("the", False, "the"), ("The", True, "the"), ("14:30", False, "#clock"), ("1926", False, "#year"),
        ("3,400", False, "#number"), ("B-12", False, "#code"), ("seven", False, "#numeral"), (",", False, ","),
        ("NASA", False, "#capitals"), ("Rosa", False, "#name"), ("Rosa", True, "#first"), ("baking", False, "#ing"),
        ("baked", False, "#ed"), ("slowly", False, "#ly"), (".", False, "."),
        ("bread", False, "#word"), ("ﬀ", False, "#word"),
    ],
)  # fmt: skip
def test_words_are_classed_by_their_form(word: str, begins: bool, found: str) -> None:
    assert word_class(word, begins=begins) == found


def test_features_tell_what_stands_around_a_place() -> None:
    text = "The tea room opened in 1931. Rosa Lind baked the bread for it in Falun."
    assert features_at("When did the tea room open?", text, "1931") >= {
        "word:#year", "before:in", "after:.", "follows", "left:2", "right:5", "fits",
    }  # fmt: skip
    assert features_at("Who baked the bread?", text, "Rosa") >= {"sentence", "word:#first", "right:2", "after:#name"}
    assert features_at("Where was the bread from?", text, "Falun") >= {"before:in", "word:#name"}
    assert features_at("From where is the bread?", "bread from Falun", "from") >= {"leading:here", "left:1"}
    assert features_at("Where is the bread from?", "bread from Falun", "Falun") >= {"trailing:before", "after:end"}
    assert "before:line" in features_at("Who?", "one\ntwo", "two")
    assert "cut" in features_at("When?", "on 3 May", "May")
    assert "cut" not in features_at("When?", "on 3, May", "May")


def test_a_refusal_is_told_by_what_the_documents_lack() -> None:
    def refusal(question: str) -> dict[str, float]:
        shared = SharedWords(question, NOTES)
        return dict(PlaceFeatures(question, NOTES, kind_of(question), shared).of_refusal())

    assert refusal("Who repairs the organ?")["refusal:missing"] == pytest.approx(2 / 3)
    assert refusal("costs ticket")["refusal:all there"] == 1.0
    assert "refusal:name" in refusal("What did Xaver say?")
    assert "refusal:name" not in refusal("What costs a ticket?")


def test_a_gain_is_the_sum_of_the_weights_for_its_sort_of_question() -> None:
    weights = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    question, text = "How much is a ticket?", NOTES[0]
    hints = LearnedHints(question, [text], 0.5)
    start, end = next(span for span in word_spans(text) if text[slice(*span)].isdigit())
    total = 0.0
    for name, value in hints.features(0, start, text[start:end]):
        total += (weights.get(name, 0.0) + weights.get(f"{name}{FOR}price", 0.0)) * value
    assert hints.sort == "price"
    assert math.isclose(hints.gain(0, start, text[start:end]), 0.5 * total)
    refusal = sum(
        (weights.get(name, 0.0) + weights.get(f"{name}{FOR}price", 0.0)) * value
        for name, value in hints.features_of_other(REFUSAL)
    )
    assert math.isclose(hints.other(REFUSAL), 0.5 * refusal)


def test_the_rules_are_one_feature_and_the_largest() -> None:
    weights = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    rules, learned = Hints("When do they open?", NOTES), LearnedHints("When do they open?", NOTES)
    start, end = word_spans(NOTES[0])[0]
    word = NOTES[0][start:end]
    assert dict(learned.features(0, start, word))[RULES] == rules.gain(0, start, word)
    assert weights[RULES] > 0


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize("texts", HOSTILE)
def test_hostile_questions_and_texts_have_finite_gains(question: str, texts: list[str]) -> None:
    hints = LearnedHints(question, texts)
    gains = [
        hints.gain(number, start, text[start:end])
        for number, text in enumerate(texts)
        for start, end in word_spans(text)
    ]
    assert all(map(math.isfinite, [*gains, *map(hints.other, OTHER_ANSWERS)]))


def test_places_are_the_words_of_a_text_in_order() -> None:
    text = "Ada's, well: 3.40 euros"
    assert [text[start:end] for start, end in place_spans(text)] == ["Ada's", ",", "well", ":", "3.40", "euros"]
    assert {start for start, _ in word_spans(text)} == {start for start, _ in place_spans(text)}
