"""The tokenizer of the search by words.

A word is a run of letters, digits and marks of any length, without regard to case, accents, vowel points and width:
``Café`` is ``cafe``, and so is its full-width form. There is no stemming and no stop list, so that names, codes and
numbers are found exactly. Runs joined by a hyphen, dot or similar are words both by themselves and as a whole, so that
``AB-1234/9`` is as rare as it should be. Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese, Tibetan) and emoji are split into single characters and pairs of neighbours: pairs are more specific, and
single characters can be found, too.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Final

import regex

_JOINS: Final = "-_./:@'&+,"
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
# A character of such a script with its marks, or an emoji.
_CHARACTER: Final = rf"(?:[[\p{{L}}\p{{Nl}}\u3005]&&[{_UNSPACED}]]\p{{M}}*|\p{{Extended_Pictographic}})"
_RUN: Final = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[[\p{{L}}]&&[{_UNSPACED}]]]*"

_ASCII: Final = regex.compile(rf"[a-z0-9]+(?:[{_JOINS}][a-z0-9]+)*")
_ANY: Final = regex.compile(rf"(?V1)(?P<unspaced>{_CHARACTER}+)|{_RUN}(?:[{_JOINS}]{_RUN})*")
_ONE_CHARACTER: Final = regex.compile(rf"(?V1){_CHARACTER}")
_JOIN: Final = regex.compile(rf"[{_JOINS}]")
# Accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic, and the mark of a coloured emoji.
_OPTIONAL: Final = regex.compile(r"[\u0300-\u036f\u0591-\u05c7\u064b-\u0652\u0670\ufe0f]+")
# Where a quotation may begin or end: not inside of numbers, but between the characters of unspaced scripts.
_PLACE: Final = regex.compile(rf"(?V1){_CHARACTER}|{_RUN}(?:[.,:'\u2019@]{_RUN})*|[^\s\p{{L}}\p{{N}}]+")
_SAME: Final = {0x2019: "'", 0x2010: "-"}


def words_of(text: str) -> list[str]:
    """The words of a text, in order. No word contains a space."""
    if text.isascii():
        return _split(_ASCII.findall(text.lower()))
    folded = _OPTIONAL.sub("", unicodedata.normalize("NFKD", text).casefold()).translate(_SAME)
    found: list[str] = []
    for run in _ANY.finditer(unicodedata.normalize("NFC", folded)):
        if run["unspaced"] is None:
            found += _split([run[0]])
            continue
        characters = _ONE_CHARACTER.findall(run[0])
        found += characters
        found += map("".join, pairwise(characters))
    return found


def word_spans(text: str) -> list[tuple[int, int]]:
    """Spans of the words and of the runs of other characters except spaces; parts of a hyphenated word are words."""
    return [match.span() for match in _PLACE.finditer(text)]


def _split(runs: list[str]) -> list[str]:
    """Runs, each followed by its parts if it is joined."""
    found: list[str] = []
    for run in runs:
        found.append(run)
        if not run.isalnum() and len(parts := _JOIN.split(run)) > 1:
            found += parts
    return found
