"""What a question tells about its answer, and answers that follow it."""

from __future__ import annotations

import random
from math import exp, inf, isclose
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.engine.answer_options import read_options
from clara_core.engine.quoting.hints import Hints
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.verbatim import OTHER_ANSWERS, REFUSAL, Quotation
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.retrieval.words import word_spans, words_of
from tests.engine.quoting.test_shared_words import HOSTILE, HOSTILE_QUESTIONS, NOTES
from tests.engines import PASSAGES, open_engine
from tests.model.test_tokenizer import tokenizer_of
from tests.tiny import Tiny, build

END = 10**9


def gain_at(question: str, text: str, word: str) -> float:
    return Hints(question, [text]).gain(0, text.index(word), word)


def test_a_quotation_loses_by_beginning_with_a_word_of_the_question() -> None:
    assert gain_at("How much is a ticket?", NOTES[0], "ticket") < gain_at("How much is a ticket?", NOTES[0], "costs")


def test_what_looks_like_an_answer_gains() -> None:
    text = "The boat: green, 900 euros, Iris Falk, in Visby, on 4 May."
    for question, best in (
        ("Who sold the boat?", "Iris"),
        ("Where was the boat sold?", "in"),
        ("How much did the boat cost?", "900"),
        ("When was the boat sold?", "on"),
        ("What colour was the boat?", "green"),
    ):
        gains = {
            text[start:end]: gain_at(question, text, text[start:end])
            for start, end in word_spans(text)
            if text[start].isalnum()
        }
        assert gains[best] == max(gains.values()), (question, gains)


def test_a_quotation_loses_by_beginning_behind_a_number() -> None:
    text = "From 1 February the fee is 30 euros."
    assert gain_at("From when?", text, "February") < gain_at("From when?", text, "1")


def test_a_place_is_no_person() -> None:
    island, person = (f"The ferry was to fetch Heron {name} by noon." for name in ("Island", "Falk"))
    question = "Who was on the ferry?"
    assert gain_at(question, person, "Heron") == gain_at(question, island, "Heron") + 8  # its kind, and what it avoids


def test_a_quotation_loses_by_beginning_with_a_pronoun() -> None:
    text = "I repair old clocks."
    assert gain_at("What does the writer do?", text, "I") < gain_at("What does the writer do?", text, "old")


@pytest.mark.parametrize("text", ["I met Morra Miros in May.", "They were led by Dr Miros. In May they left."])
def test_a_quotation_loses_by_beginning_inside_of_a_name(text: str) -> None:
    name = text[: text.index("Miros")].rsplit(maxsplit=1)[-1]
    assert gain_at("Who?", text, "Miros") < gain_at("Who?", text, name)


def test_a_name_behind_a_word_that_begins_a_sentence_is_whole() -> None:
    assert gain_at("Who?", "Was Miros there?", "Miros") == gain_at("Who?", "was Miros there?", "Miros")


@pytest.mark.parametrize("text, question", [("It takes two weeks.", "How long?"), ("Open from 9 am on.", "When?")])
def test_no_quotation_ends_between_a_number_and_its_unit(text: str, question: str) -> None:
    number, unit = ("two", "weeks") if "two" in text else ("9", "am")
    hints = Hints(question, [text])
    assert not hints.may_end(text, text.index(number), text.index(number) + len(number))
    assert hints.may_end(text, text.index(f" {unit}") + 1, text.index(f" {unit}") + 1 + len(unit))
    known = Hints(f"How many {unit}?", [text])  # "two" answers "How many weeks?"
    assert known.may_end(text, text.index(number), text.index(number) + len(number))


@pytest.mark.parametrize(
    "question, text, near, far",
    [
        ("What did the lamp burn?", "The lamp burned whale oil in an iron pan.", "whale", "iron"),
        ("What do claims need?", "Claims need the receipt of a shop.", "receipt", "shop"),
        ("What does he grow?", "He sold apples. He grows cocoa.", "cocoa", "apples"),
    ],
)
def test_a_quotation_gains_by_following_a_word_of_the_question(question: str, text: str, near: str, far: str) -> None:
    assert gain_at(question, text, near) >= gain_at(question, text, far) + 3


