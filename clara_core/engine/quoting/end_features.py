"""What stands at the end of a quotation and behind it: features that tell whether an answer ends there.

They have the form of `place_features`, and are read by `learned_hints`. Runs no neural model.
"""

from __future__ import annotations

import re
from typing import Final

from clara_core.engine.quoting.answer_kinds import AnswerKind
from clara_core.engine.quoting.place_features import Features, Words, yes
from clara_core.engine.quoting.word_classes import FUNCTION
from clara_core.retrieval.words import OWNER

LONGEST: Final = 24  # words of a quotation whose end is told by features
_AHEAD: Final = 5  # words behind an end in which a word of the question is looked for
_OPENING: Final = frozenset(["between", "from", "both", "either", "neither"])
_CLOSING: Final = frozenset(["and", "to", "until", "till", "or", "nor"])
_MARKS: Final = frozenset(",;:—–-")  # noqa: RUF001 - a dash is meant
_STOPS: Final = frozenset(".;!?")
_NAMES: Final = frozenset(["#name", "#first", "#capitals"])
_COUNTS: Final = frozenset(["#number", "#numeral", "a", "an"])
_LINE: Final = re.compile(r"\s*\n")


def ends_of(words: Words, kind: AnswerKind | None, first: int) -> dict[int, Features]:
    """The features of each end of a quotation that begins with a word, by the character after it."""
    found: dict[int, Features] = {}
    for last in range(first, min(len(words.spans), first + LONGEST)):
        start, end = words.spans[last]
        if OWNER.search(words.text, start, end):
            found[end - 2] = end_features(words, kind, first, last, cut=True)
        found[end] = end_features(words, kind, first, last, cut=False)
    return found


def end_features(words: Words, kind: AnswerKind | None, first: int, last: int, *, cut: bool) -> Features:
    """The features of a quotation from one word to another.

    Args:
        words: The words of its document.
        kind: The kind of answer that the question asks for.
        first: The index of its first word.
        last: The index of its last word.
        cut: Whether it leaves out the ending of the last word, "Ada" of "Ada's".
    """
    classes, text = words.classes, words.text
    start, end = words.spans[first][0], words.spans[last][1]
    inside = [words.lower(at) for at in range(first, last + 1)]
    following = words.shown(last + 1)
    opened = not _OPENING.isdisjoint(inside[:-1]) and _CLOSING.isdisjoint(inside)
    found = {
        "last": classes[last],
        "last small": yes(inside[-1] in FUNCTION),
        "last asked": words.asked[last],
        "next": following,
        "next form": classes[last + 1] if last + 1 < len(classes) else "end",
        "next but one": words.shown(last + 2),
        "last and next": f"{classes[last]} {following}",
        "first": classes[first],
        "first and next": f"{classes[first]} {following}",
        "length": str(min(last - first + 1, 12)),
        "line": yes(_LINE.match(text, end) is not None),
        "owner": "cut" if cut else yes(inside[-1].endswith(("'s", "s'"))),
        "fits": _fit(kind, text, start, end),
        "open": yes(text.count("(", start, end) > text.count(")", start, end)),
        "open quotes": yes(text.count('"', start, end) % 2 == 1),
        "open pair": yes(opened),
        "has": " ".join(
            name for name, known in (("mark", not _MARKS.isdisjoint(inside)), ("and", "and" in inside[1:])) if known
        ),
        "asked inside": yes(any(words.asked[first : last + 1])),
        "asked ahead": _ahead(words, last),
        "name goes on": yes(classes[last] in _NAMES and last + 1 < len(classes) and classes[last + 1] in _NAMES),
        "counts": yes(classes[last] in _COUNTS and following not in (".", ",", ";", "end")),
    }
    if last > first:
        found["last but one"] = classes[last - 1]
    return found


def _fit(kind: AnswerKind | None, text: str, start: int, end: int) -> str:
    """How far the form of an answer of this kind goes."""
    match = None if kind is None else kind.fits.match(text, start)
    if match is None:
        return "no"
    return "all" if match.end() == end else "more" if match.end() > end else "less"


def _ahead(words: Words, last: int) -> str:
    """How far behind an end, in its sentence, the next word of the question is."""
    for at in range(last + 1, min(len(words.spans), last + 1 + _AHEAD)):
        if words.lower(at) in _STOPS:
            break
        if words.asked[at]:
            return str(at - last)
    return ""
