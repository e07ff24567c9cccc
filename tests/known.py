"""A question that the frozen weights answer correctly, and passages of their encyclopedia."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clara_core import ClaraEngine, Memory
from clara_core.engine.quotes import stands_in
from tools.pocket_factory.world import ENCYCLOPEDIA, make_corpus


@dataclass(frozen=True)
class Known:
    """A question and four passages of the synthetic encyclopedia; the second one answers it."""

    question: str
    answer: str
    gold: int
    texts: list[str]
    memories: list[Memory]


@cache
def find_known() -> tuple[ClaraEngine, Known]:
    """Find the question for the engine of the frozen weights."""
    engine = ClaraEngine.from_pretrained(ENCYCLOPEDIA, device="cpu", dtype="float32")
    corpus = make_corpus(random.Random(3), 6, split="test", words=(20, 60), questions_per_passage=3, two_passage=0.0)
    texts = [passage.text for passage in corpus.passages]
    memories = engine.remember(texts)
    for asked in corpus.questions:
        [gold] = asked.gold
        first, *others = [at for at in range(len(texts)) if at != gold][:3]
        chosen = [first, gold, *others]
        answer = engine.answer(asked.text, [memories[at] for at in chosen], citations=True)
        only = [at for at, text in enumerate(texts) if stands_in(asked.answer, text)] == [gold]
        if only and answer.text == asked.answer and answer.checks.cited_first and len(answer.citations) == 1:
            known = [[some[at] for at in chosen] for some in (texts, memories)]
            return engine, Known(asked.text, asked.answer, 1, *known)
    raise AssertionError("the frozen weights answer none of these questions right")


def write_files(folder: Path) -> None:
    """Write eighty passages, one in each file; one states that Mount Masar was first climbed in 1689."""
    corpus = make_corpus(random.Random(3), 80, "test", words=(40, 180), two_passage=1.0)
    for number, passage in enumerate(corpus.passages):
        (folder / f"{number}.txt").write_text(passage.text + "\n", encoding="utf-8")
