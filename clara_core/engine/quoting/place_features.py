"""What stands at a word of a document and around it: features that tell whether an answer to a question begins there.

A feature is a value of a group: the class of the word before ("before" is "in"), how far away the nearest word of the
question is. They are read by `clara_core.engine.quoting.learned_hints`. Runs no neural model.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Final

from clara_core.engine.quotes import split_sentences
from clara_core.engine.quoting.answer_kinds import YES_OR_NO, AnswerKind
from clara_core.engine.quoting.shared_words import CLAUSE_END, MOST, SharedWords
from clara_core.engine.quoting.word_classes import ASKING, FUNCTION, NEGATIONS, PREPOSITIONS, word_class, word_set
from clara_core.retrieval.words import place_spans, question_words, words_of

Features = dict[str, str]
"""A value for each group that has one."""
Columns = dict[str, list[str]]
"""For each group the values of all words of a document; an empty one is none."""

_WORD: Final = re.compile(r"[\w']+")
_STOP: Final = frozenset(".;!?")
_MARKS: Final = _STOP | frozenset(",:")
_NUMBERS: Final = frozenset(["#number", "#year", "#clock", "#code"])
_FAR: Final = 9  # words; the nearest word of the question is not looked for farther away
_AROUND: Final = 3  # words before and after a place whose classes are features
_SKIPPED: Final = 4  # small words between a word of the question and the answer that follows it
_MOST: Final = 3  # larger counts are this one
_CLOSE: Final = 3  # words; neighbours in the question that are not farther apart stand close together
# Words of a question that tell which of several answers it means.
_TELLING: Final = word_set(
    "last first second third next other only not no much many long often kind sort type colour color name called do "
    "happen happens mean made wrong need else number each per did does is was are were by with for to from in on at of"
)
# How a word of a document is meant by the question: not at all, by itself, by a synonym, as a name.
_UNASKED, _SAME, _SYNONYM, _NAME = "", "same", "synonym", "name"
_PLAIN: Final = (_SAME, _SYNONYM)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a document, with punctuation marks as words.

    Attributes:
        text: The document.
        spans: Their characters.
        classes: Their classes, by their form.
        asked: How the question means each.
        repeated: Whether each is a telling word of the question.
        at: The index of each word by its first character.
        sentences: The number of the sentence of each.
        clauses: The number of the clause of each.
        fits: Whether an answer of the right kind can begin with each.
    """

    text: str
    spans: list[tuple[int, int]]
    classes: list[str]
    asked: list[str]
    repeated: list[bool]
    at: dict[int, int]
    sentences: list[int]
    clauses: list[int]
    fits: list[bool]

    def lower(self, at: int) -> str:
        """A word in small letters."""
        return self.text[slice(*self.spans[at])].lower()

    def shown(self, at: int) -> str:
        """The class of a word as its neighbours see it; a word of the question is one, whatever its form."""
        if at < 0:
            return "start"
        if at >= len(self.spans):
            return "end"
        return f"#{self.asked[at]}" if self.asked[at] else self.classes[at]


