"""Answers in the words of their documents: which tokens may come next so that an answer quotes a text letter by letter.

A quotation begins and ends between words; where, and how long it is, the model decides, with the help of hints from the
question if these are given. "Yes", "No" and the refusal that the bundled model was trained on are allowed, too.
Characters are those of the tokenizer, which may normalize a text. Runs no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from clara_core.retrieval.words import word_spans

if TYPE_CHECKING:
    from clara_core.engine.quoting.hints import Hints
    from clara_core.model.tokenizer import ClaraTokenizer

REFUSAL: Final = "The documents do not say."
"""What the bundled model answers if its documents do not hold the answer."""
OTHER_ANSWERS: Final = ("Yes", "No", "yes", "no", REFUSAL)
_NONE: Final = -1  # in the place of a token: a quotation cannot go on


class Place(NamedTuple):
    """Where a quotation goes on.

    Attributes:
        at: The place of its next token.
        gain: What it gains by beginning where it began.
        document: The number of its document; -1 for an answer that is no quotation.
        start: The character of the document at which it began.
    """

    at: int
    gain: float
    document: int = -1
    start: int = 0


def may_begin(text: str, start: int) -> bool:
    """Whether a quotation may begin at a word: not at a bracket or a stop after another."""
    return start == 0 or text[start - 1].isspace() or text[start].isalnum()


class Quotation:
    """The state of one answer that quotes; `feed` each token of it.

    After a space, a word may have other tokens than at the beginning of an answer. So the first word of a quotation is
    encoded by itself, and followed by the tokens of the text.

    Args:
        texts: The documents.
        tokenizer: Tokenizer of the checkpoint.
        hints: What the question tells about its answer; None: the model decides alone.
    """

    def __init__(self, texts: Iterable[str], tokenizer: ClaraTokenizer, hints: Hints | None = None) -> None:
        self._ids: list[int] = [_NONE]  # tokens of all texts, with `_NONE` after each
        self._word_ends: list[int | None] = [0]  # the character at which a word ends before each of them
        self._next: list[Place] = []  # of the tokens that may come next
        self._hints = hints
        # Of the tokens after each word, and of what ends one of the other answers.
        places = {answer: [Place(0, hints.other(answer) if hints else 0.0)] for answer in OTHER_ANSWERS}
        for number, text in enumerate(texts):
            self._add(number, text, tokenizer, places, hints)
        words = [ids for ids, _ in tokenizer.encode_spans(list(places))]
        special = tokenizer.token_bytes.special  # a character that the vocabulary lacks cannot be quoted
        ends = False  # whether a quotation that reaches the place after can end somewhere
        for place in reversed(range(len(self._ids))):
            if self._ids[place] in special or not ends:
                self._ids[place] = _NONE
            ends = self._is_live(place)
        live = [[one for one in after if self._is_live(one.at)] for after in places.values()]
        self._first = [
            (ids, after) for ids, after in zip(words, live, strict=True) if ids and after and special.isdisjoint(ids)
        ]
        self._written = 0

    def _add(
        self,
        number: int,
        text: str,
        tokenizer: ClaraTokenizer,
        places: dict[str, list[Place]],
        hints: Hints | None,
    ) -> None:
        [(ids, spans)] = tokenizer.encode_spans([text])
        words = word_spans(text)
        word_ends = {end for _, end in words}
        open_ends = {end for start, end in words if hints and not hints.may_end(text, start, end)}
        base = len(self._ids)
        # A character of several tokens has the same span in each: no word ends between them.
        ends = [a != b and a[1] in word_ends and a[1] <= b[0] for a, b in pairwise(spans)]
        ends = [False, *ends, spans[-1][1] in word_ends] if ids else [False]
        self._ids += [*ids, _NONE]
        for at, ended in enumerate(ends):
            end = spans[at - 1][1] if ended else None
            self._word_ends.append(None if end in open_ends else end)
        after = {spans[at - 1][1]: base + at for at, ended in enumerate(ends) if ended}
        begins = {span[0]: base + at for at, span in reversed(list(enumerate(spans)))}
        for start, end in words:
            spaced = start > 0 and text[start - 1].isspace()
            if not may_begin(text, start):
                continue
            word = text[start:end]
            gain = hints.gain(number, start, word) if hints else 0.0
            # A word in the middle of a token can be quoted alone, but not what comes after it.
            places.setdefault(word, []).append(Place(after.get(end, 0), gain, number, start))
            if not spaced and start in begins:
                self._next.append(Place(begins[start], gain, number, start))  # several words may be one token

    def _is_live(self, place: int) -> bool:
        """Whether a quotation that has come to this place can end or go on."""
        return self._word_ends[place] is not None or self._ids[place] != _NONE

    def feed(self, token: int) -> None:
        """Go on to the tokens after this one."""
        self._next = [one._replace(at=one.at + 1) for one in self._next if self._ids[one.at] == token]
        self._first = [
            (ids, after) for ids, after in self._first if len(ids) > self._written and ids[self._written] == token
        ]
        self._written += 1
        self._next += [place for ids, after in self._first if len(ids) == self._written for place in after]

    def _gain_of_end(self, place: Place) -> float:
        """How much more probable it is that a quotation ends at a place than that it goes on, in nats."""
        end = self._word_ends[place.at]
        if self._hints is None or place.document < 0 or not end:
            return 0.0
        return self._hints.gain_of_end(place.document, place.start, end)

    def allowed(self, ends: Collection[int]) -> Mapping[int, float]:
        """The tokens that may come next, each with the gain of the best quotation that begins so; the best has 0.

        Along a quotation these gains add up to what its place gains less than the best place, but for what ends gain.

        Args:
            ends: The tokens that end an answer.
        """
        gains: dict[int, float] = {}

        def add(token: int, gain: float) -> None:
            gains[token] = max(gain, gains.get(token, -inf))

        for ids, after in self._first:
            if len(ids) > self._written:
                add(ids[self._written], max(one.gain for one in after))
        for one in self._next:
            if self._ids[one.at] != _NONE:
                add(self._ids[one.at], one.gain)
            if self._written and self._word_ends[one.at] is not None:
                gain = one.gain + self._gain_of_end(one)
                for end in ends:
                    add(end, gain)
        best = max(gains.values(), default=0.0)
        return {token: gains[token] - best for token in sorted(gains)}
