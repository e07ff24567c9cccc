"""Writes questions about one passage and about two."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

from .kinds import RELATIONS, reference
from .relations import sort_key
from .types import Fact, Passage, Question


def single_questions(rng: random.Random, index: int, passage: Passage, count: int) -> list[Question]:
    """Ask `count` questions about one passage.

    Every fact gets one question before any gets a second one in other words.
    """
    order = list(passage.facts)
    rng.shuffle(order)
    questions: list[Question] = []
    asked: set[str] = set()
    for turn in range(count):
        fact = order[turn % len(order)]
        subject = reference(passage.kind, fact.subject)
        texts = [a.replace("{s}", subject) for a in RELATIONS[fact.relation].asks]
        text = rng.choice([text for text in texts if text not in asked] or texts)
        asked.add(text)
        questions.append(Question(_finish(text), fact.value, (index,), fact.relation))
    return questions


class PairMaker:
    """Writes questions that need two passages of a corpus.

    Args:
        rng: Random generator.
        passages: The passages of the corpus.
    """

    def __init__(self, rng: random.Random, passages: list[Passage]) -> None:
        self._rng = rng
        self._places: list[tuple[Fact, int, str]] = []  # fact, passage, the subject in running text
        self._by_relation: dict[str, list[int]] = defaultdict(list)
        self._by_value: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._by_subject: dict[str, list[int]] = defaultdict(list)
        for index, passage in enumerate(passages):
            for fact in passage.facts:
                at = len(self._places)
                self._places.append((fact, index, reference(passage.kind, fact.subject)))
                self._by_relation[fact.relation].append(at)
                self._by_value[fact.relation, fact.value].append(at)
                self._by_subject[fact.subject].append(at)
        # Only values of a pool of names can be subjects, because a year is never the name of a subject.
        self._chains = [
            at
            for at, (fact, _, _) in enumerate(self._places)
            if RELATIONS[fact.relation].role and fact.value in self._by_subject
        ]
        self._shared = [
            group
            for (relation, _), group in sorted(self._by_value.items())
            if len(group) > 1 and RELATIONS[relation].same
        ]
        self._agree = True

    def questions(self, count: int) -> list[Question]:
        """Write up to `count` questions, in equal shares of the four types if the corpus allows it."""
        makers: list[Callable[[], Question | None]] = [
            self._pair, self._compare, self._same, self._bridge
        ]  # fmt: skip
        self._rng.shuffle(makers)
        found: list[Question] = []
        texts: set[str] = set()
        for turn in range(count):
            for shift in range(len(makers)):
                question = self._try(makers[(turn + shift) % len(makers)], texts)
                if question is not None:
                    texts.add(question.text)
                    found.append(question)
                    break
        return found

    def _try(self, make: Callable[[], Question | None], texts: set[str]) -> Question | None:
        for _ in range(12):
            question = make()
            if question is not None and question.text not in texts:
                return question
        return None

    def _two(self, usable: Callable[[str], object]) -> tuple[int, int] | None:
        """Draw two facts of one relation from different subjects and passages."""
        names = [n for n, group in self._by_relation.items() if len(group) > 1 and usable(n)]
        if not names:
            return None
        left, right = self._rng.sample(self._by_relation[self._rng.choice(names)], 2)
        a, b = self._places[left], self._places[right]
        return (left, right) if a[1] != b[1] and a[0].subject != b[0].subject else None

    def _ask(self, template: str, answer: str, kind: str, left: int, right: int) -> Question:
        (_, at, a), (_, bt, b) = self._places[left], self._places[right]
        text = template.replace("{a}", a).replace("{b}", b)
        return Question(_finish(text), answer, (at, bt), kind)

    def _pair(self) -> Question | None:
        two = self._two(lambda name: RELATIONS[name].pair)
        if two is None:
            return None
        a, b = (self._places[at][0] for at in two)
        if a.value == b.value:
            return None
        template = self._rng.choice(RELATIONS[a.relation].pair)
        return self._ask(template, f"{a.value} and {b.value}", f"pair:{a.relation}", *two)

    def _compare(self) -> Question | None:
        two = self._two(lambda name: RELATIONS[name].compare)
        if two is None:
            return None
        relation = RELATIONS[self._places[two[0]][0].relation]
        keys = [sort_key(relation.draw, self._places[at][0].value) for at in two]
        if keys[0] == keys[1]:
            return None
        template, side = self._rng.choice(relation.compare)
        best = two[0] if (keys[0] < keys[1]) == (side == "min") else two[1]
        return self._ask(template, self._places[best][2], f"compare:{relation.name}", *two)

    def _same(self) -> Question | None:
        if self._agree:
            if not self._shared:
                return None
            left, right = self._rng.sample(self._rng.choice(self._shared), 2)
            if self._places[left][1] == self._places[right][1]:
                return None
        else:
            two = self._two(lambda name: RELATIONS[name].same)
            if two is None:
                return None
            left, right = two
        a, b = self._places[left][0], self._places[right][0]
        if (a.value == b.value) != self._agree:
            return None
        template = self._rng.choice(RELATIONS[a.relation].same)
        answer = "yes" if self._agree else "no"
        self._agree = not self._agree
        return self._ask(template, answer, f"same:{a.relation}", left, right)

    def _bridge(self) -> Question | None:
        if not self._chains:
            return None
        fact, at, subject = self._places[self._rng.choice(self._chains)]
        last, bt, _ = self._places[self._rng.choice(self._by_subject[fact.value])]
        if at == bt:
            return None
        role = self._rng.choice(RELATIONS[fact.relation].role).replace("{s}", subject)
        text = self._rng.choice(RELATIONS[last.relation].bridge_asks).replace("{s}", role)
        if last.value in text:  # "Where was the mayor of Sarn born?" must not be answered by "Sarn"
            return None
        kind = f"bridge:{fact.relation}.{last.relation}"
        return Question(_finish(text), last.value, (at, bt), kind)


def _finish(text: str) -> str:
    return text[0].upper() + text[1:]
