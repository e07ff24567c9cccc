"""English words that may stand for each other in everyday questions.

``thesaurus.txt`` has synonyms, "bins" for "rubbish": a section has groups of one kind of words, a line each, and the
items of a group have the same form, so that one may replace another in a sentence. ``families.txt`` has words of one
root, "arrival" for "arrive". ``related.txt`` has words that tell of what a word asks for, "height" for "tall"; they are
searched, but are no synonyms. Words of other languages have none here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

from clara_core.retrieval.words import question_words, words_of

Group = tuple[str, ...]

THESAURUS: Final = Path(__file__).with_name("thesaurus.txt")
_FAMILIES: Final = Path(__file__).with_name("families.txt")
_RELATED: Final = Path(__file__).with_name("related.txt")
# Weights in a search, measured: docs/retrieval.md.
_SYNONYM: Final = 0.5
_SMALL_WORD: Final = 0.5
_LONGEST: Final = 4  # words of a phrase that is looked up
_WORD: Final = re.compile(r"[\w'-]+")
# Words that mean nothing by themselves.
_SMALL: Final = frozenset(words_of(
    "a about an and are as at be been by can could did do does down for from get go had has have he i if in into is it "
    "its may me must my no not of off on one or our out over she should so that the their them there they this to up "
    "us was we were will with would you your"
))  # fmt: skip


def read_thesaurus(path: Path = THESAURUS) -> list[list[Group]]:
    """The groups of each section of a file; lines that begin with ``#`` begin one.

    Raises:
        ValueError: A line is no group of at least two items.
    """
    sections: list[list[Group]] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            sections.append([])
            continue
        group = tuple(item.strip() for item in line.split(","))
        if len(group) < 2 or not all(group):
            raise ValueError(f"{path}:{number}: expected at least two items, separated by commas, got {line!r}")
        sections[-1].append(group)
    return [section for section in sections if section]


def search_terms(question: str) -> dict[str, float]:
    """The words to search for, by weight.

    Those of a question weigh 1, its small words less unless it has no others, and synonyms and related words less.
    """
    words = question_words(question)
    telling = not _SMALL.issuperset(words)
    own = {word: _SMALL_WORD if telling and word in _SMALL else 1.0 for word in words}
    related = chain.from_iterable(_related().get(word, ()) for word in words)
    return own | {word: _SYNONYM for word in chain(synonyms(question), related) if word not in own}


def synonyms(question: str) -> dict[str, frozenset[str]]:
    """Words that may stand for words of a question: for each of them those words, all without their endings."""
    said, asked = _WORD.findall(question.lower()), frozenset(question_words(question)) - _SMALL
    phrases = (" ".join(said[at : at + words]) for at in range(len(said)) for words in range(1, _LONGEST + 1))
    groups, found = _groups(), defaultdict[str, set[str]](set)
    for phrase in dict.fromkeys(phrase for phrase in phrases if phrase in groups):
        meant = asked.intersection(words_of(phrase))
        for group in groups[phrase] if meant else ():
            for word in sorted(_single_words(group) - asked):
                found[word] |= meant
    for word in asked & _families().keys():
        for other in _families()[word] - asked:
            found[other].add(word)
    return {word: frozenset(meant) for word, meant in found.items()}


def _single_words(group: Group) -> set[str]:
    """The words of a group's items that have one telling word: "open" of "is open"."""
    telling = [set(words_of(item)) - _SMALL for item in group]
    return {word for words in telling if len(words) == 1 for word in words}


@cache
def _groups() -> dict[str, Sequence[Group]]:
    """The groups of each item."""
    found: dict[str, list[Group]] = defaultdict(list)
    for section in read_thesaurus():
        for group in section:
            for item in group:
                found[item].append(group)
    return dict(found)


@cache
def _families() -> dict[str, frozenset[str]]:
    """The other words of each word's family, all without their endings."""
    found: dict[str, frozenset[str]] = {}
    for group in read_thesaurus(_FAMILIES)[0]:
        stems = frozenset(words_of(" ".join(group)))
        for stem in stems:
            found[stem] = found.get(stem, frozenset()) | (stems - {stem})
    return found


@cache
def _related() -> dict[str, tuple[str, ...]]:
    """The words that tell of what a word asks for, all without their endings."""
    lines = (line.partition(":") for line in _RELATED.read_text(encoding="utf-8").splitlines()[1:])
    return {words_of(asked)[0]: tuple(words_of(telling)) for asked, _, telling in lines}
