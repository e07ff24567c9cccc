"""What stands at a place of a document and around it: features that tell whether an answer to a question begins there.

They are names with values, read by a log-linear model (`clara_core.engine.learned_hints`). Runs no neural model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from clara_core.engine.answer_kinds import YES_OR_NO, AnswerKind
from clara_core.engine.quotes import split_sentences
from clara_core.engine.shared_words import MOST, SharedWords
from clara_core.retrieval.words import place_spans, question_words, words_of

Feature = tuple[str, float]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_FUNCTION: Final = _set(
    "a an the my your his her its our their i he she it we they you this that these those in on at by for from to "
    "with of into onto under over behind between near above below inside outside opposite next across along around "
    "through past off until till since before after during about every each all both no not only never always "
    "because so due as if when while which who whose that where and or but is are was were be been has have had do "
    "does did can could may might must shall will would should than then there up out"
)
_NUMERALS: Final = _set(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety half twice once"
)
_PREPOSITIONS: Final = _set(
    "in at on by for from to with of into under behind near about until since before after through"
)
_ASKING: Final = _set("what how which who whose whom when where why")
_CLOCK: Final = re.compile(r"\d{1,2}[:.]\d\d")
_YEAR: Final = re.compile(r"(?:1\d|20)\d\d")
_DIGITS: Final = re.compile(r"[\d.,]+")
_WORD: Final = re.compile(r"[\w']+")
_STOP: Final = re.compile(r"[.;!?]")
_FAR: Final = 5  # words; the nearest word of the question is not looked for farther away
_SKIPPED: Final = 4  # small words between a word of the question and the answer that follows it


@dataclass(frozen=True, slots=True)
class _Document:
    """The words of a document, with punctuation marks as words."""

    text: str
    spans: list[tuple[int, int]]
    sentences: frozenset[int]  # where they begin
    repeated: list[bool]  # which words are telling words of the question
    classes: list[str]
    at: dict[int, int]  # the index of each word by its first character


class PlaceFeatures:
    """The features of each place of some documents, and of the answers that are no quotation.

    Args:
        question: The question.
        texts: The documents.
        kind: The kind of its answer.
        shared: Its words in the documents.
    """

    def __init__(self, question: str, texts: Sequence[str], kind: AnswerKind | None, shared: SharedWords) -> None:
        self._kind, self._shared, self._question = kind, shared, question
        said = _WORD.findall(question.lower())
        asking = next((at for at, word in enumerate(said) if word in _ASKING), None)
        self.sort = _sort(kind, said)
        # The preposition of "from where" and of "where from".
        self._leading = said[asking - 1] if asking and said[asking - 1] in _PREPOSITIONS else ""
        self._trailing = said[-1] if said and said[-1] in _PREPOSITIONS else ""
        self._documents = [self._read(text) for text in texts]

    def _read(self, text: str) -> _Document:
        spans = place_spans(text)
        sentences = frozenset(start for start, _ in split_sentences(text))
        words = [text[start:end] for start, end in spans]
        repeated = [word.lower() not in _FUNCTION and self._shared.repeats(word) for word in words]
        classes = [word_class(word, begins=start in sentences) for word, (start, _) in zip(words, spans, strict=True)]
        return _Document(text, spans, sentences, repeated, classes, {start: at for at, (start, _) in enumerate(spans)})

    def of(self, document: int, start: int) -> Iterator[Feature]:
        """The features of a place, the first character of a word."""
        read = self._documents[document]
        at = read.at[start]
        spans, repeated, text, kind = read.spans, read.repeated, read.text, self._kind
        yield "share", self._shared.gain(document, start) / MOST
        if kind is not None and (kind.repeats or not repeated[at]) and kind.fits.match(text, start):
            yield "fits", 1.0
        if repeated[at]:
            yield "repeats", 1.0
        yield f"word:{read.classes[at]}", 1.0
        yield f"before:{self._before(read, at)}", 1.0
        yield f"after:{self._class(read, at + 1)}", 1.0
        if self._follows(read, at):
            yield "follows", 1.0
        yield f"left:{next((n for n in range(1, _FAR) if at >= n and repeated[at - n]), _FAR)}", 1.0
        yield f"right:{next((n for n in range(1, _FAR) if at + n < len(spans) and repeated[at + n]), _FAR)}", 1.0
        previous = text[slice(*spans[at - 1])].lower() if at else ""
        for name, preposition in (("leading", self._leading), ("trailing", self._trailing)):
            if preposition and preposition == previous:
                yield f"{name}:before", 1.0
            if preposition and preposition == text[slice(*spans[at])].lower():
                yield f"{name}:here", 1.0
        if start in read.sentences:
            yield "sentence", 1.0
        if at and start == spans[at - 1][1] + 1 and previous[-1:].isdigit():
            yield "cut", 1.0
        if len(self._documents) > 1:
            yield f"document:{min(document, _FAR)}", 1.0

    def _class(self, read: _Document, at: int) -> str:
        if at == len(read.spans):
            return "end"
        return "asked" if read.repeated[at] else read.classes[at]

    def _before(self, read: _Document, at: int) -> str:
        if at == 0:
            return "start"
        return "line" if "\n" in read.text[read.spans[at - 1][1] : read.spans[at][0]] else self._class(read, at - 1)

    def _follows(self, read: _Document, at: int) -> bool:
        """Whether the last telling word before a place, in the same sentence, is one of the question's."""
        before = at - 1
        while before >= max(0, at - _SKIPPED) and read.text[slice(*read.spans[before])].lower() in _FUNCTION:
            before -= 1
        if before < 0 or not read.repeated[before]:
            return False
        return _STOP.search(read.text, read.spans[before][1], read.spans[at][0]) is None

    def of_refusal(self) -> Iterator[Feature]:
        """The features of the refusal."""
        texts = [read.text for read in self._documents]
        known = {word for text in texts for word in words_of(text)}
        asked = set(question_words(self._question))
        missing = asked - known
        share = self._shared.best / MOST
        yield "refusal", 1.0
        yield "refusal:unknown", 1 - share
        yield "refusal:unknown twice", (1 - share) ** 2
        yield "refusal:missing", len(missing) / max(1, len(asked))
        yield "refusal:all there", float(not missing)
        yield f"refusal:words {min(len(asked), 4)}", 1.0
        if len(texts) > 1:
            yield "refusal:documents", 1.0
        if self._kind is not None and not self._somewhere():
            yield "refusal:no such words", 1.0
        everything = " ".join(texts).lower()
        if any(word[0].isupper() and word.lower() not in everything for word in _WORD.findall(self._question)[1:]):
            yield "refusal:name", 1.0

    def _somewhere(self) -> bool:
        """Whether some words look like an answer of this kind."""
        kind = self._kind
        return kind is not None and any(
            kind.fits.match(read.text, start) for read in self._documents for start, _ in read.spans
        )

    def of_yes_or_no(self, answer: str) -> Iterator[Feature]:
        """The features of "Yes" and "No"."""
        if self._kind is YES_OR_NO:
            yield "yes or no", 1.0
            yield "yes or no:share", self._shared.best / MOST
            yield f"yes or no:{answer.lower()}", 1.0
        else:
            yield "no yes or no", 1.0


def _sort(kind: AnswerKind | None, said: Sequence[str]) -> str:
    """The sort of a question: the kind of its answer, or its first small words."""
    if kind is None:
        return " ".join([word for word in said if word in _FUNCTION or word in _ASKING][:2]) or "keywords"
    return "thing" if kind.is_thing else kind.name


def word_class(word: str, *, begins: bool) -> str:
    """The class of a word: a function word or a mark is its own, other words are classed by their form.

    Args:
        word: The word, or a punctuation mark.
        begins: Whether it begins a sentence, so that a capital tells nothing.
    """
    lower = word.lower()
    if lower in _FUNCTION:
        return lower
    if not word[0].isalnum():
        return word[0]
    if _CLOCK.fullmatch(word):
        return "#clock"
    if _YEAR.fullmatch(word):
        return "#year"
    if _DIGITS.fullmatch(word):
        return "#number"
    if any(char.isdigit() for char in word):
        return "#code"
    if lower in _NUMERALS:
        return "#numeral"
    if word[0].isupper():
        return "#capitals" if len(word) > 1 and word.isupper() else "#first" if begins else "#name"
    return next((f"#{ending}" for ending in ("ing", "ed", "ly") if lower.endswith(ending)), "#word")
