"""BM25 (Robertson and Zaragoza, 2009) with incremental updates, for stores, evaluation and training candidates.

Corpus statistics (number of texts, document frequencies, mean length) cover exactly the current texts, so that equal
sets of texts give bit-identical scores, whatever the order of additions and removals.

Letters in shapes: n texts of a segment, P pairs of a word and a text.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clara_core.retrieval.words import question_words, words_of

K1: Final = 0.6  # saturation of the term frequency: a word said twice tells little more (docs/retrieval.md)
B: Final = 0.75  # length normalization

_PENDING: Final = 256  # texts that are collected before they become a segment
_TIER: Final = 4  # segments of similar size that are merged

Rows = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Segment:
    """An immutable inverted index of some texts."""

    codes: dict[str, int]  # of the words
    starts: NDArray[np.int64]  # [words + 1], offset of each word's pairs
    texts: NDArray[np.int32]  # [P], index of the text of each pair, ascending for each word
    counts: NDArray[np.int32]  # [P], term frequency of each pair
    lengths: NDArray[np.int64]  # [n], number of words of each text
    rows: Rows  # [n], row numbers of the texts, ascending
    alive: NDArray[np.bool_] | None  # [n], the texts that were not removed; None for all
    n_alive: int  # number of texts that were not removed
    n_words: int  # number of their words

    @classmethod
    def of(cls, rows: Rows, texts: Sequence[Sequence[str]]) -> _Segment:
        """Index texts, given by their words, under ascending row numbers."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        numbers = count()
        codes: dict[str, int] = {}
        flat = np.fromiter(
            (codes[word] if word in codes else codes.setdefault(word, next(numbers))
             for word in chain.from_iterable(texts)),
            np.int64, int(lengths.sum()),
        )  # fmt: skip
        pairs = flat * max(1, len(texts)) + np.repeat(np.arange(len(texts)), lengths)
        different, counts = np.unique(pairs, return_counts=True)
        owners, places = np.divmod(different, max(1, len(texts)))
        starts = np.searchsorted(owners, np.arange(len(codes) + 1))
        return cls(codes, starts, places.astype(np.int32), counts.astype(np.int32), lengths, rows, None, len(rows),
                   int(lengths.sum()))  # fmt: skip

    @classmethod
    def merged(cls, segments: Sequence[_Segment]) -> _Segment:
        """Merge segments, without their removed texts."""
        codes: dict[str, int] = {}
        parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]] = []
        offset = 0
        for segment in segments:
            alive = np.ones(len(segment.rows), np.bool_) if segment.alive is None else segment.alive
            kept = alive[segment.texts]
            own = np.fromiter((codes.setdefault(word, len(codes)) for word in segment.codes), np.int64)
            word = np.repeat(own, np.diff(segment.starts))[kept]
            place = (np.cumsum(alive) - 1 + offset)[segment.texts[kept]]
            parts.append((word, place, segment.counts[kept]))
            offset += segment.n_alive
        rows, lengths = (
            np.concatenate([getattr(each, name) if each.alive is None else getattr(each, name)[each.alive]
                            for each in segments]) for name in ("rows", "lengths")
        )  # fmt: skip
        order = np.argsort(rows, kind="stable")
        ranks = np.empty(len(rows), np.int64)
        ranks[order] = np.arange(len(rows))
        words, places, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
        places = ranks[places]
        by_word = np.lexsort((places, words))
        starts = np.searchsorted(words[by_word], np.arange(len(codes) + 1))
        return cls(codes, starts, places[by_word].astype(np.int32), counts[by_word], lengths[order], rows[order], None,
                   len(rows), int(lengths.sum()))  # fmt: skip

    def without(self, rows: Rows) -> _Segment:
        """The segment without some texts; unknown row numbers are ignored."""
        removed = members(self.rows, rows)
        if self.alive is not None:
            removed &= self.alive
        n_removed = int(np.count_nonzero(removed))
        if not n_removed:
            return self
        alive = ~removed if self.alive is None else self.alive & ~removed
        n_words = self.n_words - int(self.lengths[removed].sum())
        return replace(self, alive=alive, n_alive=self.n_alive - n_removed, n_words=n_words)

    def found(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The texts with a word that were not removed, and its frequency in each."""
        code = self.codes.get(word)
        if code is None:
            return self.texts[:0], self.counts[:0]
        own = slice(self.starts[code], self.starts[code + 1])
        texts, counts = self.texts[own], self.counts[own]
        if self.alive is None:
            return texts, counts
        alive = self.alive[texts]
        return texts[alive], counts[alive]


@dataclass(slots=True)
class _Parts:
    """The state of an index: segments and pending texts. Immutable except for the cached `merged`."""

    segments: tuple[_Segment, ...] = ()
    pending: tuple[tuple[int, Sequence[str]], ...] = ()
    merged: _Parts | None = field(default=None, repr=False)

    def in_segments(self) -> _Parts:
        """The same state with the pending texts in segments."""
        if not self.pending:
            return self
        if self.merged is None:
            waiting = sorted(self.pending, key=lambda text: text[0])
            rows = np.array([row for row, _ in waiting], np.uint64)
            new = _Segment.of(rows, [text for _, text in waiting])
            self.merged = _Parts(_in_tiers([*self.segments, new]))
        return self.merged


class WordIndex:
    """A thread-safe BM25 index of texts by row number."""

    def __init__(self) -> None:
        self._parts = _Parts()
        self._writing = threading.Lock()

    def snapshot(self) -> WordIndex:
        """A copy of the current index, which later changes do not affect."""
        copy = WordIndex()
        copy._parts = self._parts
        return copy

    def add(self, rows: Rows, texts: Sequence[Sequence[str]]) -> None:
        """Add texts, by the words of each from `words_of`, under new row numbers, which ascend."""
        with self._writing:
            parts = self._parts.merged or self._parts
            if len(texts) >= _PENDING:
                self._parts = replace(
                    parts, segments=_in_tiers([*parts.segments, _Segment.of(rows, texts)]), merged=None
                )
                return
            parts = replace(parts, pending=(*parts.pending, *zip(rows.tolist(), texts, strict=True)), merged=None)
            self._parts = parts.in_segments() if len(parts.pending) >= _PENDING else parts

    def remove(self, rows: Rows) -> None:
        """Remove texts; unknown row numbers are ignored."""
        with self._writing:
            parts = self._parts.merged or self._parts
            removed = set(rows.tolist())
            segments = [segment.without(np.sort(rows)) for segment in parts.segments]
            # Compact segments that have lost more than half of their texts.
            segments = [_Segment.merged([each]) if 2 * each.n_alive < len(each.rows) else each for each in segments]
            pending = tuple(text for text in parts.pending if text[0] not in removed)
            self._parts = _Parts(tuple(each for each in segments if each.n_alive), pending)

    def search(
        self, terms: Mapping[str, float], k: int, allowed: Rows | None = None
    ) -> tuple[list[tuple[int, float]], float]:
        """Find at most k texts that have some words, among the allowed rows (ascending; None for all).

        Args:
            terms: The words with their weights; 1 for a telling word of the question, less for others and synonyms.
            k: Most texts to find.
            allowed: The rows to search.

        Returns:
            tuple: Row numbers with scores (above 0), best first and equal scores by row number; and the score of a text
            of mean length that has each telling word of the question once, as the unit of
            `clara_core.retrieval.ranking.text_relevance`.
        """
        segments = self._parts.in_segments().segments
        total = sum(segment.n_alive for segment in segments)
        mean = max(sum(segment.n_words for segment in segments), 1) / max(total, 1)
        found = [[segment.found(word) for segment in segments] for word in terms]
        weights = [
            factor * word_weight(total, sum(len(texts) for texts, _ in own))
            for factor, own in zip(terms.values(), found, strict=True)
        ]
        rows: list[Rows] = [np.zeros(0, np.uint64)]
        scores: list[NDArray[np.float64]] = [np.zeros(0)]
        for at, segment in enumerate(segments):
            own = np.zeros(len(segment.rows))
            for weight, each in zip(weights, found, strict=True):
                texts, counts = each[at]
                damping = K1 * (1 - B + B * segment.lengths[texts] / mean)
                own[texts] += weight * (counts * (K1 + 1) / (counts + damping))
            hits = np.flatnonzero(own)
            rows.append(segment.rows[hits])
            scores.append(own[hits])
        unit = math.fsum(weight for weight, factor in zip(weights, terms.values(), strict=True) if factor == 1)
        return _best(np.concatenate(rows), np.concatenate(scores), k, allowed), unit


def word_weight(total: int, having: int) -> float:
    """Inverse document frequency of a word; above 0 even if every text has it."""
    return math.log1p((total - having + 0.5) / (having + 0.5))


def _best(rows: Rows, scores: NDArray[np.float64], k: int, allowed: Rows | None) -> list[tuple[int, float]]:
    if allowed is not None:
        kept = members(rows, allowed)
        rows, scores = rows[kept], scores[kept]
    if k < len(rows):
        high = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[high], scores[high]
    order = np.lexsort((rows, -scores))[:k]
    return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))


def _in_tiers(segments: list[_Segment]) -> tuple[_Segment, ...]:
    """Merge the last `_TIER` segments while they have similar sizes, so that a text is merged only O(log n) times."""
    while len(segments) >= _TIER:
        last = segments[-_TIER:]
        if last[0].n_alive > _TIER * max(each.n_alive for each in last[1:]):
            break
        segments = [*segments[:-_TIER], _Segment.merged(last)]
    return tuple(segments)


def members(rows: Rows, among: Rows) -> NDArray[np.bool_]:
    """A mask of the rows that are in `among`, which is ascending."""
    if not len(among):
        return np.zeros(len(rows), np.bool_)
    places = np.searchsorted(among, rows)
    places[places == len(among)] = 0
    found: NDArray[np.bool_] = among[places] == rows
    return found


class Bm25:
    """Ranks a fixed list of texts by BM25, without synonyms."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)
        self._index = WordIndex()
        self._index.add(np.arange(len(self._texts), dtype=np.uint64), [words_of(text) for text in self._texts])

    def search(self, question: str, k: int) -> list[str]:
        """At most `k` texts that share words with a question, best first."""
        return [self._texts[row] for row, _ in self._index.search(dict.fromkeys(question_words(question), 1.0), k)[0]]

    def rank(self, questions: Sequence[str]) -> list[list[int]]:
        """The indices of all texts for each question, best first; equal scores keep the order of the texts."""
        ranked: list[list[int]] = []
        for question in questions:
            terms = dict.fromkeys(question_words(question), 1.0)
            found = [row for row, _ in self._index.search(terms, len(self._texts))[0]]
            ranked.append([*found, *sorted({*range(len(self._texts))}.difference(found))])
        return ranked