def test_a_word_of_the_sentence_before_is_not_followed() -> None:
    text = "They grow. Cocoa is sold."
    assert gain_at("What do they grow?", text, "Cocoa") < gain_at("What do they grow?", "They grow Cocoa.", "Cocoa")


def test_a_name_of_the_question_is_no_answer_to_who() -> None:
    text = "Kofi Mensah was taught by Abena Owusu."
    assert gain_at("Who taught Kofi Mensah?", text, "Abena") > gain_at("Who taught Kofi Mensah?", text, "Kofi")


def test_a_thing_may_be_answered_by_its_own_name() -> None:
    text = "The museum is two minutes from the stop of tram 4."
    assert gain_at("Which tram goes to the museum?", text, "tram") > gain_at(
        "Which tram goes to the museum?", text, "two"
    )


def test_yes_and_no_win_where_they_can_answer() -> None:
    text = "The gallery is closed on Mondays."
    asked, other = Hints("Is the gallery open on Mondays?", [text]), Hints("When is the gallery closed?", [text])
    assert (
        asked.other("Yes")
        == asked.other("No")
        > max(asked.gain(0, start, text[start:end]) for start, end in word_spans(text))
    )
    assert other.other("Yes") == 0


def test_a_refusal_gains_more_the_surer_the_form_of_an_answer_is() -> None:
    texts = ["The gallery is closed."]
    none, where, price = (
        Hints(question, texts).other(REFUSAL) for question in ("gallery", "Where is it?", "How much is it?")
    )
    assert 0 < none < where < price


def test_a_refusal_gains_more_the_less_the_documents_share_with_the_question() -> None:
    few, some, all_ = (Hints(question, NOTES).other(REFUSAL) for question in ("mayor", "mayor sauna", "sauna opens"))
    assert few > some > all_ > 0


@pytest.mark.parametrize("question", HOSTILE_QUESTIONS)
@pytest.mark.parametrize("texts", HOSTILE)
def test_hostile_questions_and_texts_have_finite_gains(question: str, texts: list[str]) -> None:
    hints = Hints(question, texts)
    gains = [
        hints.gain(number, start, text[start:end])
        for number, text in enumerate(texts)
        for start, end in word_spans(text)
    ]
    assert all(-5 <= gain <= 18 for gain in [*gains, *map(hints.other, OTHER_ANSWERS)])


def test_a_weight_is_a_factor_of_every_gain() -> None:
    once, twice = (Hints("When do they open?", NOTES, weight) for weight in (1.0, 2.0))
    for word in ("The", "7:30", "opens"):
        assert twice.gain(0, NOTES[0].index(word), word) == 2 * once.gain(0, NOTES[0].index(word), word) != 0
    assert twice.other(REFUSAL) == 2 * once.other(REFUSAL)


@pytest.mark.parametrize("text", ["the", "a", "the of", "We sold the", "my dog and", "and the big dog of the man"])
def test_no_quotation_ends_with_a_word_that_goes_on(text: str) -> None:
    tokenizer = tokenizer_of("qwen2")
    for seed in range(20):
        quotation, ids, rng = Quotation([text], tokenizer, Hints("dog", [text])), [], random.Random(seed)
        while (token := rng.choice(list(quotation.allowed([END])))) != END:
            quotation.feed(token)
            ids.append(token)
        answer = tokenizer.decode(ids).strip()
        last = answer.split()[-1]
        start = text.rfind(last)
        assert answer in OTHER_ANSWERS or (
            answer in text and Hints("dog", [text]).may_end(text, start, start + len(last))
        )


