"""Which of some documents holds the answer to a question.

A document with the words of a question may hold no answer of the right kind. A few numbers tell more: how good the
places are at which an answer could begin, by the learned hints, how many words and pairs of words of the question the
document has, and whether it has the names, not just in longer ones ("Kallor" in "New Kallor"). Their weights were
fitted by ``tools/pocket_factory/answerability.py``. Runs no model.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from clara_core.engine.quotes import split_sentences
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.names import asked_names, names_of
from clara_core.engine.quoting.shared_words import meanings
from clara_core.retrieval.words import words_of

WEIGHTS: Final = Path(__file__).with_name("answerability.json")
"""The weights of `text_features`, for each sort of questions; "" is all others."""

_LONGEST: Final = 500  # characters of a document that are read, the sentences that share most with the question
_PIECE: Final = 250  # characters; longer sentences are cut
_SCANNED: Final = 20_000  # characters of a document that are searched for them


def answer_shares(question: str, texts: Sequence[str], relevances: Sequence[tuple[float, float]]) -> list[float]:
    """The probability of each text to hold the answer to a question, if one of them does; they add up to 1.

    Args:
        question: The question.
        texts: The texts.
        relevances: How well a search by memory, and one by words, found each, in [0, 1].
    """
    if not texts:
        return []
    sort, features = text_features(question, texts, relevances)
    known = _weights()
    shares: list[float] = (features @ known.get(sort, known[""])).softmax(0).tolist()
    return shares


def text_features(question: str, texts: Sequence[str], relevances: Sequence[tuple[float, float]]) -> tuple[str, Tensor]:
    """The sort of a question, and features of its texts, ``[texts, features]``.

    They are both relevances, those of the hints, and the share of the question's names.
    """
    wanted, names = meanings(question), asked_names(question)
    read = [_excerpt(wanted, text) for text in texts]
    hints = LearnedHints(question, read)
    rows = [
        [*own, *hints.features_of_text(at), len(names & names_of(read[at])) / len(names) if names else 1.0]
        for at, own in enumerate(relevances)
    ]
    return hints.sort, torch.tensor(rows, dtype=torch.float64)


@cache
def _weights() -> dict[str, Tensor]:
    known = json.loads(WEIGHTS.read_text("utf-8"))
    return {sort: torch.tensor(weights, dtype=torch.float64) for sort, weights in known.items()}


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
