"""The tokenizer of the search by words.

A word is a run of letters, digits and marks of any length, without regard to case, accents, vowel points and width:
``Café`` is ``cafe``, and so is its full-width form. English endings are cut off, and irregular forms become their base
(`_stem`), so that "tickets" finds "ticket", and "sold" finds "sell"; words with digits have none. Runs joined by a
hyphen, dot or similar are words both by themselves and as a whole, so that ``AB-1234/9`` is as rare as it should be.
Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) and emoji are split into
single characters and pairs of neighbours: pairs are more specific, and single characters can be found, too.

The stems are those of a few rules and not of a library, because a store keeps them: with stems of another version, a
word would no longer find its texts.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Final

import regex

from clara_core.retrieval.irregular import BASE_OF

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
OWNER: Final = regex.compile(r"\w['\u2019]s$")
"""The end of a word that says whose something is."""
_SAME: Final = {0x2019: "'", 0x2010: "-"}
_VOWELS: Final = frozenset("aeiouy")
_LONGEST: Final = 40  # letters of a word with endings; longer ones are no English, and would fill the cache


def question_words(question: str) -> list[str]:
    """The words to search for: those of a question without "what", "how many" and the like, unless it has no other.

    Such words are rare in texts that do not ask. They would weigh as much as a name.
    """
    words = words_of(question)
    return [word for word in words if word not in _QUESTION_STEMS] or words


def words_of(text: str) -> list[str]:
    """The words of a text, in order, without their endings. No word contains a space."""
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
    """Spans of the words and of the runs of other characters except spaces; parts of a hyphenated word are words.

    "Ada's" has two spans, with and without the ending.
    """
    spans = place_spans(text)
    return spans + [(start, end - 2) for start, end in spans if OWNER.search(text, start, end)]


def place_spans(text: str) -> list[tuple[int, int]]:
    """The spans of `word_spans` that do not overlap, in order."""
    return [match.span() for match in _PLACE.finditer(text)]


def _split(runs: list[str]) -> list[str]:
    """The stem of each run, followed by those of its parts if it is joined."""
    found: list[str] = []
    for run in runs:
        found.append(_stem(run))
        if not run.isalnum() and len(parts := _JOIN.split(run)) > 1:
            found += map(_stem, parts)
    return found


def _stem(word: str) -> str:
    """A word of English letters without the endings -s, -ed, -ing and -e: "ticket", "stop", "pric", "city", "sell"."""
    word = BASE_OF.get(word, word)
    return _cut(word) if 3 < len(word) <= _LONGEST and word.isascii() and word.isalpha() else word


@lru_cache(maxsize=1 << 16)
def _cut(word: str) -> str:
    """Plurals after Harman, "How effective is suffixing?" (1991), with one rule more for -ed and -ing."""
    if word.endswith("ies") and len(word) > 4 and word[-4] not in "ae":
        word = word[:-3] + "y"
    elif word.endswith("s") and word[-2] not in "us":
        word = word[:-1]
    if word.endswith("ied") and len(word) > 4:
        word = word[:-3] + "y"
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and rest[-1] != "e" and not _VOWELS.isdisjoint(rest):
            doubled = len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz"
            return rest[:-1] if doubled else rest
    return word[:-1] if len(word) > 3 and word[-1] == "e" and word[-2] != "e" else word


_QUESTION_STEMS: Final = frozenset(words_of("who whom whose what which when where why how much many do does did"))
