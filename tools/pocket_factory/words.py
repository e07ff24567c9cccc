"""Rows of unrelated words, which a model can only know by reading them, and keywords of a text as search queries."""

from __future__ import annotations

import random
import re

from tools.pocket_factory.frames import Made, upper
from tools.pocket_factory.prose import STOP, Prose
from tools.pocket_factory.values import Pools

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_VALUES = ("person", "place", "clock", "date", "money", "code", "int", "phone", "product", "year", "length", "duration")
_FOLLOWING = (4, 14)  # words
_FEWEST = 2  # words of a search
_SHORT = 2  # letters of a word that carries little meaning
_OPENINGS = (
    "Where is the", "What is the", "When does the", "Who", "How many", "How much", "How long does the", "Which",
    "Why was the", "When was the", "Where does the", "What does the", "Who has the", "Is the", "What", "Can I", "How",
)  # fmt: skip
_OF_TEXT = 40_000  # passages from which words are collected


class Words:
    """Draws rows of words, names and values; rare words are as frequent as common ones, to train all pieces."""

    def __init__(self, pools: Pools, prose: Prose) -> None:
        self.pools = pools
        found: dict[str, None] = {}
        for text in prose.texts["descriptions"][:_OF_TEXT] + prose.texts["examples"]:
            found |= dict.fromkeys(_WORD.findall(text))
        self.words = list(found)

    def make(self, rng: random.Random) -> Made:
        """A row of three to fourteen words, with questions for the word before or after another one."""
        names = self.pools.lists
        items: list[str] = []
        for _ in range(rng.randint(3, 14)):
            x = rng.random()
            if x < 0.45:
                items.append(rng.choice(self.words))
            elif x < 0.6:
                items.append(
                    rng.choice(names["cities"] if x < 0.5 else names["family"] if x < 0.55 else names["given"])
                )
            else:
                items.append(self.pools.draw(rng, rng.choice(_VALUES)))
        items = list(dict.fromkeys(items))
        mark = rng.choice((" ", ", ", ", ", "; ", " / ", "\n"))
        asked = []
        for _ in range(2):
            at = rng.randrange(1, len(items)) if len(items) > 1 else 0
            if at:
                asked += [
                    (f"What comes after {items[at - 1]}?", items[at]),
                    (f"What comes before {items[at]}?", items[at - 1]),
                ]
        return Made("", upper(mark.join(items)), asked, [], "words")


def go_on(rng: random.Random, text: str) -> tuple[str, str] | None:
    """A question for the up to fourteen words after some words of a text; None if it has no clear answer."""
    words = rng.choice(text.splitlines()).split()
    count = rng.choice((2, 3, 4))
    if len(words) < count + _FOLLOWING[0]:
        return None
    start = rng.randrange(len(words) - count - _FOLLOWING[0] + 1)
    given = " ".join(words[start : start + count])
    rest = words[start + count : start + count + rng.randint(*_FOLLOWING)]
    return (f'Go on from "{given}"', " ".join(rest)) if text.count(given) == 1 else None


def content(text: str) -> list[str]:
    """The content words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text) if word.lower() not in STOP and len(word) > _SHORT]


def keywords(rng: random.Random, text: str) -> str | None:
    """Two to five content words of a text; None if it has too few.

    Half of these queries have common words only, some have other word forms, and some begin like a question.
    """
    found = list(dict.fromkeys(re.findall(r"[\w.:/-]*\w", text)))
    telling = [word for word in found if word.lower() not in STOP and len(word) > _SHORT]
    common = [word for word in telling if word.isalpha() and word.islower()]
    if len(common) > _FEWEST and rng.random() < 0.6:
        telling = common
    if len(telling) < _FEWEST + 1:
        return None
    start = rng.randrange(len(telling))
    near = telling[max(0, start - 4) : start + 5]
    few = rng.sample(near, min(len(near), rng.choice((2, 2, 3, 3, 4, 5))))
    if rng.random() < 0.7:
        few.sort(key=telling.index)
    few = [other_form(rng, word) if rng.random() < 0.25 else word for word in few]
    said = " ".join(few)
    if rng.random() < 0.45:
        said = f"{rng.choice(_OPENINGS)} {said}?"
    return said.lower() if rng.random() < 0.4 else said


def other_form(rng: random.Random, word: str) -> str:
    """A word with another ending: "boat" for "boats", "walks" for "walked"."""
    if not (word.isalpha() and word.islower() and len(word) > _SHORT + 1):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + _SHORT:
            return word.removesuffix(ending) + rng.choice(("", "s", "ed", "ing"))
    return word + rng.choice(("s", "ed", "ing"))
