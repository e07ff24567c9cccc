"""What the words of a question tell about its answer: where in the documents it stands, and what it looks like.

The hints are gains in nats, which a verbatim answer adds to the log-probability of a quotation; the model decides among
what they leave open. Their sizes were chosen on questions typed by hand (docs/trust.md). Runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from clara_core.engine.answer_kinds import YES_OR_NO, kind_of
from clara_core.engine.shared_words import SharedWords
from clara_core.engine.verbatim import REFUSAL

_KIND: Final = 4.0  # a quotation that looks like an answer to this kind of question
_REPEATED: Final = -2.0  # one that begins with a word of the question
_CUT: Final = -3.0  # one that begins behind a number, as with the unit of a quantity or the month of a date
_REFUSAL: Final = 3.0  # places that share little with the question lose to it
_YES_OR_NO: Final = 1.0  # more than the best place, if the question can be answered so
# Words that end no answer.
_GO_ON: Final = frozenset(("a", "an", "and", "its", "my", "of", "or", "our", "the", "their", "your"))


class Hints:
    """The hints for one question and its documents.

    Args:
        question: The question.
        texts: The documents.
        weight: Factor of all gains.
    """

    def __init__(self, question: str, texts: Sequence[str], weight: float = 1.0) -> None:
        self._texts, self._weight = texts, weight
        self._shared = SharedWords(question, texts)
        self._kind = kind_of(question)

    def gain(self, document: int, start: int, word: str) -> float:
        """How much more probable a quotation is that begins with this word at this character, in nats."""
        text, repeats = self._texts[document], self._shared.repeats(word)
        gain = self._shared.gain(document, start)
        if repeats:
            gain += _REPEATED
        if start > 1 and text[start - 1] == " " and text[start - 2].isdigit():
            gain += _CUT
        if self._kind is not None and (self._kind.repeats or not repeats) and self._kind.fits.match(text, start):
            gain += _KIND
        return self._weight * gain

    def other(self, answer: str) -> float:
        """How much more probable an answer is that is no quotation, in nats."""
        gain = 0.0
        if answer == REFUSAL:
            gain = _REFUSAL + _KIND * (0.0 if self._kind is None else self._kind.needed)
        elif self._kind is YES_OR_NO:
            gain = self._shared.best + _YES_OR_NO
        return self._weight * gain

    @staticmethod
    def may_end(word: str) -> bool:
        """Whether a quotation may end with this word."""
        return word not in _GO_ON
