"""Generates a corpus: subjects, passages about them, and questions."""

from __future__ import annotations

import random

from .kinds import KINDS, RELATIONS, VOCABULARY
from .names import SYLLABLES, Names
from .passages import MAX_FACTS, lay_out, write
from .questions import PairMaker, single_questions
from .types import Corpus, Fact, Passage, Question, Split
from .values import Subject, Values

# The share of subjects whose facts are spread over two passages.
DOUBLE = 0.1
FEWEST_SYLLABLES = 16  # with fewer passages, a corpus may run out of names
_FACTS_AT_LEAST = 2


def make_corpus(
    rng: random.Random,
    n_passages: int,
    split: Split = "train",
    words: tuple[int, int] = (20, 200),
    questions_per_passage: int = 3,
    two_passage: float = 0.25,
    layout: float = 0.0,
    kinds: int | None = None,
    syllables: int | None = None,
) -> Corpus:
    """Generate passages and questions; equal states of `rng` give equal corpora.

    Args:
        rng: Random generator.
        n_passages: Number of passages.
        split: The split of the invented words to use; the two splits have no word in common.
        words: Fewest and most words of a passage; short ones are far more frequent.
        questions_per_passage: Questions about one passage, for each passage.
        two_passage: Questions about two passages, for each passage on average. A corpus of very few passages may have
            fewer, because the two must have something in common.
        layout: Share of the passages that have a heading and paragraphs, as files do; the others are one paragraph
            without a title.
        kinds: Number of kinds of subjects, chosen at random; None: all. With few kinds the passages are similar.
        syllables: Number of syllables from which all names are made; None: all of them. With few the names are similar.

    Raises:
        ValueError: `n_passages` is below one, the bounds leave no room, or a count is out of range.
    """
    low, high = words
    if n_passages < 1:
        raise ValueError(f"a corpus needs at least one passage, not {n_passages}")
    if low < 1 or high < low + 25:
        raise ValueError(f"words={words}: the most must exceed the fewest by at least 25")
    if questions_per_passage < 0 or two_passage < 0:
        raise ValueError("numbers of questions must not be negative")
    if kinds is not None and not 1 <= kinds <= len(KINDS):
        raise ValueError(f"kinds must lie between 1 and {len(KINDS)}, got {kinds}")
    if syllables is not None and not FEWEST_SYLLABLES <= syllables <= len(SYLLABLES):
        raise ValueError(f"syllables must lie between {FEWEST_SYLLABLES} and {len(SYLLABLES)}, got {syllables}")
    names = Names(rng, split, VOCABULARY, 3 + n_passages // 4, syllables)
    plan = _subjects(rng, names, n_passages, kinds)
    values = Values(rng, names, [subject for subject, _ in plan])
    passages: list[Passage] = []
    for subject, count in plan:
        passages += _passages(rng, values, subject, count, words)
    rng.shuffle(passages)
    if layout > 0:
        passages = [lay_out(rng, p, high) if rng.random() < layout else p for p in passages]
    questions: list[Question] = []
    for index, passage in enumerate(passages):
        questions += single_questions(rng, index, passage, questions_per_passage)
    pairs = int(two_passage * n_passages + rng.random())
    if pairs:
        questions += PairMaker(rng, passages).questions(pairs)
    return Corpus(passages, questions)


def _subjects(rng: random.Random, names: Names, n_passages: int, n_kinds: int | None) -> list[tuple[Subject, int]]:
    """Draw subjects, each with its number of passages: one, sometimes two."""
    kinds = list(KINDS.values()) if n_kinds is None else rng.sample(list(KINDS.values()), n_kinds)
    weights = [kind.weight for kind in kinds]
    makers = {
        "person": names.person,
        "town": names.town,
        "river": names.river,
        "mountain": names.mountain,
    }
    plan: list[tuple[Subject, int]] = []
    missing = n_passages
    while missing:
        kind = rng.choices(kinds, weights)[0]
        make = makers.get(kind.name)
        name = make() if make else names.pattern(kind.patterns)
        count = 2 if missing > 1 and rng.random() < DOUBLE else 1
        plan.append((Subject(kind.name, name), count))
        missing -= count
    return plan


def _passages(
    rng: random.Random, values: Values, subject: Subject, count: int, words: tuple[int, int]
) -> list[Passage]:
    """Write the passages about one subject; no two of them state the same relation."""
    low, high = words
    relations = list(KINDS[subject.kind].relations)
    rng.shuffle(relations)
    room = len(relations) // count
    plans: list[tuple[list[str], int]] = []
    for turn in range(count):
        # A beta distribution: most passages are near the low end, few near the high one.
        target = low + int((high - low) * rng.betavariate(0.42, 2.15))
        if count == 2:  # half of the facts are too few for a long text
            target = min(target, low + 60)
        wanted = round(target / rng.uniform(8.0, 14.0)) + rng.choice((0, 0, 1))
        wanted = max(_FACTS_AT_LEAST, min(wanted, MAX_FACTS, room))
        plans.append((relations[turn * room : turn * room + wanted], target))
    # A date that follows another one is drawn after it, even if they are in different passages.
    told = [name for chosen, _ in plans for name in chosen]
    for name in sorted(told, key=lambda name: RELATIONS[name].draw.after != ""):
        values.draw(subject, name)
    return [
        write(
            rng,
            subject.kind,
            subject.name,
            [Fact(subject.name, name, subject.facts[name]) for name in chosen],
            (low, target, high),
        )
        for chosen, target in plans
    ]
