"""Finds the words of an answer in a text: verbatim, or the most similar run of words. Runs no model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]

NEAR = 0.75  # lowest ratio of `difflib` of a run of words that counts as similar
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*(?=\s)|\n\s*\n")  # noqa: RUF001 - full-width stops are meant
# A period after these does not end a sentence: titles, and the letter of an initial.
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|vs|ca|[A-Z])\.$")
_LONGEST_ABBREVIATION = len("Prof.")
_YES_NO = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True, slots=True)
class Quote:
    """The place of a text that supports an answer."""

    start: int  # first character in the text
    end: int  # end in the text, exclusive
    # whether the text contains the words in this order, ignoring case; otherwise the place is the most similar run of
    # as many words
    verbatim: bool


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, case-folded, with its span of characters."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Runs of letters and digits of any script."""
    return [Word(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


def split_sentences(text: str) -> list[Span]:
    """Spans of sentences, without surrounding space; a text without sentence ends is one sentence."""
    spans: list[Span] = []
    start = 0
    ends = [end for match in _SENTENCE_END.finditer(text) if not _abbreviates(text, end := match.end())]
    for end in [*ends, len(text)]:
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        last = start + len(piece.rstrip())
        if first < last:
            spans.append((first, last))
        start = end
    return spans


def _abbreviates(text: str, end: int) -> bool:
    """Whether the period before this character belongs to an abbreviation."""
    return _ABBREVIATION.search(text, max(0, end - _LONGEST_ABBREVIATION), end) is not None


def says_yes_or_no(text: str) -> bool:
    """Whether an answer is a single "yes", "no", "true" or "false", which documents do not contain."""
    words = [word.text for word in split_words(text)]
    return len(words) == 1 and words[0] in _YES_NO


def share_of_names(question: str, texts: Iterable[str]) -> float:
    """Share of the names and numbers of a question that texts contain; 1 if it has none.

    A name is a capitalized word, other than "I", that does not begin a sentence.
    """
    openings = {start for start, _ in split_sentences(question)}
    names = {
        word.text
        for word in split_words(question)
        if any(char.isdigit() for char in word.text)
        or (question[word.start].isupper() and word.start not in openings and word.text != "i")
    }
    found = {word.text for text in texts for word in split_words(text)} if names else set()
    return len(names & found) / len(names) if names else 1.0


def stands_in(answer: str, text: str) -> bool:
    """Whether a text contains the words of an answer in this order, ignoring case."""
    wanted = [word.text for word in split_words(answer)]
    return bool(wanted) and bool(_runs(wanted, split_words(text)))


def find_quote(part: str, text: str, windows: Sequence[Span], question: str = "") -> Quote | None:
    """Find the sentence of a document with the words of an answer, or the most similar run of words.

    Args:
        part: A part of an answer.
        text: The document.
        windows: Character spans of the document that were read; only these are searched.
        question: If several sentences have the words, the one that shares most words with this is taken.

    Returns:
        Quote | None: None if no run of words is similar.
    """
    wanted = [word.text for word in split_words(part)]
    if not wanted:
        return None
    words = split_words(text)
    read = [word for word in words if any(start <= word.start < end for start, end in windows)]
    places = _runs(wanted, read)
    if places:
        others = {word.text for word in split_words(question)} - set(wanted)
        sentences = split_sentences(text)
        around = [_around(sentences, read[at].start, read[at + len(wanted) - 1].end) for at in places]
        shared = [len(others & {word.text for word in split_words(text[start:end])}) for start, end in around]
        start, end = around[shared.index(max(shared))]
        return Quote(start, end, verbatim=True)
    return _nearest(wanted, read)


def _runs(wanted: Sequence[str], words: Sequence[Word]) -> list[int]:
    """Indexes in `words` at which the wanted words begin, one after the other."""
    last = len(words) - len(wanted)
    return [
        at
        for at in range(last + 1)
        if words[at].text == wanted[0] and all(words[at + n].text == word for n, word in enumerate(wanted))
    ]


def _around(sentences: Iterable[Span], start: int, end: int) -> Span:
    """The span of all sentences that overlap a span."""
    held = [one for one in sentences if one[0] < end and start < one[1]]
    return (min(held[0][0], start), max(held[-1][1], end)) if held else (start, end)


def _nearest(wanted: Sequence[str], words: Sequence[Word]) -> Quote | None:
    """The run of as many words that is most similar to the wanted ones, if its ratio is at least `NEAR`."""
    size = len(wanted)
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(" ".join(wanted))
    best, found = NEAR, None
    for at in range(len(words) - size + 1):
        run = words[at : at + size]
        matcher.set_seq1(" ".join(word.text for word in run))
        # Cheap upper bounds first.
        if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
            continue
        ratio = matcher.ratio()
        if ratio > best or (found is None and ratio >= best):
            best, found = ratio, Quote(run[0].start, run[-1].end, verbatim=False)
    return found
