"""Passages and questions typed by hand (``tests/data/typed.json``): not generated, and not in training data.

One half is used during development, the other for final figures only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TYPED = Path(__file__).parents[1] / "tests" / "data" / "typed.json"
FACTS = TYPED.with_name("typed_facts.json")  # facts of the same kinds as in the encyclopedia

Half = Literal["open", "closed"]


@dataclass(frozen=True)
class Typed:
    """A question about one of the passages.

    Attributes:
        text: The question.
        answers: All right answers; empty if the passage does not answer it.
        gold: Number of its passage.
        kind: Its question word ("howmany", "why", …), "keyword", "yesno" or "none".
        form: The sort of its passage (recipe, lease, chat, …).
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    kind: str
    form: str


@dataclass(frozen=True)
class TypedSet:
    """The passages of both halves, and the questions of one.

    Attributes:
        texts: All passages; a question is searched among all of them.
        answerable: Questions that their passage answers.
        unanswerable: Questions about a passage that does not answer them.
    """

    texts: list[str]
    answerable: list[Typed]
    unanswerable: list[Typed]


def typed_set(half: Half, path: Path = TYPED) -> TypedSet:
    """All passages, and the questions of a half."""
    halves = json.loads(path.read_text(encoding="utf-8"))
    texts: list[str] = []
    asked: list[Typed] = []
    for name, entries in halves.items():
        for entry in entries:
            if name == half:
                asked += [
                    Typed(q["question"], tuple(q["answers"]), (len(texts),), q["kind"], entry["form"])
                    for q in entry["questions"]
                ]
            texts.append(entry["text"])
    return TypedSet(texts, [q for q in asked if q.answers], [q for q in asked if not q.answers])
