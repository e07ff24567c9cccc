"""Classes of English words by their form: a function word is its own class. Runs no model."""

from __future__ import annotations

import re
from typing import Final

from clara_core.retrieval.irregular import BASE_OF


def word_set(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


FUNCTION: Final = word_set(
    "a an the my your his her its our their i he she it we they you this that these those in on at by for from to "
    "with of into onto under over behind near between above below inside outside opposite next across along around "
    "through past off until till since before after during about around every each all both no not only never always "
    "because so due as if when while which who whose that where and or but is are was were be been has have had do "
    "does did can could may might must shall will would should than then there up out"
)
PREPOSITIONS: Final = word_set(
    "in at on by for from to with of into under behind near about until since before after through"
)
ASKING: Final = word_set("what how which who whose whom when where why")
NEGATIONS: Final = word_set(
    "no not never none nobody nothing nowhere neither nor without except only closed shut forbidden banned refused "
    "rejected cancelled free unless until cannot can't don't doesn't didn't isn't aren't wasn't weren't won't "
    "wouldn't shouldn't mustn't couldn't hasn't haven't hadn't lacks instead too fails failed"
)
_NUMERALS: Final = word_set(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half twice once"
)
_MONTHS: Final = word_set(
    "january february march april may june july august september october november december jan feb mar apr jun jul "
    "aug sep sept oct nov dec"
)
_DAYS: Final = word_set(
    "monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays "
    "sundays mon tue wed thu fri sat sun"
)
_TIMES: Final = word_set(
    "noon midnight morning afternoon evening night today tomorrow yesterday tonight spring summer autumn winter "
    "weekend weekends easter christmas"
)
_SPANS: Final = word_set(
    "second seconds minute minutes hour hours day days week weeks month months year years am pm min o'clock"
)
_UNITS: Final = word_set(
    "euro euros dollar dollars pound pounds franc francs crown crowns cent cents pence yen percent per metre metres "
    "kilometre kilometres centimetre centimetres km cm mm m mile miles inch inches feet foot kg g kilo kilos gram "
    "grams tonne tonnes litre litres ml l degrees degree % € $ £ °"
)
_SPECIAL: Final = {
    word: f"#{name}"
    for name, words in (
        ("numeral", _NUMERALS), ("time", _TIMES), ("span", _SPANS), ("unit", _UNITS),
    )
    for word in words
}  # fmt: skip
_DATES: Final = {word: f"#{name}" for name, words in (("month", _MONTHS), ("day", _DAYS)) for word in words}
_CLOCK: Final = re.compile(r"\d{1,2}[:.]\d\d")
_YEAR: Final = re.compile(r"(?:1\d|20)\d\d")
_DIGITS: Final = re.compile(r"\d[\d.,]*")


def word_class(word: str, *, begins: bool) -> str:
    """The class of a word: a function word or a mark is its own, other words are classed by their form.

    Args:
        word: The word, or a punctuation mark.
        begins: Whether it begins a sentence, so that a capital tells nothing.
    """
    lower = word.lower()
    if lower in FUNCTION and (lower != "may" or word[0].islower()):
        return lower
    if lower in _SPECIAL:
        return _SPECIAL[lower]
    if word[0].isupper() and lower in _DATES:
        return _DATES[lower]
    if not word[0].isalnum():
        return word[0]
    if word[0].isdigit():
        return next((name for name, form in _FORMS if form.fullmatch(word)), "#code")
    if any(char.isdigit() for char in word):
        return "#code"
    if word[0].isupper():
        return "#capitals" if len(word) > 1 and word.isupper() else "#first" if begins else "#name"
    if lower in BASE_OF:
        return "#irregular"
    return next((f"#{ending}" for ending in ("ing", "ed", "ly", "s") if lower.endswith(ending)), "#word")


_FORMS: Final = (("#clock", _CLOCK), ("#year", _YEAR), ("#number", _DIGITS))