class PlaceFeatures:
    """The features of each word of some documents, and of the answers that are no quotation.

    Args:
        question: The question.
        texts: The documents.
        kind: The kind of its answer.
        shared: Its words in the documents.
    """

    def __init__(self, question: str, texts: Sequence[str], kind: AnswerKind | None, shared: SharedWords) -> None:
        self._kind, self._shared, self._question = kind, shared, question
        said = _WORD.findall(question)
        self._names = frozenset(word for name in said[1:] if name[0].isupper() for word in words_of(name))
        self._plain = frozenset(question_words(question)) - self._names
        lower = [word.lower() for word in said]
        asking = next((at for at, word in enumerate(lower) if word in ASKING), None)
        self.sort = _sort(kind, lower)
        # The preposition of "from where" and of "where from".
        self._leading = lower[asking - 1] if asking and lower[asking - 1] in PREPOSITIONS else ""
        self._trailing = lower[-1] if lower and lower[-1] in PREPOSITIONS else ""
        self._asks = {f"asks {word}": "yes" for word in sorted(_TELLING.intersection(lower))}
        behind = lower[asking + 1] if asking is not None and asking + 1 < len(lower) else ""
        self._asks["asks behind"] = behind if behind in FUNCTION else "other"
        self.documents = [self._read(text) for text in texts]

    def _read(self, text: str) -> Words:
        spans = place_spans(text)
        begins = [start for start, _ in split_sentences(text)]
        cuts = sorted({*begins, *(match.end() for match in CLAUSE_END.finditer(text))})
        words = [text[start:end] for start, end in spans]
        first = frozenset(begins)
        repeated = [word.lower() not in FUNCTION and self._shared.repeats(word) for word in words]
        return Words(
            text=text,
            spans=spans,
            classes=[word_class(word, begins=at in first) for word, (at, _) in zip(words, spans, strict=True)],
            asked=[self._asked(word) for word in words],
            repeated=repeated,
            at={start: at for at, (start, _) in enumerate(spans)},
            sentences=[bisect_right(begins, start) for start, _ in spans],
            clauses=[bisect_right(cuts, start) for start, _ in spans],
            fits=[self._fits(text, start, repeats) for repeats, (start, _) in zip(repeated, spans, strict=True)],
        )

    def _fits(self, text: str, start: int, repeats: bool) -> bool:
        kind = self._kind
        return kind is not None and (kind.repeats or not repeats) and kind.fits.match(text, start) is not None

    def _asked(self, word: str) -> str:
        meant = self._shared.meant_by(word)
        if not meant:
            return _UNASKED
        if word[0].isupper() and not self._names.isdisjoint(words_of(word)):
            return _NAME
        if meant <= self._names or word.lower() in FUNCTION:
            return _UNASKED
        return _SAME if self._shared.repeats(word) else _SYNONYM

    def columns(self, document: int) -> Columns:
        """The features of all words of a document."""
        words = self.documents[document]
        every, kind = range(len(words.spans)), self._kind
        last = len(words.spans) - 1
        shown = [words.shown(at) for at in range(-_AROUND, last + _AROUND + 1)]
        found: Columns = {
            f"at {step}": shown[step + _AROUND : step + _AROUND + last + 1] for step in range(-_AROUND, _AROUND + 1)
        }
        found["word"] = words.classes
        found["before"] = [self._before(words, at) for at in every]
        found["share"] = [f"{self._shared.gain(document, start) / MOST:.1f}" for start, _ in words.spans]
        found["follows"] = [yes(_follows(words, at)) for at in every]
        for name, wanted in (
            ("asked", _PLAIN),
            ("same", (_SAME,)),
            ("name", (_NAME,)),
        ):
            flags = [one in wanted for one in words.asked]
            found[f"left {name}"], found[f"right {name}"] = _nearest(words, flags)
        found |= _counts(words) | _fitting(words)
        if kind is not None and kind.avoids is not None:
            found["avoided"] = [yes(kind.avoids.match(words.text, start) is not None) for start, _ in words.spans]
        for name, preposition in (("leading", self._leading), ("trailing", self._trailing)):
            if preposition:
                same = [words.lower(at) == preposition for at in every]
                found[f"{name} before"] = [yes(one) for one in [False, *same[:-1]]]
                found[f"{name} here"] = [yes(one) for one in same]
        if len(self.documents) > 1:
            own = self._of_document(document)
            found |= {group: [value] * len(every) for group, value in own.items()}
        return found | {group: [value] * len(every) for group, value in self._asks.items()}

    def _of_document(self, document: int) -> Features:
        """Features of a document among several: how much of the question it has, and the one that has most."""
        share, names = self._shared.share(document), self._named[document]
        most = max(map(self._shared.share, range(len(self.documents))))
        return {
            "document": str(min(document, 5)),
            "document share": f"{share:.1f}",
            "document less": f"{most - share:.1f}",
            "document names": f"{min(_MOST, names)} of {min(_MOST, max(self._named))}",
        }

    @cached_property
    def _named(self) -> list[int]:
        """How many names of the question each document has."""
        return [len(self._names_in(words)) for words in self.documents]

    def _names_in(self, words: Words) -> frozenset[str]:
        """The names of the question that a document has."""
        own = (words.text[slice(*span)] for span, asked in zip(words.spans, words.asked, strict=True) if asked == _NAME)
        return self._names & frozenset(word for name in own for word in words_of(name))

    @staticmethod
    def _before(words: Words, at: int) -> str:
        if at and "\n" in words.text[words.spans[at - 1][1] : words.spans[at][0]]:
            return "line"
        if at and words.sentences[at] != words.sentences[at - 1]:
            return "sentence"
        cut = at and words.spans[at][0] == words.spans[at - 1][1] + 1 and words.classes[at - 1] in _NUMBERS
        return "cut" if cut else (words.classes[at - 1] if at else "start")

    def of_text(self, document: int, place: int | None) -> list[float]:
        """How much of the question a document has, each in [0, 1].

        Args:
            document: The number of the document.
            place: The index of the word at which an answer would begin; None if there is none.

        Returns:
            list: The share of the question's pairs of neighbours that stand close together, whether an answer of the
            right kind begins at the place, the share of the words that are no names, and how many words the best
            passage shares.
        """
        words = self.documents[document]
        meant = self._meant(words)
        pairs = [(one, other) for one, other in pairwise(question_words(self._question)) if one != other]
        behind = [frozenset().union(*meant[at + 1 : at + 1 + _CLOSE]) for at in range(len(meant))]
        close = [
            any(one in here and other in near for here, near in zip(meant, behind, strict=True)) for one, other in pairs
        ]
        return [
            sum(close) / max(1, len(close)),
            float(place is not None and words.fits[place]),
            len(self._plain & frozenset().union(*meant)) / max(1, len(self._plain)),
            self._shared.best_of(document) / MOST,
        ]

    def of_refusal(self) -> Features:
        """The features of the refusal."""
        texts = [words.text for words in self.documents]
        known = {word for text in texts for word in words_of(text)}
        asked = set(question_words(self._question))
        missing = asked - known
        everything = " ".join(texts).lower()
        unknown = any(
            word[0].isupper() and word.lower() not in everything for word in _WORD.findall(self._question)[1:]
        )
        return {
            "refusal": "yes",
            "refusal unknown": f"{1 - self._shared.best / MOST:.1f}",
            "refusal missing": f"{len(missing) / max(1, len(asked)):.1f}",
            "refusal words": str(min(len(asked), 4)),
            "refusal documents": str(len(texts) > 1),
            "refusal name": str(unknown),
            **self._found("refusal"),
        }

    def of_yes_or_no(self, answer: str) -> Features:
        """The features of "Yes" and "No"."""
        if self._kind is not YES_OR_NO:
            return {"not yes or no": answer}
        said = frozenset(_WORD.findall(self._question.lower()))
        best = max(
            ((count, number, clause) for number, words in enumerate(self.documents)
             for clause, count in _asked_by(words.clauses, words).items()),
            default=None,
        )  # fmt: skip
        found = {
            answer: "yes",
            f"{answer} share": f"{self._shared.best / MOST:.1f}",
            f"{answer} asked": "negated" if said & NEGATIONS else "plain",
            f"{answer} missing": str(min(_MOST, len(self._plain - self._present()))),
            f"{answer} number": str(any(word.isdigit() for word in said)),
            **self._found(answer),
        }
        if best is not None:
            _, number, clause = best
            words = self.documents[number]
            own = [at for at in range(len(words.spans)) if words.clauses[at] == clause]
            denied = [at for at in own if words.lower(at) in NEGATIONS]
            near = min((abs(a - b) for a in denied for b in own if words.asked[b]), default=_FAR)
            sentence = words.sentences[own[0]]
            around = any(
                words.lower(at) in NEGATIONS for at in range(len(words.spans)) if words.sentences[at] == sentence
            )
            found[f"{answer} denied"] = f"{min(near, 4)} {around}"
        return found

    def _present(self) -> frozenset[str]:
        """The words of the question that the documents have, or have synonyms of."""
        return frozenset().union(*chain.from_iterable(map(self._meant, self.documents)))

    def _meant(self, words: Words) -> list[frozenset[str]]:
        """For each word of a document the words of the question that it is, or is a synonym of."""
        return [self._shared.meant_by(words.text[slice(*span)]) for span in words.spans]

    def _found(self, answer: str) -> Features:
        """How much of the question the best clause has, with an answer of the right kind in it or not."""
        wanted = min(len(self._plain), 4)
        best = fitting = exact = 0
        for words in self.documents:
            counts = _asked_by(words.clauses, words)
            best = max([best, *counts.values()])
            fitting = max([fitting, *(counts[at] for at, fits in zip(words.clauses, words.fits, strict=True) if fits)])
            exact = max(exact, words.asked.count(_SAME))
        fits = any(any(words.fits) for words in self.documents)
        return {
            f"{answer} best": f"{min(best, _MOST)} of {wanted}",
            f"{answer} fitting": f"{min(fitting, _MOST)} of {wanted}" if fits else "none",
            f"{answer} same": f"{min(exact, _MOST)} of {wanted}",
            **{f"{answer} {group}": value for group, value in self._asks.items()},
        }


