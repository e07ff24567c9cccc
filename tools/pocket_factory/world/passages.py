"""Writes running text from facts: sentences with one or two facts, and fillers between them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from .kinds import KINDS, RELATIONS, fillers, noun, pronouns, reference
from .types import Fact, Passage

MAX_FACTS = 9
_HEADINGS = ("# @", "## @", "@")
_VERBS = frozenset(("is", "was", "lies", "stands"))
_PREPOSITIONS = frozenset(("in", "on", "by", "at", "near", "of", "from", "for"))


class Writer:
    """Writes sentences about one subject.

    The first sentence and most others name the subject in full. The rest use a pronoun or a noun such as "the town",
    except after a sentence that named another person.
    """

    def __init__(self, rng: random.Random, kind: str, name: str) -> None:
        self._rng = rng
        self._kind = kind
        self._full = reference(kind, name)
        self._noun = noun(kind, name)
        self._pronouns = pronouns(kind, name)
        self._named = False
        self._ambiguous = False

    def sentence(self, facts: Sequence[Fact]) -> str:
        """Return a sentence that states one or two facts."""
        rng = self._rng
        first = RELATIONS[facts[0].relation]
        if len(facts) == 1:
            joined = rng.random() < 0.5
            text = "{s} " + rng.choice(first.predicates) + "." if joined else rng.choice(first.sentences)
            text = self._mention(text).replace("{v}", facts[0].value)
        else:
            text = self._joined(facts)
        persons = any(RELATIONS[fact.relation].draw.kind == "person" for fact in facts)
        self._ambiguous = persons and self._kind == "person"
        return _finish(text)

    def filler(self, template: str) -> str:
        """Return a filler sentence, which may stand anywhere and so names a person in full."""
        self._ambiguous = self._kind == "person"
        return _finish(self._mention(template))

    def gaps(self, sentences: Sequence[str]) -> list[int]:
        """Return the places for fillers, where no pronoun follows that would then refer to another subject."""
        inner = range(1, len(sentences))
        return [at for at in inner if self._full in sentences[at]] + [len(sentences)]

    def _joined(self, facts: Sequence[Fact]) -> str:
        rng = self._rng
        first, second = (RELATIONS[fact.relation] for fact in facts)
        left, right = rng.choice(first.predicates), rng.choice(second.predicates)
        if second.leads and rng.random() < 0.4:
            lead = rng.choice(second.leads)
            if _agree(lead, left):
                text = lead.replace("{v}", facts[1].value) + ", {s} "
                return self._mention(text + left.replace("{v}", facts[0].value) + ".")
        merged = _merge(left, right)
        comma = ", " if first.draw.kind == "list" else " "
        verb, _, rest = right.partition(" ")
        if left.startswith(verb + " ") and verb in _VERBS:  # "is 40 metres long and made of brick"
            right = rest
        tail = " " + merged if merged else comma + "and " + right
        left = left.replace("{v}", facts[0].value)
        return self._mention("{s} " + left + tail.replace("{v}", facts[1].value) + ".")

    def _mention(self, template: str) -> str:
        """Replace the marks of the subject by its full name, a pronoun or a noun."""
        full, common = self._full, self._noun
        # Avoids "the town is a town in ..".
        common_fits = self._kind != "person" and "{an}" not in template
        template = template.replace("{an}", ("an " if common[0] in "aeiou" else "a ") + common)
        template = template.replace("{n}", common)
        words = (full, full, full + ("'" if full.endswith("s") else "'s"))
        if self._named and not self._ambiguous and self._rng.random() < 0.4:
            if common_fits and ("of {o}" in template or self._rng.random() < 0.5):
                words = (f"the {common}", f"the {common}", f"the {common}'s")
            elif "of {o}" not in template:  # avoids "the teacher of her"
                words = self._pronouns
        if "{s}" in template or "{o}" in template or "{p}" in template:
            self._named = True
        subject, object_, possessive = words
        return template.replace("{s}", subject).replace("{o}", object_).replace("{p}", possessive)


def write(rng: random.Random, kind: str, name: str, facts: Sequence[Fact], bounds: tuple[int, int, int]) -> Passage:
    """Write a passage.

    Args:
        rng: Random generator.
        kind: Kind of the subject.
        name: Full name of the subject.
        facts: Facts to state, in this order; the last ones are left out if they do not fit.
        bounds: Minimum, desired and maximum number of words. Fillers are added up to the desired number.

    Returns:
        The passage, with the facts that it states.
    """
    low, target, high = bounds
    writer = Writer(rng, kind, name)
    stated: list[Fact] = []
    sentences: list[str] = []
    count = 0
    for group in _groups(rng, facts):
        text = writer.sentence(group)
        length = len(text.split())
        if sentences and count + length > high:
            break
        sentences.append(text)
        stated.extend(group)
        count += length
    choices = list(fillers(KINDS[kind]))
    rng.shuffle(choices)
    for template in choices:
        if count >= max(low, target - 5):
            break
        text = writer.filler(template)
        length = len(text.split())
        if count + length <= high:
            sentences.insert(rng.choice(writer.gaps(sentences)), text)
            count += length
    return Passage(name[0].upper() + name[1:], " ".join(sentences), kind, tuple(stated))


def paraphrase(rng: random.Random, passage: Passage) -> str:
    """Return a text with the facts of a passage in another order and other words, without fillers."""
    name = passage.facts[0].subject
    facts = list(passage.facts)
    for _ in range(8):
        rng.shuffle(facts)
        writer = Writer(rng, passage.kind, name)
        text = " ".join([writer.sentence(group) for group in _groups(rng, facts)])
        if text != passage.text:
            break
    return text


def lay_out(rng: random.Random, passage: Passage, high: int) -> Passage:
    """Return the passage as in a file: under a heading, and in paragraphs if it is long.

    The heading is left out if the passage would otherwise have more than `high` words.
    """
    sentences = passage.text.split(". ")
    text = sentences[0]
    run = 1  # sentences of the paragraph so far; a paragraph has at least three
    for at, sentence in enumerate(sentences[1:], 1):
        ends = run >= 3 and len(sentences) - at >= 3 and rng.random() < 0.4
        text += (".\n\n" if ends else ". ") + sentence
        run = 1 if ends else run + 1
    heading = rng.choice(_HEADINGS).replace("@", passage.title)
    if len(text.split()) + len(heading.split()) <= high:
        text = f"{heading}\n\n{text}"
    return replace(passage, text=text)


def _groups(rng: random.Random, facts: Sequence[Fact]) -> list[tuple[Fact, ...]]:
    """Divide facts into groups of one or two that fit into one sentence."""
    groups: list[tuple[Fact, ...]] = []
    at = 0
    while at < len(facts):
        pair = tuple(facts[at : at + 2])
        lists = [RELATIONS[fact.relation].draw.kind == "list" for fact in pair]
        size = 2 if len(pair) == 2 and not lists[0] and not lists[1] and rng.random() < 0.4 else 1
        groups.append(pair[:size])
        at += size
    return groups


def _agree(lead: str, predicate: str) -> bool:
    """Return whether a lead fits a predicate; "Born in Sarn, she was born in 1802" does not."""
    if lead.startswith("With ") and predicate.startswith("was "):
        return False  # "With 800 visitors, the festival was founded in 1618"
    return lead.split(maxsplit=1)[0].lower() not in predicate.split()


def _merge(left: str, right: str) -> str:
    """Return what "was built in {v}" adds to "was built by {v}": "in {v}"; "" if the two do not begin alike."""
    if not left.startswith(("was ", "set out ", "is held ")):
        return ""
    ours, theirs = left.split(), right.split()
    shared = 0
    while ours[shared] == theirs[shared] != "{v}":  # every predicate contains its value
        shared += 1
    if shared and ours[shared - 1] in _PREPOSITIONS:
        shared -= 1
    rest = theirs[shared:]
    return " ".join(rest) if shared >= 2 and rest[0] in _PREPOSITIONS else ""


def _finish(text: str) -> str:
    return text[0].upper() + text[1:]
