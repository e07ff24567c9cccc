"""Questions in other words than their passage, by the package's thesaurus.

People ask "when do we put the bins out" where a notice says "rubbish". A small model knows only words that it has seen
side by side.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from clara_core.retrieval.thesaurus import Group

_WORD = re.compile(r"[\w'-]+")
_FIRST_PERSON = re.compile(r"\b[Ii]\b")
_ARTICLE = re.compile(r"\b([Aa])n? $")
_REPLACED = 0.6  # share of the known words and phrases of a question that are replaced


class Rewording:
    """Replaces words and phrases of questions by others of their groups."""

    def __init__(self, sections: Sequence[Sequence[Group]]) -> None:
        self.others: dict[str, list[str]] = {}
        sections_of: dict[str, int] = {}
        for number, section in enumerate(sections):
            for group in section:
                for item in group:
                    if sections_of.setdefault(item, number) != number:
                        self.others[item] = []  # a verb that is a noun, too
                    # The first group of an item counts: "how many days" may be "how long", but not the reverse.
                    self.others.setdefault(item, [other for other in group if other != item])
        self.longest = max((len(_WORD.findall(item)) for item in self.others), default=0)

    def __call__(self, rng: random.Random, question: str) -> str:
        """A question with some of its words replaced; names, which have capitals, stay."""
        words = list(_WORD.finditer(question))
        said, at, end = "", 0, 0
        while at < len(words):
            for count in range(min(self.longest, len(words) - at), 0, -1):
                start, stop = words[at].start(), words[at + count - 1].end()
                phrase = question[start:stop]
                plain = phrase[:1].lower() + phrase[1:] if start == 0 else phrase
                others = self.others.get(_FIRST_PERSON.sub("i", plain))
                if others:
                    if rng.random() < _REPLACED:
                        other = _FIRST_PERSON.sub("I", rng.choice(others))
                        other = other[:1].upper() + other[1:] if phrase[0].isupper() else other
                        said, end = _fitted(said + question[end:start], other) + other, stop
                    at += count
                    break
            else:
                at += 1
        return said + question[end:]


def _fitted(before: str, word: str) -> str:
    """A text whose article at the end, if there is one, fits the next word."""
    return _ARTICLE.sub(r"\1n " if word[0] in "aeiou" else r"\1 ", before)