def yes(flag: bool) -> str:
    """The value of a group that holds or not."""
    return "yes" if flag else ""


def _sort(kind: AnswerKind | None, said: Sequence[str]) -> str:
    """The sort of a question: the kind of its answer, or its first small words."""
    if kind is None:
        return " ".join([word for word in said if word in FUNCTION or word in ASKING][:2]) or "keywords"
    return "thing" if kind.is_thing else kind.name


def _follows(words: Words, at: int) -> bool:
    """Whether the last telling word before a place, in the same sentence, is one of the question's."""
    before = at - 1
    while before >= max(0, at - _SKIPPED) and words.lower(before) in FUNCTION:
        before -= 1
    return before >= 0 and words.repeated[before] and words.lower(before) not in _STOP


def _nearest(words: Words, flags: Sequence[bool]) -> tuple[list[str], list[str]]:
    """How far before and after each word the nearest flagged one is, and whether in its clause or its sentence."""
    left: list[str] = []
    right: list[str] = []
    for step, found in ((1, left), (-1, right)):
        near: int | None = None
        order = range(len(flags)) if step == 1 else range(len(flags) - 1, -1, -1)
        for at in order:
            if step == -1 and flags[at]:
                near = at
            found.append(_distance(words, at, near))
            if step == 1 and flags[at]:
                near = at
    return left, right[::-1]


