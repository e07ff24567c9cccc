"""Which of some documents holds the answer to a question: the one with the best place at which an answer can begin.

The best place by the learned hints tells more of a document than how similar it is to the question: a document with the
words of the question may hold no answer of the right kind. The sizes were chosen in docs/retrieval.md. Runs no model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import chain
from math import exp
from typing import Final

from clara_core.engine.quotes import split_sentences
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.retrieval.thesaurus import synonyms
from clara_core.retrieval.words import question_words, words_of

_TEMPERATURE: Final = 2.0  # nats; the places of different documents differ more than their chances
_LONGEST: Final = 500  # characters of a document that are read, the sentences that share most with the question
_PIECE: Final = 250  # characters; longer sentences are cut
_SCANNED: Final = 20_000  # characters of a document that are searched for them


def answer_shares(question: str, texts: Sequence[str]) -> list[float]:
    """The probability of each text to hold the answer to a question, if one of them does; they add up to 1."""
    excerpts = [_excerpt(question, text) for text in texts]
    hints = LearnedHints(question, excerpts)
    best = [hints.best_of(document) / _TEMPERATURE for document in range(len(texts))]
    most = max(best, default=0.0)
    shares = [exp(one - most) for one in best]
    return [share / sum(shares) for share in shares]


def _excerpt(question: str, text: str) -> str:
    """A short text itself, or of a long one the sentences with most words of the question, in their order."""
    if len(text) <= _LONGEST:
        return text
    wanted = {word: frozenset([word]) for word in question_words(question)} | synonyms(question)

    def shared(piece: str) -> int:
        return len(set(chain.from_iterable(wanted.get(word, ()) for word in words_of(piece))))

    scanned = text[:_SCANNED]
    sentences = (scanned[start:end] for start, end in split_sentences(scanned))
    pieces = list(chain.from_iterable(textwrap.wrap(sentence, _PIECE) for sentence in sentences))
    kept: list[int] = []
    room = _LONGEST
    for at in sorted(range(len(pieces)), key=lambda at: -shared(pieces[at])):
        if len(pieces[at]) > room:
            break
        kept.append(at)
        room -= len(pieces[at])
    return " ".join(pieces[at] for at in sorted(kept))
