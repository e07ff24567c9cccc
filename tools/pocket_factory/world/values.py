"""Draws values from pools, so that subjects of one corpus share attributes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .kinds import RELATIONS
from .names import Names
from .relations import MONTHS, Draw

# Share of the numbers, years and lists that are new instead of from the pool of the corpus.
FRESH = 0.25


@dataclass
class Subject:
    """A subject of the encyclopedia; `facts` holds the values drawn for it so far, by relation."""

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)


class Values:
    """Draws values for the subjects of one corpus.

    Args:
        rng: Random generator.
        names: Source of further people, towns and regions.
        subjects: All subjects; the people, towns, rivers and mountains among them may become values.
    """

    def __init__(self, rng: random.Random, names: Names, subjects: list[Subject]) -> None:
        self._rng = rng
        size = len(subjects)

        def named(kind: str) -> list[str]:
            return [subject.name for subject in subjects if subject.kind == kind]

        self._pools: dict[str, list[str]] = {
            "person": named("person") + [names.person() for _ in range(4 + size // 12)],
            "town": named("town") + [names.town() for _ in range(3 + size // 20)],
            "river": named("river") + [names.river() for _ in range(1 + size // 40)],
            "mountain": named("mountain") + [names.mountain() for _ in range(1 + size // 40)],
            "region": names.words(4 + size // 24),
            "country": names.words(3 + size // 40),
            "family": names.words(4 + size // 24),
            "language": names.words(3 + size // 40),
        }
        self._years = [str(rng.randint(1580, 1960)) for _ in range(8 + size // 10)]
        self._shared: dict[str, list[str]] = {}
        self._pool_size = 3 + size // 24

    def draw(self, subject: Subject, relation: str) -> str:
        """Draw the value of `relation` for `subject`, and store it in its `facts`."""
        how = RELATIONS[relation].draw
        taken = {subject.name, *subject.facts.values()}
        while True:
            value = self._value(subject, relation, how)
            if value not in taken:
                break
        subject.facts[relation] = value
        return value

    def _value(self, subject: Subject, relation: str, how: Draw) -> str:
        rng = self._rng
        if how.kind in self._pools:
            return rng.choice(self._pools[how.kind])
        if how.kind == "choice":
            return rng.choice(how.items)
        if how.kind == "year":
            if rng.random() >= FRESH:
                return rng.choice(self._years)
            return str(rng.randint(1580, 1960))
        if how.after in subject.facts:  # a person dies after being born
            return self._date(int(subject.facts[how.after]) + rng.randint(how.low, how.high))
        pool = self._shared.get(relation)
        if pool is None:
            pool = self._shared[relation] = [self._anew(how) for _ in range(self._pool_size)]
        return rng.choice(pool) if rng.random() >= FRESH else self._anew(how)

    def _anew(self, how: Draw) -> str:
        rng = self._rng
        if how.kind == "date":
            return self._date(None)
        if how.kind == "quantity":
            # Small numbers are as frequent as large ones, as in real texts.
            number = how.low * (how.high / how.low) ** rng.random()
            return f"{max(how.low, round(number / how.step) * how.step):,} {how.unit}"
        items = rng.sample(how.items, rng.choice((2, 3, 3)))
        return ", ".join(items[:-1]) + " and " + items[-1]

    def _date(self, year: int | None) -> str:
        rng = self._rng
        written = str(year) if year is not None else rng.choice(self._years)
        return f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {written}"