def _distance(words: Words, at: int, other: int | None) -> str:
    if other is None or abs(at - other) >= _FAR:
        return "far"
    scope = (
        "clause" if words.clauses[at] == words.clauses[other]
        else "sentence" if words.sentences[at] == words.sentences[other] else "out"
    )  # fmt: skip
    return f"{abs(at - other)} {scope}"


def _asked_by(parts: Sequence[int], words: Words) -> Counter[int]:
    """How many words of the question, other than names, each part of a document has."""
    return Counter(part for part, asked in zip(parts, words.asked, strict=True) if asked in _PLAIN)


def _counts(words: Words) -> Columns:
    """How much of the question the clause and the sentence of each word have, and where they stand."""
    found: Columns = {}
    for name, parts in (("clause", words.clauses), ("sentence", words.sentences)):
        counts = _asked_by(parts, words)
        most = min(_MOST, max(counts.values(), default=0))
        found[f"{name} asked"] = [f"{min(_MOST, counts[part])} of {most}" for part in parts]
    names = Counter(part for part, asked in zip(words.clauses, words.asked, strict=True) if asked == _NAME)
    found["clause names"] = [str(min(2, names[part])) for part in words.clauses]
    total = max(words.sentences, default=0)
    found["sentence"] = [f"{min(_MOST, one)}{' last' if one == total else ''}" for one in words.sentences]
    since = list(accumulate(range(len(words.spans)), lambda a, at: 0 if words.lower(at - 1) in _MARKS else a + 1))
    found["since mark"] = [str(min(6, one // 2)) for one in since]
    texts = [words.text[slice(*span)] for span in words.spans]
    opened = accumulate((text.count("(") - text.count(")") for text in texts), initial=0)
    quoted = accumulate((text.count('"') for text in texts), initial=0)
    found["inside"] = [
        ("bracket" if depth > 0 else "") + ("quotes" if marks % 2 else "")
        for depth, marks, _ in zip(opened, quoted, texts, strict=False)
    ]
    return found


def _fitting(words: Words) -> Columns:
    """Which of the possible answers of the right kind begins at each word."""
    begins = [fits and not (at and words.fits[at - 1]) for at, fits in enumerate(words.fits)]
    total, number, own = sum(begins), 0, Counter[int]()
    for clause, new in zip(words.clauses, begins, strict=True):
        own[clause] += new
    rank, alone = [], []
    for fits, new, clause in zip(words.fits, begins, words.clauses, strict=True):
        number += new
        rank.append(f"{min(number, 4)} of {min(total, 4)}" if fits else f"none of {min(total, 3)}")
        alone.append(str(min(own[clause], 3)) if fits else "")
    return {"fits": rank, "fits in clause": alone}
