"""What the answers to a question look like, by its words."""

from __future__ import annotations

import pytest

from clara_core.engine.quoting.answer_kinds import kind_of
from tests.engine.quoting.test_shared_words import HOSTILE_QUESTIONS


@pytest.mark.parametrize(
    "question, name",
    [
        ("How much is a season ticket?", "price"),
        ("what does the hose cost", "price"),
        ("price season ticket", "price"),
        ("How high is the deposit?", "price"),
        ("What is the reward for finding the cat?", "price"),
        ("How much sugar do I need?", "amount"),
        ("How much does the parcel weigh?", "weight"),
        ("How heavy is it?", "weight"),
        ("How often does the bus run?", "frequency"),
        ("For how long is the lift out of service?", "duration"),
        ("At what temperature does it bake?", "temperature"),
        ("How tall is Greta?", "length"),
        ("How old was she?", "age"),
        ("how many eggs", "count"),
        ("When is the meeting?", "time"),
        ("Until when can I apply?", "time"),
        ("In which year was it built?", "time"),
        ("Where does Alva live?", "place"),
        ("In which city was he born?", "place"),
        ("By whom was it written?", "person"),
        ("Whose donkey is Biscuit?", "person"),
        ("Can you tell me who wrote it?", "person"),
        ("Why was the meeting moved?", "reason"),
        ("What is the caretaker's extension?", "code"),
        ("What colour is it?", "colour"),
        ("What is the donkey called?", "name"),
        ("Was the meeting moved?", "yes or no"),
        ("  does it cost extra?", "yes or no"),
        ("Which trams go there?", "tram"),
        ("From which platform do we leave?", "platform"),
        ("number of eggs", "count"),
        ("dentist phone number", "code"),
        ("How many times a week is it open?", "frequency"),
        ("How far ahead can I book?", "duration"),
        ("What does --fix-all do?", None),
        ("What is it?", None),
        ("opening hours pool", None),
        ("Wann ist die Sitzung?", None),
        ("いつですか", None),
    ],
)
def test_a_question_asks_for_a_kind_of_answer(question: str, name: str | None) -> None:
    kind = kind_of(question)
    assert (kind and kind.name) == name


@pytest.mark.parametrize(
    "question, fitting, other",
    [
        (
            "How much is it?",
            ["85 francs", "€20", "CHF 5", "two thousand dollars", "free"],
            ["85 km", "in May"],
        ),
        ("How often?", ["every second day", "twice", "three times", "on Mondays"], ["two", "the day"]),
        (
            "How long does it take?",
            ["45 minutes", "a week", "25 m", "about ten days"],
            ["45 euros", "May"],
        ),
        ("What temperature?", ["180 degrees", "about 20 °C"], ["180", "20 minutes"]),
        ("How heavy is it?", ["3.4 kg", "two tonnes"], ["3.4 km", "1907"]),
        ("How far is it?", ["11 km", "900 metres", "six feet"], ["11 kg", "two days"]),
        ("How old is she?", ["36", "two years old", "ninety"], ["1852", "21:15", "36 euros"]),
        ("How many?", ["14 moons", "twenty-two", "a dozen", "about 30"], ["16 hours", "1987", "12 May", "the 19th"]),
        (
            "When?",
            ["on Friday", "at 6:40", "14 March", "in 1926", "the 19th", "noon"],
            ["at home", "14", "two"],
        ),
        (
            "Where?",
            ["in Dunmore", "behind the shed", "Warsaw", "platform 9"],
            ["on Friday", "in 1926", "the shed", "14"],
        ),
        (
            "Who?",
            ["Rosalind Ashby", "Mr Okafor", "my sister"],
            ["Monday", "The museum", "in Dunmore", "Heron Island", "14"],
        ),
        ("Why?", ["because it rained", "to save money"], ["to 21 June", "the boat"]),
        ("What is the phone number?", ["217", "0171 555"], ["the office"]),
        ("Which colour?", ["green", "dark green"], ["the dog"]),
        ("Which tram?", ["tram 4", "the Harbour tram", "last tram"], ["trams are late", "the tram"]),
        ("Is it open?", [], ["yes", "14", "on Friday"]),
    ],
)
def test_what_fits_a_kind(question: str, fitting: list[str], other: list[str]) -> None:
    kind = kind_of(question)
    assert kind is not None
    padded = "It is here: "  # a place in the middle of a text
    assert [text for text in fitting if not kind.fits.match(padded + text, len(padded))] == []
    assert [text for text in other if kind.fits.match(padded + text, len(padded))] == []


def test_a_number_after_in_is_a_year_and_no_count() -> None:
    kind = kind_of("How many people did the city lose?")
    assert kind is not None
    assert kind.fits.match("lost 1348 people", 5)
    assert not kind.fits.match("in 1348 a third", 3)


@pytest.mark.parametrize("question", [*HOSTILE_QUESTIONS, "how much " * 20_000, "What (?!", "which \\d+"])
def test_any_text_may_be_asked(question: str) -> None:
    kind = kind_of(question)
    assert kind is None or not kind.fits.match("", 0)
