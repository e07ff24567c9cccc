"""Records of the synthetic encyclopedia: facts, passages, questions, corpora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Fact:
    """One statement: `relation` of `subject` is `value`, written exactly as in the passage."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class Passage:
    """A text about one subject and every fact that it states."""

    title: str
    text: str
    kind: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Question:
    """A question with its one right answer.

    `gold` holds the indices in `Corpus.passages` of the one or two passages that are needed. `kind` is the relation of
    the question, with the prefix "pair:", "compare:", "same:" or "bridge:" if two passages are needed.
    """

    text: str
    answer: str
    gold: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Corpus:
    """Passages and the questions that they answer."""

    passages: list[Passage]
    questions: list[Question]
