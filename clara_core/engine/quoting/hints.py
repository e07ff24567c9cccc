"""What the words of a question tell about its answer: where in the documents it stands, and what it looks like.

The hints are gains in nats, which a verbatim answer adds to the log-probability of a quotation; the model decides among
what they leave open. Their sizes were chosen on questions typed by hand (docs/trust.md). Runs no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from clara_core.engine.quoting.answer_kinds import NUMBER, UNIT_AFTER, YES_OR_NO, kind_of
from clara_core.engine.quoting.shared_words import MOST, SharedWords
from clara_core.engine.quoting.verbatim import REFUSAL

_KIND: Final = 4.0  # a quotation that looks like an answer to this kind of question
_FOLLOWS: Final = 3.0  # one that follows a word of the question, without regard to small words between them
_REPEATED: Final = -2.0  # one that begins with a word of the question
_CUT: Final = -3.0  # one that begins behind a number or inside of a name: with a unit, a month, a family name
_AVOIDED: Final = -4.0  # one that looks like no answer to this kind of question: a place where a person is asked for
_VAGUE: Final = -2.0  # one that begins with a pronoun, which names nobody
_REFUSAL: Final = 2.5  # places that share little with the question lose to it
_UNKNOWN: Final = 3.0  # more for the refusal if no place shares a word with the question
_YES_OR_NO: Final = 1.0  # more than the best place, if the question can be answered so
_PRONOUNS: Final = frozenset(["he", "i", "it", "she", "they", "we", "you"])
_OWN: Final = frozenset(["a", "an", "his", "its", "my", "our", "the", "their", "your"])
# Words that end no answer.
_GO_ON: Final = _OWN | {
    "and", "as", "at", "because", "but", "from", "he", "i", "if", "into", "of", "or", "she", "than", "they", "to",
    "we", "which", "who", "with",
}  # fmt: skip
# What may stand between a word of the question and the answer that follows it.
_SMALL: Final = _OWN | {
    "and", "are", "as", "at", "be", "been", "by", "for", "from", "had", "has", "have", "her", "in", "is", "of", "on",
    "or", "to", "was", "were", "with",
}  # fmt: skip
_BEFORE: Final = re.compile(r"[\w'’-]+|[.;!?]")  # noqa: RUF001 - an apostrophe of print
# A word with a capital that does not begin a sentence, or a title.
_NAME_BEFORE: Final = re.compile(r"(?:[\w,;:)]\s+[A-Z][\w'-]+|\b(?:Mr|Mrs|Ms|Dr|Miss|Frau|Herr|Professor)\.?) $")
_NEAR: Final = 40  # characters before a quotation that are read
_WORDS: Final = 4  # words among them that are read for `_FOLLOWS`


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
        within = _in_name(text, start)
        if not within and self._fits(text, start, repeats=repeats):
            gain += _KIND
        elif repeats:
            gain += _REPEATED
        if self._kind is not None and self._kind.avoids is not None and self._kind.avoids.match(text, start):
            gain += _AVOIDED
        if self._follows(text, start):
            gain += _FOLLOWS
        if start > 1 and text[start - 1] == " " and (text[start - 2].isdigit() or within):
            gain += _CUT
        if word.lower() in _PRONOUNS:
            gain += _VAGUE
        return self._weight * gain

    def _fits(self, text: str, start: int, *, repeats: bool) -> bool:
        """Whether an answer to this kind of question begins here, with a word that may repeat one of the question."""
        kind = self._kind
        return kind is not None and (kind.repeats or not repeats) and kind.fits.match(text, start) is not None

    def _follows(self, text: str, start: int) -> bool:
        """Whether the last telling word before a place, in the same sentence, is one of the question's."""
        before = _BEFORE.findall(text, max(0, start - _NEAR), start)[-_WORDS:]
        last = next((word for word in reversed(before) if word.lower() not in _SMALL), "")
        return self._shared.repeats(last)

    def other(self, answer: str) -> float:
        """How much more probable an answer is that is no quotation, in nats."""
        gain = 0.0
        if answer == REFUSAL:
            unknown = 1 - self._shared.best / MOST
            gain = _REFUSAL + _UNKNOWN * unknown**2 + _KIND * (0.0 if self._kind is None else self._kind.needed)
        elif self._kind is YES_OR_NO:
            gain = _YES_OR_NO + self._shared.best + (_FOLLOWS if self._shared.best else 0.0)
        return self._weight * gain

    def gain_of_end(self, document: int, start: int, end: int) -> float:
        """How much more probable it is that a quotation ends here than that it goes on, in nats; rules tell nothing.

        Args:
            document: The number of its document.
            start: Its first character.
            end: The end of its last word, exclusive.
        """
        return 0.0

    def may_end(self, text: str, start: int, end: int) -> bool:
        """Whether a quotation may end with the word at these characters; "two" of "two weeks" may not."""
        if text[start:end].lower() in _GO_ON:
            return False
        unit = UNIT_AFTER.match(text, end) if NUMBER.fullmatch(text, start, end) else None
        return unit is None or self._shared.repeats(unit[0])


def _in_name(text: str, start: int) -> bool:
    """Whether a word continues a name: both begin with a capital, and the one before does not begin a sentence."""
    return text[start].isupper() and _NAME_BEFORE.search(text, max(0, start - _NEAR), start) is not None
