"""Words in a row that nothing but reading can foretell, and a few words of a text as people type them into a search."""

from __future__ import annotations

import random
import re

from tools.pocket_factory.frames import Made, upper
from tools.pocket_factory.prose import STOP, Prose
from tools.pocket_factory.values import Pools

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_VALUES = ("person", "place", "clock", "date", "money", "code", "int", "phone", "product", "year", "length", "duration")
_FEWEST = 2  # words of a search
_OF_TEXT = 40_000  # passages whose words are collected


class Words:
    """Draws rows of words, names and values; a rare word comes as often as a common one, so its pieces are learned."""

    def __init__(self, pools: Pools, prose: Prose) -> None:
        self.pools = pools
        found: dict[str, None] = {}
        for text in prose.texts["descriptions"][:_OF_TEXT] + prose.texts["examples"]:
            found |= dict.fromkeys(_WORD.findall(text))
        self.words = list(found)

    def make(self, rng: random.Random) -> Made:
        """A row of three to fourteen, with questions for what stands behind or before one."""
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


def keywords(rng: random.Random, text: str) -> str | None:
    """Two to five words of a text that say what it is about; None if it has too few."""
    found = list(dict.fromkeys(re.findall(r"[\w.:/-]*\w", text)))
    telling = [word for word in found if word.lower() not in STOP and len(word) > 2]
    if len(telling) < _FEWEST + 1:
        return None
    start = rng.randrange(len(telling))
    near = telling[max(0, start - 4) : start + 5]
    few = rng.sample(near, min(len(near), rng.choice((2, 3, 3, 4, 5))))
    if rng.random() < 0.7:
        few.sort(key=telling.index)
    said = " ".join(few)
    return said.lower() if rng.random() < 0.5 else said
