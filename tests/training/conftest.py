"""Fixtures of the training tests: output of a synthesis run, and synthesis without waiting between retries."""

from __future__ import annotations

from collections import Counter

import pytest

from clara_core.data.jsonl import read_lines
from clara_core.training import synthesis_draft
from tests.training.teacher import FACT


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(synthesis_draft, "WAIT", 0)


def stage1(folder):
    return list(read_lines(folder / "stage1.jsonl", "stage1"))


def whole(lines, texts):
    """Whether the lines contain, for each text in order, its single facts, its pairs of facts and its paraphrase."""
    assert [line.docs for line in lines] == [(text,) for text in texts for _ in range(3)]
    for number, text in enumerate(texts):
        simple, both, paraphrase = lines[3 * number : 3 * number + 3]
        facts = FACT.findall(text)
        assert Counter(zip(simple.questions, simple.answers, strict=True)) == Counter(
            (f"What is the {what} of {of}?", value) for what, of, value in facts
        )
        assert len(both.questions) == len(facts) - 1
        assert paraphrase.kind == "paraphrase"
        assert all(value in paraphrase.answers[0] for _, _, value in facts)
    return True
