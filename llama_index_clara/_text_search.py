"""Search by words: BM25 (Robertson and Zaragoza, 2009) over texts that come and go."""

from __future__ import annotations

import math
import re
from collections import Counter

_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75


class TextSearch:
    """An inverted index. Whoever holds it sees to it that nobody writes while somebody reads."""

    def __init__(self) -> None:
        self._postings: dict[str, dict[str, int]] = {}
        self._terms: dict[str, Counter[str]] = {}
        self._total = 0

    def put(self, id_: str, text: str) -> None:
        """Index a text under an id, instead of what was there."""
        self.remove(id_)
        terms = Counter(_WORD.findall(text.casefold()))
        self._terms[id_] = terms
        self._total += terms.total()
        for term, count in terms.items():
            self._postings.setdefault(term, {})[id_] = count

    def remove(self, id_: str) -> None:
        """Forget a text; an unknown id is nothing to do."""
        terms = self._terms.pop(id_, Counter())
        self._total -= terms.total()
        for term in terms:
            del self._postings[term][id_]
            if not self._postings[term]:
                del self._postings[term]

    def search(self, question: str, allowed: set[str] | None, k: int) -> list[tuple[str, float]]:
        """The ids of texts that share a word with the question, best first, with their scores (above 0)."""
        scores: dict[str, float] = {}
        mean = self._total / len(self._terms) if self._terms else 0.0
        for term in dict.fromkeys(_WORD.findall(question.casefold())):
            found = self._postings.get(term, {})
            weight = math.log(1 + (len(self._terms) - len(found) + 0.5) / (len(found) + 0.5))
            for id_, count in found.items():
                if allowed is None or id_ in allowed:
                    damped = count + _K1 * (1 - _B + _B * self._terms[id_].total() / mean)
                    scores[id_] = scores.get(id_, 0.0) + weight * count * (_K1 + 1) / damped
        return sorted(scores.items(), key=lambda pair: -pair[1])[:k]
