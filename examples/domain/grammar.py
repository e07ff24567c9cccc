"""Reads passages of the harbour gazette: sentences -> facts, by patterns. Knows the language and no fact."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from examples.domain.language import KINDS, OPENINGS, Kind, Relation


@dataclass(frozen=True, slots=True)
class Fact:
    """What a sentence states: `relation` of the entry's subject is `value`."""

    relation: Relation
    value: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a passage says.

    Attributes:
        kind: Kind of the subject.
        subject: As running text has it ("the Quorrin Queen").
        facts: In the order of the text.
    """

    kind: Kind
    subject: str
    facts: tuple[Fact, ...]


def read_entry(text: str) -> Entry | None:
    """Parse a passage; None where no sentence says what it is about."""
    sentences = [sentence.rstrip(".") + "." for sentence in re.split(r"(?<=\.)\s+", text.strip()) if sentence]
    about = next((found for sentence in sentences if (found := _opening(sentence))), None)
    if about is None:
        return None
    kind, subject = about
    facts = [fact for sentence in sentences for fact in _facts(sentence, kind, subject)]
    return Entry(kind, subject, tuple(dict.fromkeys(facts)))


def _opening(sentence: str) -> tuple[Kind, str] | None:
    for kind in KINDS:
        common = ("a " if kind.name[0] not in "aeiou" else "an ") + kind.name
        for opening in OPENINGS:
            pattern = _pattern(opening.replace("{k}", common), "(?P<subject>.+?)")
            if found := pattern.fullmatch(sentence):
                subject = found["subject"]
                return kind, f"the {subject[4:]}" if kind.article and subject[:4] in ("The ", "the ") else subject
    return None


def _facts(sentence: str, kind: Kind, subject: str) -> list[Fact]:
    """The facts of a sentence; none where it states nothing that the grammar knows."""
    who = _named(kind, subject)
    for relation in kind.relations:
        for template in relation.sentences:
            if found := _pattern(template, who).fullmatch(sentence):
                return [Fact(relation, found["value"])]
    start = re.match(f"{who} ", sentence)
    return [] if start is None else _predicates(sentence[start.end() :].removesuffix("."), kind)


def _predicates(text: str, kind: Kind) -> list[Fact]:
    """The facts of predicates joined by "and"; none where a part is unknown."""
    for relation in kind.relations:
        for template in relation.predicates:
            if (found := _pattern(template, "").fullmatch(text)) and " and " not in found["value"]:
                return [Fact(relation, found["value"])]
    for cut in re.finditer(" and ", text):
        left, right = _predicates(text[: cut.start()], kind), _predicates(text[cut.end() :], kind)
        if left and right:
            return left + right
    return []


@cache
def _named(kind: Kind, subject: str) -> str:
    """Pattern of every way to name the subject."""
    return f"(?i:{re.escape(subject)}|the {re.escape(kind.name)}|it)"


@cache
def _pattern(template: str, who: str) -> re.Pattern[str]:
    """A template as a pattern; at the start of a sentence its first letter may be a capital."""
    parts = re.split(r"(\{s\}|\{v\})", template)
    marks = {"{s}": who, "{v}": "(?P<value>.+?)"}
    return re.compile("".join(marks.get(part, f"(?i:{re.escape(part)})") for part in parts))
