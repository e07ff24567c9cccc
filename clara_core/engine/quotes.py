"""Where the words of an answer stand in a text: word for word, nearly so, or not at all. Knows no model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]

NEAR = 0.75  # of `difflib`: how alike a run of words has to be to be shown as the nearest one
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*(?=\s)|\n\s*\n")  # noqa: RUF001 - full-width stops are meant
# A point behind these ends no sentence: a title, or the letter of an initial.
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|vs|ca|[A-Z])\.$")
_YES_NO = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True, slots=True)
class Quote:
    """What a text says about an answer.

    Attributes:
        start: Where it begins in the text, in characters.
        end: Where it ends.
        verbatim: Whether the words stand there in this order, but for their case; else it is the nearest run of as many
            words.
    """

    start: int
    end: int
    verbatim: bool


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, in one case."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Runs of letters and digits of any script."""
    return [Word(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


def split_sentences(text: str) -> list[Span]:
    """Sentences without the space around them; a text without an end of a sentence is one."""
    spans: list[Span] = []
    start = 0
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if not _ABBREVIATION.search(text[: match.end()])]
    for end in [*ends, len(text)]:
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        last = start + len(piece.rstrip())
        if first < last:
            spans.append((first, last))
        start = end
    return spans


def says_yes_or_no(text: str) -> bool:
    """Whether an answer is of the kind that stands in no text."""
    words = [word.text for word in split_words(text)]
    return len(words) == 1 and words[0] in _YES_NO


def share_of_names(question: str, texts: Iterable[str]) -> float:
    """Which share of the names and numbers of a question stands in texts; 1 where it has none.

    A name is a word with a capital letter that does not open a sentence, but for the word I.
    """
    openings = {start for start, _ in split_sentences(question)}
    asked = {
        word.text
        for word in split_words(question)
        if any(char.isdigit() for char in word.text)
        or (question[word.start].isupper() and word.start not in openings and word.text != "i")
    }
    found = {word.text for text in texts for word in split_words(text)} if asked else set()
    return len(asked & found) / len(asked) if asked else 1.0


def stands_in(said: str, text: str) -> bool:
    """Whether the words of an answer stand in a text, in this order, but for their case."""
    wanted = [word.text for word in split_words(said)]
    return bool(wanted) and bool(_runs(wanted, split_words(text)))


def find_quote(said: str, text: str, windows: Sequence[Span], question: str = "") -> Quote | None:
    """Where a text says something: the sentence with these words, else the nearest run of words.

    Args:
        said: A part of an answer.
        text: The document.
        windows: What of the document was read, in characters; nothing else is looked at.
        question: Of several sentences that have the words, the one that shares most words with this.

    Returns:
        Quote | None: None where nothing of the document is like it.
    """
    wanted = [word.text for word in split_words(said)]
    if not wanted:
        return None
    words = split_words(text)
    read = [word for word in words if any(start <= word.start < end for start, end in windows)]
    places = _runs(wanted, read)
    if places:
        asked = {word.text for word in split_words(question)} - set(wanted)
        sentences = split_sentences(text)
        around = [_around(sentences, read[at].start, read[at + len(wanted) - 1].end) for at in places]
        shared = [len(asked & {word.text for word in split_words(text[start:end])}) for start, end in around]
        start, end = around[shared.index(max(shared))]
        return Quote(start, end, verbatim=True)
    return _nearest(wanted, read)


def _runs(wanted: Sequence[str], words: Sequence[Word]) -> list[int]:
    """Where in `words` the wanted ones stand one behind the other."""
    last = len(words) - len(wanted)
    return [
        at
        for at in range(last + 1)
        if words[at].text == wanted[0] and all(words[at + n].text == word for n, word in enumerate(wanted))
    ]


def _around(sentences: Iterable[Span], start: int, end: int) -> Span:
    """The sentences that hold a span, from the first to the last of them."""
    held = [one for one in sentences if one[0] < end and start < one[1]]
    return (min(held[0][0], start), max(held[-1][1], end)) if held else (start, end)


def _nearest(wanted: Sequence[str], words: Sequence[Word]) -> Quote | None:
    """The run of as many words that is most like the wanted ones, if any is like them."""
    size = len(wanted)
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(" ".join(wanted))
    best, found = NEAR, None
    for at in range(len(words) - size + 1):
        run = words[at : at + size]
        matcher.set_seq1(" ".join(word.text for word in run))
        # Two cheap bounds first.
        if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
            continue
        ratio = matcher.ratio()
        if ratio > best or (found is None and ratio >= best):
            best, found = ratio, Quote(run[0].start, run[-1].end, verbatim=False)
    return found
