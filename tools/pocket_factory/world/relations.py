"""Relations: how their values are drawn, and the wording of statements and questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DrawKind = Literal[
    "town", "person", "river", "mountain", "region", "country", "family", "language",
    "year", "date", "quantity", "choice", "list",
]  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """How the values of a relation are drawn.

    Attributes:
        kind: A pool of names, or a type of value.
        items: All possible values of a "choice" or a "list".
        unit: The noun after the number of a "quantity".
        low, high, step: Bounds and step of the number.
        after: A relation with an earlier year; the year of this "date" follows it by `low` to `high` years.
    """

    kind: DrawKind
    items: tuple[str, ...] = ()
    unit: str = ""
    low: int = 0
    high: int = 0
    step: int = 1
    after: str = ""


def quantity(unit: str, low: int, high: int, step: int = 1) -> Draw:
    """Return the draw of numbers from `low` to `high` followed by `unit`."""
    return Draw("quantity", unit=unit, low=low, high=high, step=step)


def choice(items: str) -> Draw:
    """Return the draw of one of the comma-separated `items`."""
    return Draw("choice", tuple(item.strip() for item in items.split(",")))


def listing(items: str) -> Draw:
    """Return the draw of two or three of the comma-separated `items`."""
    return Draw("list", tuple(item.strip() for item in items.split(",")))


@dataclass(frozen=True)
class Relation:
    """One relation and its wordings.

    Attributes:
        says: Statements. Those without a mark of the subject are predicates ("was born in {v}") and can be joined; the
            others are whole sentences. Marks: `{s}` subject, `{o}` object form and `{p}` possessive form of the
            subject, `{v}` value, `{n}` and `{an}` the subject's noun without and with its article.
        leads: Participle phrases that can begin a sentence about another fact.
        asks: Questions with `{s}`.
        pair: Questions for the values of two subjects `{a}` and `{b}`.
        compare: Questions for one of two subjects, with "min" or "max" of the value.
        same: Yes-no questions whether two subjects share the value.
        role: Noun phrases for the value as an entity ("the founder of {s}").
    """

    name: str
    draw: Draw
    says: tuple[str, ...]
    asks: tuple[str, ...]
    leads: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    same: tuple[str, ...] = ()
    role: tuple[str, ...] = ()
    predicates: tuple[str, ...] = field(init=False)
    sentences: tuple[str, ...] = field(init=False)
    bridge_asks: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        whole = tuple(t for t in self.says if "{s}" in t or "{o}" in t or "{p}" in t)
        object.__setattr__(self, "sentences", whole)
        object.__setattr__(self, "predicates", tuple(t for t in self.says if t not in whole))
        # A long noun phrase is readable only at the end of a question, or before its last word.
        late = tuple(t for t in self.asks if len(t.split("{s}")[1].split()) <= 1)
        object.__setattr__(self, "bridge_asks", late)


def sort_key(draw: Draw, value: str) -> tuple[int, ...]:
    """Return the sort key of a year, a date or a quantity; raises ValueError for other values."""
    if draw.kind == "date":
        day, month, year = value.split()
        return int(year), MONTHS.index(month), int(day)
    return (int(value.split(maxsplit=1)[0].replace(",", "")),)
