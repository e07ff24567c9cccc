"""Answers in the words of their documents: which tokens may come next so that an answer quotes a text letter by letter.

A quotation begins and ends between words; where, and how long it is, the model decides. "Yes", "No" and the refusal
that the bundled model was trained on are allowed, too. Characters are those of the tokenizer, which may normalize a
text. Runs no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from clara_core.retrieval.words import word_spans

if TYPE_CHECKING:
    from clara_core.model.tokenizer import ClaraTokenizer

REFUSAL: Final = "The documents do not say."
"""What the bundled model answers if its documents do not hold the answer."""
OTHER_ANSWERS: Final = ("Yes", "No", "yes", "no", REFUSAL)
_NONE: Final = -1  # in the place of a token: a quotation cannot go on


class Quotation:
    """The state of one answer that quotes; `feed` each token of it.

    After a space, a word may have other tokens than at the beginning of an answer. So the first word of a quotation is
    encoded by itself, and followed by the tokens of the text.

    Args:
        texts: The documents.
        tokenizer: Tokenizer of the checkpoint.
    """

    def __init__(self, texts: Iterable[str], tokenizer: ClaraTokenizer) -> None:
        self._ids: list[int] = [_NONE]  # tokens of all texts, with `_NONE` after each
        self._word_ends: list[bool] = [True]  # whether a word ends before each of them
        self._next: list[int] = []  # places of the tokens that may come next
        places: dict[str, list[int]] = {answer: [0] for answer in OTHER_ANSWERS}  # of the tokens after each word
        for text in texts:
            self._add(text, tokenizer, places)
        words = [ids for ids, _ in tokenizer.encode_spans(list(places))]
        special = tokenizer.token_bytes.special  # a character that the vocabulary lacks cannot be quoted
        ends = False  # whether a quotation that reaches the place after can end somewhere
        for place in reversed(range(len(self._ids))):
            if self._ids[place] in special or not ends:
                self._ids[place] = _NONE
            ends = self._word_ends[place] or self._ids[place] != _NONE
        self._first = [
            (ids, after) for ids, after in zip(words, places.values(), strict=True) if ids and special.isdisjoint(ids)
        ]
        self._written = 0

    def _add(self, text: str, tokenizer: ClaraTokenizer, places: dict[str, list[int]]) -> None:
        [(ids, spans)] = tokenizer.encode_spans([text])
        words = word_spans(text)
        word_ends = {end for _, end in words}
        base = len(self._ids)
        # A character of several tokens has the same span in each: no word ends between them.
        ends = [a != b and a[1] in word_ends and a[1] <= b[0] for a, b in pairwise(spans)]
        ends = [False, *ends, spans[-1][1] in word_ends] if ids else [False]
        self._ids += [*ids, _NONE]
        self._word_ends += ends
        after = {spans[at - 1][1]: base + at for at, ended in enumerate(ends) if ended}
        begins = {span[0]: base + at for at, span in reversed(list(enumerate(spans)))}
        for start, end in words:
            spaced = start > 0 and text[start - 1].isspace()
            if not (spaced or start == 0 or text[start].isalnum()):
                continue  # a bracket or a stop after a word
            # A word in the middle of a token can be quoted alone, but not what comes after it.
            places.setdefault(text[start:end], []).append(after.get(end, 0))
            if not spaced and start in begins:
                self._next.append(begins[start])  # several words without spaces may be one token

    def feed(self, token: int) -> None:
        """Go on to the tokens after this one."""
        self._next = [place + 1 for place in self._next if self._ids[place] == token]
        self._first = [
            (ids, after) for ids, after in self._first if len(ids) > self._written and ids[self._written] == token
        ]
        self._written += 1
        self._next += [place for ids, after in self._first if len(ids) == self._written for place in after]

    def allowed(self, ends: Collection[int]) -> Sequence[int]:
        """The tokens that may come next.

        Args:
            ends: The tokens that end an answer.
        """
        found = {self._ids[place] for place in self._next}
        found |= {ids[self._written] for ids, _ in self._first if len(ids) > self._written}
        if self._written and any(self._word_ends[place] for place in self._next):
            found |= set(ends)
        return sorted(found - {_NONE})
