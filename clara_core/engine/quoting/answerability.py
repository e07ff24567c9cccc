"""Which of some documents holds the answer to a question: the one with the best place at which an answer can begin.

The best place by the learned hints tells more of a document than how similar it is to the question: a document with the
words of the question may hold no answer of the right kind. The sizes were chosen in docs/retrieval.md. Runs no model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

import torch

from clara_core.engine.quotes import split_sentences
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.shared_words import meanings
from clara_core.retrieval.words import words_of

_TEMPERATURE: Final = 2.0  # nats; the places of different documents differ more than their chances
_LONGEST: Final = 500  # characters of a document that are read, the sentences that share most with the question
_PIECE: Final = 250  # characters; longer sentences are cut
_SCANNED: Final = 20_000  # characters of a document that are searched for them


def answer_shares(question: str, texts: Sequence[str]) -> list[float]:
    """The probability of each text to hold the answer to a question, if one of them does; they add up to 1."""
    wanted = meanings(question)
    hints = LearnedHints(question, [_excerpt(wanted, text) for text in texts])
    best = [hints.best_of(document) for document in range(len(texts))]
    shares: list[float] = (torch.tensor(best, dtype=torch.float64) / _TEMPERATURE).softmax(0).tolist()
    return shares


def _excerpt(wanted: Mapping[str, frozenset[str]], text: str) -> str:
    """A short text itself, or of a long one the sentences with most words of the question, in their order."""
    if len(text) <= _LONGEST:
        return text

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
