"""Where in its documents the words of a question stand: evidence for the place at which a quotation begins.

A small generator often quotes the right kind of words from the wrong sentence. What surrounds an answer usually repeats
words of the question or has synonyms of them, and the answer itself does not. Runs no model.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Final

from clara_core.engine.quotes import split_sentences
from clara_core.retrieval.thesaurus import synonyms
from clara_core.retrieval.words import question_words, words_of

# Nats that a place gains if all words of the question stand in its clause, its sentence and its passage. Chosen on
# questions typed by hand: docs/trust.md.
_CLAUSE: Final = 3.0
_SENTENCE: Final = 2.0
_PASSAGE: Final = 6.0
MOST: Final = _CLAUSE + _SENTENCE + _PASSAGE
_NEIGHBOURS: Final = 3  # a passage is a sentence with so many before it and after it
_RARITY: Final = 0.7  # a word that stands in n clauses counts n ** -_RARITY
CLAUSE_END: Final = re.compile(r"[,;:]+(?=\s)|[，；：、]|\n")  # noqa: RUF001 - full-width marks are meant


def meanings(question: str) -> dict[str, frozenset[str]]:
    """The words that may stand for words of a question, these among them: for each the words that it means."""
    return {word: frozenset([word]) for word in question_words(question)} | synonyms(question)


class SharedWords:
    """The words that a question shares with each place of its documents.

    Args:
        question: The question; its "what", "how many" and the like do not count, nor do English endings. A synonym of a
            word counts as the word.
        texts: The documents.
    """

    def __init__(self, question: str, texts: Sequence[str]) -> None:
        self._asked = frozenset(question_words(question))
        self._meant = meanings(question)
        self._repeats: dict[str, bool] = {}  # whether a word is one of the question's
        self._meant_by: dict[str, frozenset[str]] = {}  # the words of the question that a word means
        self._starts: list[list[int]] = []  # for each document where its clauses begin
        self._gains: list[list[float]] = []  # for each document the gains of its clauses
        self._shares: list[float] = []  # of the question's words, for each document
        documents = [[self._clauses(text, *span) for span in split_sentences(text)] for text in texts]
        everywhere = (own for document in documents for sentence in document for _, own in sentence)
        clauses = Counter(chain.from_iterable(everywhere))
        rarity: dict[str, float] = {word: max(clauses[word], 1) ** -_RARITY for word in self._asked}
        total = sum(rarity.values()) or 1.0

        def share(shared: Iterable[frozenset[str]]) -> float:
            return sum(rarity[word] for word in frozenset().union(*shared)) / total

        for document in documents:
            sentences = [frozenset[str]().union(*(own for _, own in sentence)) for sentence in document]
            gains: dict[int, float] = {}
            for at, sentence in enumerate(document):
                passage = share(sentences[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1])
                around = _PASSAGE * passage + _SENTENCE * share([sentences[at]])
                gains |= {start: around + _CLAUSE * share([own]) for start, own in sentence}
            self._shares.append(share(sentences))
            self._starts.append(list(gains))
            self._gains.append(list(gains.values()))

    def _clauses(self, text: str, start: int, end: int) -> list[tuple[int, frozenset[str]]]:
        """Where each clause of a sentence begins, and the words of the question that stand in it."""
        cuts = [start, *(match.end() for match in CLAUSE_END.finditer(text, start, end)), end]
        return [(a, self._asked_in(text[a:b])) for a, b in pairwise(cuts)]

    def _asked_in(self, text: str) -> frozenset[str]:
        """The words of the question that a text has, or has synonyms of."""
        return frozenset(chain.from_iterable(self._meant[word] for word in words_of(text) if word in self._meant))

    def gain(self, document: int, start: int) -> float:
        """How much more probable a quotation is that begins at this character, in nats."""
        return self._gains[document][bisect_right(self._starts[document], start) - 1]

    def share(self, document: int) -> float:
        """The share of the question's words that a document has, rare ones count more; in [0, 1]."""
        return self._shares[document]

    @property
    def best(self) -> float:
        """The largest gain of a place."""
        return max(map(self.best_of, range(len(self._gains))), default=0.0)

    def best_of(self, document: int) -> float:
        """The largest gain of a place of a document."""
        return max(self._gains[document], default=0.0)

    def meant_by(self, word: str) -> frozenset[str]:
        """The words of the question that a word is, or is a synonym of."""
        if word not in self._meant_by:
            self._meant_by[word] = self._asked_in(word)
        return self._meant_by[word]

    def repeats(self, word: str) -> bool:
        """Whether a word is one of the question's."""
        if word not in self._repeats:
            self._repeats[word] = not self._asked.isdisjoint(words_of(word))
        return self._repeats[word]
