"""The words that a question shares with places of its documents, and answers that begin where it shares most."""

from __future__ import annotations

import random
from math import exp, inf, isclose
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.checkpoint.config import ClaraConfig
from clara_core.engine.answer_options import read_options
from clara_core.engine.shared_words import SharedWords
from clara_core.engine.verbatim import OTHER_ANSWERS, REFUSAL, Quotation
from clara_core.retrieval.words import word_spans, words_of
from tests.engines import PASSAGES, open_engine
from tests.model.test_tokenizer import tokenizer_of
from tests.tiny import Tiny, build

END = 10**9
NOTES = [
    "The pool opens at 7:30, and the sauna opens at noon. A ticket costs 14 euros.",
    "The ferry sails at 9:10 on weekdays.",
]
HOSTILE = ([""], ["   "], ["a"], ["\ud800 b"], ["富士山は、高い。"], ["...", "x" * 5000], NOTES)


def gain_at(question: str, texts: list[str], number: int, word: str) -> float:
    return SharedWords(question, texts).gain(number, texts[number].index(word), word)


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


def test_a_quotation_loses_by_beginning_with_a_word_of_the_question() -> None:
    assert gain_at("How much is a ticket?", NOTES, 0, "ticket") < gain_at("How much is a ticket?", NOTES, 0, "costs")


def test_a_rare_word_counts_for_more_than_a_frequent_one() -> None:
    texts = ["The bus is late, the bus is full, the bus is old.", "The Ikarus stands still."]
    assert gain_at("bus Ikarus", texts, 1, "still") > gain_at("bus Ikarus", texts, 0, "full")


@pytest.mark.parametrize("question", ["", "?", "Where?", "   ", "\ud800", "富士山", "</s><MEM0>"])
@pytest.mark.parametrize("texts", HOSTILE)
def test_hostile_questions_and_texts_have_finite_gains(question: str, texts: list[str]) -> None:
    shared = SharedWords(question, texts)
    gains = [shared.gain(n, start, text[start:end]) for n, text in enumerate(texts) for start, end in word_spans(text)]
    assert all(-2 <= gain <= 11 for gain in gains)


def test_a_weight_is_a_factor_of_every_gain() -> None:
    once, twice = (SharedWords("ticket", NOTES, weight) for weight in (1.0, 2.0))
    assert twice.gain(0, 0, "The") == 2 * once.gain(0, 0, "The")
    assert twice.refusal == 2 * once.refusal


def best_place(quoted: str, texts: list[str], shared: SharedWords) -> float:
    """The plain path: the gain of the best place of a quotation, looked for in the texts."""
    others = dict.fromkeys(OTHER_ANSWERS, 0.0) | {REFUSAL: shared.refusal}
    found = [others[quoted]] if quoted in others else []
    for number, text in enumerate(texts):
        spans = word_spans(text)
        ends = {end for _, end in spans}
        for start, end in spans:
            spaced = start == 0 or text[start - 1].isspace()
            if (spaced or text[start].isalnum()) and text.startswith(quoted, start) and start + len(quoted) in ends:
                found.append(shared.gain(number, start, text[start:end]))
    return max(found, default=-inf)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab ,.", max_size=30), min_size=1, max_size=3),
    question=st.text("ab ", max_size=8),
    seed=st.integers(0, 1000),
)
def test_gains_along_an_answer_are_those_of_its_best_place(texts: list[str], question: str, seed: int) -> None:
    tokenizer, rng = tokenizer_of("qwen2"), random.Random(seed)
    shared = SharedWords(question, texts)
    quotation, ids, spent = Quotation(texts, tokenizer, shared), [], 0.0
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
    starts = [best_place(text, texts, shared) for text in (*OTHER_ANSWERS, *filter(str.strip, words))]
    assert isclose(spent, best_place(tokenizer.decode(ids).lstrip(), texts, shared) - max(starts), abs_tol=1e-9)


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
    refused = engine.answer("Is it blue or green?", memories, **options)
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
    shared = SharedWords(question, [memory.text for memory in memories], weight)
    quotation = Quotation([memory.text for memory in memories], engine.tokenizer, shared)
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
