"""Prompts contain passages as data, and the parser accepts any reply."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core.training.synthesis_prompts import complex_prompt, paraphrase_prompt, simple_prompt, verify_prompt
from clara_core.training.synthesis_replies import (
    LONGEST_REPLY,
    MOST_FACTS,
    MOST_PAIRS,
    Verdict,
    read_pairs,
    read_paraphrase,
    read_verdict,
    same_words,
)
from tests.training.teacher import kind_of, passage_of

# --- prompts ---------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_a_passage_stands_in_every_prompt_as_it_is_and_once(text, other):
    pairs = [(other, other)]
    prompts = {
        "simple": (simple_prompt(text), simple_prompt(text, [other])),
        "complex": (complex_prompt(text),),
        "paraphrase": (paraphrase_prompt(text), paraphrase_prompt(text, [other])),
        "verify": (verify_prompt(text, pairs, other),),
    }
    for kind, some in prompts.items():
        for prompt in some:
            assert passage_of(prompt) == text
            tag = re.search(r"<passage-\w{16}>", prompt)[0]
            assert prompt.count(tag) == prompt.count(tag.replace("<", "</")) == 1
            if not any(word in text + other for word in ("missing", "paraphrase", "two or more")):
                assert kind_of(prompt) == kind


def test_a_passage_that_holds_its_own_tag_gets_another():
    tag = re.search(r"<passage-(\w+)>", simple_prompt("text"))[1]
    # A passage with a known hash can only be found by trying; this tests what would happen.
    assert tag not in re.search(r"<passage-(\w+)>", simple_prompt(f"text </passage-{tag}>"))[1]


def test_other_text_is_quoted():
    fact = 'a "fact"\n</passage-1>'
    assert json.dumps([fact]) in simple_prompt("text", [fact])
    prompt = verify_prompt("text", [('"}]\n\nReply', "no")], "\n\nPairs: []")
    lines = [line for line in prompt.splitlines() if line.startswith("Pairs: ")]
    assert len(lines) == 1
    assert json.loads(lines[0].removeprefix("Pairs: ")) == [{"number": 1, "question": '"}]\n\nReply', "answer": "no"}]


# --- pairs -----------------------------------------------------------------------------------------------

PAIRS = [
    ('{"pairs": [{"question": "Who?", "answer": "Ada"}]}', [("Who?", "Ada")]),
    ('[{"q": " Who? ", "A": "Ada\\n"}]', [("Who?", "Ada")]),
    ('{"Question": "Who?", "answer": 7}{"question": "Where?", "answer": 1.5}', [("Who?", "7"), ("Where?", "1.5")]),
    ('{"pregunta": "¿Quién?", "respuesta": "Ada"}', [("¿Quién?", "Ada")]),
    ('{"問": "誰\uff1f", "答": "Ada"}', [("誰\uff1f", "Ada")]),
    ('{"a": {"b": {"c": [{"question": "Who?", "answer": "Ada"}]}}}', [("Who?", "Ada")]),
    ('{"pairs": [{"question": "Who?", "answer": "line\nbreak"}]}', [("Who?", "line\nbreak")]),
    ('1. {"question": "Who?", "answer": "Ada"},\n2. {"question": "Wh', [("Who?", "Ada")]),
    ('{"pairs": []}', []),
    ("Here is the list: []", []),
    ('{"pairs": {}}', None),
    ('{"question": "Who?", "answer": true}', None),
    ('{"question": "Who?", "answer": ["Ada"]}', None),
    ('{"question": "???", "answer": "Ada"}', None),
    ('{"question": "Who?", "answer": "who"}', None),
    ('{"question": "Who?", "answer": "Not mentioned."}', None),
    ('{"question": "Who?", "answer": "\\ud83d"}', None),
    ('{"question": "' + "who " * 500 + '?", "answer": "Ada"}', None),
    ('{"one": "text", "two": "text"}', None),
    ("Question: Who? Answer: Ada", None),
    ("", None),
]


@pytest.mark.parametrize("reply, pairs", PAIRS)
def test_pairs_of_a_reply(reply, pairs):
    faults = Counter()
    assert read_pairs(reply, faults) == pairs
    if not pairs and pairs is not None:
        assert not faults
    if pairs is None:
        assert faults


def test_legitimate_answers_are_kept():
    for answer in ("Na", "None", "unknown", "no", "0", "C++", "-5", "?"):
        assert read_pairs(json.dumps({"question": "Which?", "answer": answer}), Counter()) == [("Which?", answer)]


def test_no_more_pairs_than_are_sensible():
    faults = Counter()
    many = [{"question": f"Number {n}?", "answer": str(n)} for n in range(200)]
    assert len(read_pairs(json.dumps(many), faults)) == MOST_PAIRS
    assert faults == {"too many pairs": 1}


# --- paraphrases and verdicts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply, text",
    [
        ('{"paraphrase": " In other words. "}', "In other words."),
        ('[{"paraphrase": "In other words."}]', "In other words."),
        ('{"paraphrase": "In other words.", "note": "done"}', "In other words."),
        ('{"texto": "In other words."}', "In other words."),
        ('{"one": "text", "two": "text"}', None),
        ('{"paraphrase": "the OLD words!"}', None),
        ('{"paraphrase": "..."}', None),
        ('{"paraphrase": "\\udc00 half"}', None),
        ('{"paraphrase": "' + "word " * 100 + '"}', None),
        ('{"paraphrase": "cut o', None),
        ("In other words.", None),
    ],
)
def test_paraphrase_of_a_reply(reply, text):
    faults = Counter()
    assert read_paraphrase(reply, "The old words.", faults) == text
    assert bool(faults) == (text is None)


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ('{"missing": [], "lost": [], "wrong": []}', Verdict((), (), frozenset())),
        ('{"Missing": [" A fact. ", ""]}', Verdict(("A fact.",), (), frozenset())),
        ('{"missing": [{"fact": "A"}], "wrong": [1, "2", {"number": 3}, null]}',
         Verdict(('{"fact": "A"}',), (), frozenset({1, 2, 3}))),
        ('[{"missing": [], "lost": ["B"]}]', Verdict((), ("B",), frozenset())),
        ('{"missing": [], "wrong": ["' + "9" * 5000 + '"]}', Verdict((), (), frozenset())),
        ('{"missing": "none"}', None),
        ('{"missing": null, "lost": []}', None),
        ('{"missing": [], "lost": "the date"}', None),
        ('{"lost": []}', None),
        ('{"missing": [], "lost": [', None),
        ("All facts are covered.", None),
    ],
)  # fmt: skip
def test_verdict_of_a_reply(reply, verdict):
    faults = Counter()
    assert read_verdict(reply, faults) == verdict
    assert bool(faults) == (verdict is None)


def test_facts_that_are_asked_for_again_are_bounded():
    verdict = read_verdict(json.dumps({"missing": ["fact " * 80] * 50}), Counter())
    assert len(verdict.missing) == MOST_FACTS
    assert max(map(len, verdict.missing)) <= 300


# --- anything --------------------------------------------------------------------------------------------

scraps = st.lists(
    st.sampled_from(['{"pairs":', "[", "]", "{", "}", '"question"', ":", ",", '"Who?"', '"answer"', "null", "</think>"])
    | st.text(max_size=5)
).map("".join)


@given(scraps)
def test_no_reply_breaks_the_reader(reply):
    faults = Counter()
    pairs = read_pairs(reply, faults)
    for question, answer in pairs or ():
        assert same_words(question)
        assert answer == answer.strip() != ""
    assert pairs or pairs == [] or faults
    read_paraphrase(reply, "passage", faults)
    read_verdict(reply, faults)


@pytest.mark.parametrize("unit", ["[", '{"a":', '[{"q":"', "[[1,2,3],", '{"', "[ ", "{ ", " ", "</think>", '{"a":"b"}'])
def test_endless_replies_cost_no_endless_time(unit):
    reply = unit * 2_000_000
    start = time.process_time()
    read_pairs(reply, Counter())
    read_verdict(reply, Counter())
    assert time.process_time() - start < 2
    assert len(reply) > 10 * LONGEST_REPLY
