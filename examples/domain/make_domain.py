"""Generates the harbour gazette: passages that no CLaRa has seen, and held-out questions about them.

    python examples/domain/make_domain.py --out runs/domain/data      300 passages, seed 7

Writes ``documents.jsonl`` (what training data may be made of) and ``held_out.jsonl``, a file for `clara eval --corpus`:
questions in phrasings that no training question has, each with the passage that answers it. A fifth of those passages
are in no other file (``"seen": false``): nothing about them is ever trained. The answers come from the generator's
facts; training data comes from the texts alone, see `examples.domain.templated_llm`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clara_core.data.jsonl import write_lines
from examples.domain.language import FILLERS, FIRST, KINDS, LAST, OPENINGS, Kind, PoolName, Relation

DOCUMENTS = "documents.jsonl"
HELD_OUT = "held_out.jsonl"
SEED = 7
PASSAGES = 300
UNSEEN = 0.2  # share of the passages of which no question is trained
QUESTIONS = 2  # held-out questions for each passage
SHORTEST, LONGEST = 20, 120  # words of a passage


@dataclass(frozen=True, slots=True)
class Document:
    """A passage of the gazette.

    Attributes:
        id: Unique.
        text: 20 to 120 words about one subject.
        seen: Whether training data may be made of it.
    """

    id: str
    text: str
    seen: bool


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question of the test.

    Attributes:
        question: In words that no training question has.
        answer: As it stands in the passage.
        gold: Id of the passage that answers it.
        relation: What is asked for.
        seen: Whether training data may be made of that passage.
    """

    question: str
    answer: str
    gold: str
    relation: str
    seen: bool


@dataclass(frozen=True, slots=True)
class Domain:
    """The whole gazette, in mixed order, and the test."""

    documents: tuple[Document, ...]
    questions: tuple[HeldOut, ...]


def make_domain(passages: int = PASSAGES, seed: int = SEED) -> Domain:
    """Generate passages and held-out questions; equal arguments give equal texts.

    Raises:
        ValueError: Fewer than ten passages: there would be none unseen, or none seen.
    """
    if passages < 10:
        raise ValueError(f"a domain needs at least 10 passages, got {passages}")
    rng = random.Random(f"gazette {seed}")
    names = _Names(rng, passages)
    documents, questions = [], []
    for number in range(passages):
        seen = number >= round(UNSEEN * passages)
        kind = KINDS[number % len(KINDS)]
        subject = names.subject(kind)
        text, facts = _passage(rng, kind, subject, names)
        document = Document(f"{kind.name.replace(' ', '-')}-{number:03}", text, seen)
        documents.append(document)
        for relation, value in rng.sample(facts, min(QUESTIONS, len(facts))):
            asked = rng.choice(relation.held_out).replace("{s}", subject)
            questions.append(HeldOut(asked, value, document.id, relation.name, seen))
    rng.shuffle(documents)
    return Domain(tuple(documents), tuple(questions))


def write_domain(domain: Domain, folder: Path) -> None:
    """Write the files of a domain."""
    texts = {one.id: one.text for one in domain.documents}
    write_lines(folder / DOCUMENTS, ({"id": one.id, "text": one.text} for one in domain.documents if one.seen))
    write_lines(
        folder / HELD_OUT,
        (
            {
                "question": one.question,
                "docs": [texts[one.gold]],
                "answer": one.answer,
                "pos_index": [0],
                "relation": one.relation,
                "seen": one.seen,
            }
            for one in domain.questions
        ),
    )


# --- names and values ------------------------------------------------------------------------------------


class _Names:
    """Invented names of one gazette; many subjects share a word, as namesakes do, and many share their attributes."""

    def __init__(self, rng: random.Random, passages: int) -> None:
        self._rng = rng
        self._words: set[str] = set()
        self._subjects: set[str] = set()
        self._stems = [self._word() for _ in range(4 + passages // 3)]
        given = [self._word() for _ in range(6 + passages // 30)]
        self._pools: dict[PoolName, list[str]] = {
            "person": [f"{rng.choice(given)} {self._word()}" for _ in range(6 + passages // 8)],
            "place": [self._word() for _ in range(6 + passages // 12)],
        }

    def subject(self, kind: Kind) -> str:
        """A name with its article that no other subject has."""
        while True:
            name = self._rng.choice(kind.patterns).replace("@", self._rng.choice(self._stems))
            if name not in self._subjects:
                self._subjects.add(name)
                return f"the {name}" if kind.article else name

    def value(self, relation: Relation) -> str:
        """A value of a relation."""
        values = relation.values
        if isinstance(values, str):
            return self._rng.choice(self._pools[values])
        if isinstance(values[0], str):
            return str(self._rng.choice(values))
        low, high, step, unit = values
        number = self._rng.randrange(low, high + 1, step)
        return f"{number} {unit}".strip()

    def _word(self) -> str:
        while True:
            word = (self._rng.choice(FIRST) + self._rng.choice(LAST)).capitalize()
            if word not in self._words:
                self._words.add(word)
                return word


# --- passages --------------------------------------------------------------------------------------------


def _passage(rng: random.Random, kind: Kind, subject: str, names: _Names) -> tuple[str, list[tuple[Relation, str]]]:
    """A text about a subject and the facts that it states."""
    relations = rng.sample(kind.relations, rng.randint(3, 5))
    facts = [(relation, names.value(relation)) for relation in relations]
    common = ("a " if kind.name[0] not in "aeiou" else "an ") + kind.name
    opening = rng.choice(OPENINGS).replace("{k}", common).replace("{s}", subject)
    sentences = [opening, *state(rng, kind, subject, facts)]
    target = SHORTEST + (LONGEST - 15 - SHORTEST) * rng.random() ** 2  # short ones are more frequent
    fillers = list(FILLERS)
    rng.shuffle(fillers)
    for filler in fillers:
        if sum(len(sentence.split()) for sentence in sentences) >= target:
            break
        sentences.insert(rng.randint(1, len(sentences)), filler.replace("{s}", subject))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences), facts


def state(rng: random.Random, kind: Kind, subject: str, facts: Sequence[tuple[Relation, str]]) -> list[str]:
    """Sentences that state facts in their order, one or two in each."""
    sentences, at = [], 0
    while at < len(facts):
        few = facts[at : at + 1 + (rng.random() < 0.3)]
        who = rng.choice((subject, subject, subject, f"the {kind.name}", "it"))
        if len(few) == 2:
            said = " and ".join(rng.choice(relation.predicates).replace("{v}", value) for relation, value in few)
            sentences.append(f"{who} {said}.")
        else:
            relation, value = few[0]
            template = rng.choice([f"{{s}} {predicate}." for predicate in relation.predicates] + [*relation.sentences])
            if not template.startswith("{s}") and who == "it":
                who = subject  # "The hold of it" reads badly
            sentences.append(template.replace("{s}", who).replace("{v}", value))
        at += len(few)
    return sentences


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/domain/data"), help="folder of the files")
    parser.add_argument("--passages", type=int, default=PASSAGES)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    domain = make_domain(arguments.passages, arguments.seed)
    write_domain(domain, arguments.out)
    print(f"{len(domain.documents)} passages and {len(domain.questions)} held-out questions in {arguments.out}")


if __name__ == "__main__":
    main()