def best_place(quoted: str, texts: list[str], hints: Hints) -> float:
    """The plain path: the gain of the best place of a quotation, looked for in the texts."""
    found = [hints.other(quoted)] if quoted in OTHER_ANSWERS else []
    for number, text in enumerate(texts):
        spans = word_spans(text)
        ends = {end for _, end in spans}
        for start, end in spans:
            spaced = start == 0 or text[start - 1].isspace()
            if (spaced or text[start].isalnum()) and text.startswith(quoted, start) and start + len(quoted) in ends:
                found.append(hints.gain(number, start, text[start:end]))
    return max(found, default=-inf)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("by1 ,.", max_size=30), min_size=1, max_size=3),
    question=st.sampled_from(["", "b", "by y", "Is b?", "How many b?", "Which b?", "When?"]),
    seed=st.integers(0, 1000),
)
def test_gains_along_an_answer_are_those_of_its_best_place(texts: list[str], question: str, seed: int) -> None:
    tokenizer, rng = tokenizer_of("qwen2"), random.Random(seed)
    hints = Hints(question, texts)
    quotation, ids, spent = Quotation(texts, tokenizer, hints), [], 0.0
    while True:
        allowed = quotation.allowed([END])
        assert max(allowed.values()) == 0.0
        token = rng.choice(list(allowed))
        spent += allowed[token]
        if token == END:
            break
        quotation.feed(token)
        ids.append(token)
    words = [text[start:end] for text in texts for start, end in word_spans(text)]
    starts = [best_place(text, texts, hints) for text in (*OTHER_ANSWERS, *filter(str.strip, words))]
    assert isclose(spent, best_place(tokenizer.decode(ids).lstrip(), texts, hints) - max(starts), abs_tol=1e-9)


def weighing(folder: Path, weight: float) -> Tiny:
    """A tiny checkpoint with this weight of the question's words."""
    tiny = build(folder, "qwen2", seed=3)
    ClaraConfig.read(tiny.folder).model_copy(update={"question_words": weight}).write(tiny.folder)
    return tiny


def test_a_checkpoint_that_says_so_answers_where_the_question_shares_most(tmp_path: Path) -> None:
    """An untrained generator has no opinion, so a large weight decides alone."""
    engine = open_engine(weighing(tmp_path, 1e4))
    memories = engine.compress(PASSAGES)
    for question, passage in (("When was the bridge opened?", 1), ("Who sailed to Lisbon?", 3), ("clocks maps", 5)):
        answer = engine.answer(question, memories, verbatim=True, max_tokens=40)
        assert answer.text in PASSAGES[passage]
        assert not set(words_of(answer.text.split()[0])) & set(words_of(question))
    options = {"verbatim": True, "logprobs": True, "min_confidence": 0.0}
    refused = engine.answer("Which colour?", memories, **options)
    assert refused.text == REFUSAL
    assert refused.confidence == pytest.approx(exp(sum(token.logprob for token in refused.logprobs)))
    quoted = engine.answer("When was the bridge opened?", memories, max_tokens=40, **options)
    assert quoted.confidence > exp(sum(token.logprob for token in quoted.logprobs))  # among the quotations alone
    engine.unload()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_quotation_is_weighed_against_all_that_were_allowed(tmp_path: Path, weight: float) -> None:
    """Against a plain twin that asks the reference for each allowed token, one by one."""
    tiny = weighing(tmp_path, weight)
    engine, question = open_engine(tiny), "When was it opened?"
    memories = engine.compress(["Opened in 1907.", "It is 214 m long."])
    sampling, _ = read_options({"verbatim": True, "logprobs": True, "max_tokens": 40})
    request = engine._chat_request([{"role": "user", "content": question}], memories, sampling)
    engine._wait([request])
    hints = LearnedHints(question, [memory.text for memory in memories], weight)
    quotation = Quotation([memory.text for memory in memories], engine.tokenizer, hints)
    judge, ends, total = tiny.reference().judge, engine.load().model.ends.ids, 0.0
    for at, token in enumerate([*request.sequence.ids, None]):
        gains, said = quotation.allowed(ends), request.sequence.ids[:at]
        logs = {one: float(judge(request.ids, request.memories, [*said, one])[-1]) for one in gains}
        weighed = torch.tensor([logs[one] + gain for one, gain in gains.items()]).log_softmax(0)
        found = dict(zip(gains, weighed.tolist(), strict=True))
        chosen = max(ends & set(found), key=found.__getitem__) if token is None else token
        assert found[chosen] == max(found.values())  # greedy
        total += found[chosen]
        if token is not None:
            quotation.feed(token)
    assert request.sequence.quoted_logprob == pytest.approx(total, abs=1e-3)
    engine.unload()
