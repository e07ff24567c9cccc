"""Ranks windows by their scores, and holds windows in a matrix that can grow while it is searched.

All searches by vectors use these functions: in memory, over keys, and over the memories of a table.

Dimensions: Q questions, n windows of a part, N windows of a matrix, L numbers of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clara_core.retrieval.bm25 import members
from clara_core.store.backend import Candidate, Rows

SCORED: Final = np.dtype([("score", "f4"), ("row", "u8"), ("order", "u8"), ("window", "i8")])
"""A window with its score: the row of its document, the document's position in order, and the window's index in it."""

_DIGITS: Final = 6  # digits kept of a cosine in float32, so that equal memories have equal scores in every search
_ROUNDED: Final = 1e-6
_BLOCK_BYTES: Final = 1 << 26  # bytes of a block of windows, which is never moved
_FEW: Final = 8  # if fewer than 1 / _FEW of the windows of a block are allowed, only those are compared
_NEVER: Final = np.iinfo(np.int64).max


def scored_windows(
    scores: NDArray[np.float32], rows: Rows, orders: Rows, windows: NDArray[np.int64], k: int
) -> list[NDArray[Any]]:
    """For each question, the windows of a part that may belong to its k best documents.

    The scores are ``[Q, n]``, ``-inf`` for a window that may not be found. The rest is as in `SCORED`, ``[n]``; the
    windows of a document are adjacent.
    """
    found = []
    for own in scores:
        places = _contenders(own, rows, k)
        part = np.empty(len(places), SCORED)
        part["score"], part["row"], part["order"], part["window"] = (
            own[places], rows[places], orders[places], windows[places],
        )  # fmt: skip
        found.append(part)
    return found


def merged(parts: Sequence[NDArray[Any]], k: int) -> NDArray[Any]:
    """The windows that may belong to the k best documents of all parts, given in order."""
    found = np.concatenate([np.empty(0, SCORED), *parts])
    return found[_contenders(found["score"], found["row"], k)]


def ranking(found: NDArray[Any], k: int) -> list[Candidate]:
    """The k best documents by their best windows, best first; of equal scores the one added first comes first."""
    rounded = found["score"].astype(np.float64).round(_DIGITS)
    order = np.lexsort((found["window"], -found["score"], found["row"], found["order"], -rounded))
    first = np.sort(np.unique(found["row"][order], return_index=True)[1])[:k]
    chosen = order[first]
    columns = found["row"][chosen], rounded[chosen], found["window"][chosen], found["order"][chosen]
    return [Candidate(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _contenders(scores: NDArray[np.float32], rows: Rows, k: int) -> NDArray[np.int64]:
    """Indexes of the windows with at least the score of the best window of the k-th document, up to rounding."""
    if not len(rows):
        return np.empty(0, np.int64)
    first = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    best = scores if len(first) == len(rows) else np.maximum.reduceat(scores, first)
    least = -np.inf if k >= len(best) else np.partition(best, len(best) - k)[len(best) - k] - _ROUNDED
    return np.flatnonzero((scores >= least) & (scores > -np.inf))


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of one version, in the order of the rows of their documents. Immutable, although the matrix grows."""

    blocks: tuple[NDArray[Any], ...]  # [n, L] each; all but the last have the same length
    rows: Rows  # [N], as in `SCORED`
    windows: NDArray[np.int64]  # [N], as in `SCORED`
    scales: NDArray[np.float32] | None  # [N], factors of the scores; None is 1
    ends: NDArray[np.int64]  # [N], the version that deleted each window
    version: int

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which windows are not deleted, ``[N]``."""
        return self.ends > self.version

    def at(self, start: int, stop: int) -> NDArray[Any]:
        """A copy of some windows, ``[stop - start, L]``."""
        step = len(self.blocks[0]) if self.blocks else 1
        return np.stack([self.blocks[place // step][place % step] for place in range(start, stop)])

    def best(
        self, questions: int, k: int, allowed: Rows | None, score: Callable[[NDArray[Any]], NDArray[np.float32]],
        threads: int = 1,
    ) -> list[NDArray[Any]]:  # fmt: skip
        """The windows that may belong to the k best documents of each question, among the allowed rows (None: all).

        `score` computes scores ``[questions, n]`` of windows ``[n, L]``.
        """
        there = self.alive if allowed is None else self.alive & members(self.rows, allowed)
        step = len(self.blocks[0]) if self.blocks else 1

        def part(number: int) -> list[NDArray[Any]]:
            block, start = self.blocks[number], number * step
            own = np.flatnonzero(there[start : start + len(block)])
            if _FEW * len(own) < len(block):
                scores = score(block[own])
            else:
                scores = score(block) if len(own) == len(block) else score(block)[:, own]
            own += start
            if self.scales is not None:
                # Rounding can make the product of two equal unit vectors exceed one.
                scores = (scores * self.scales[own]).clip(-1.0, 1.0)
            return scored_windows(scores, self.rows[own], self.rows[own], self.windows[own], k)

        numbers = range(len(self.blocks))
        if threads > 1 and len(numbers) > 1:
            with ThreadPoolExecutor(threads) as pool:
                parts = list(pool.map(part, numbers))
        else:
            parts = list(map(part, numbers))
        return [merged([each[question] for each in parts], k) for question in range(questions)]


class WindowMatrix:
    """A growing matrix of windows. Nothing is moved, so that readers of earlier versions are not disturbed."""

    def __init__(self, length: int, dtype: Any, *, scaled: bool) -> None:
        self._blocks: list[NDArray[Any]] = []
        self._shape = max(1, _BLOCK_BYTES // (length * np.dtype(dtype).itemsize)), length
        self._dtype, self._scaled = dtype, scaled
        self._rows, self._windows, self._ends = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
        self._scales = np.empty(0, np.float32)
        self.used = 0

    def add(
        self, numbers: NDArray[Any], rows: Rows, counts: NDArray[np.int64], scales: NDArray[np.float32] | None = None
    ) -> None:
        """Add all windows ``[n, L]`` of some documents, each with its row and its number of windows."""
        stop, step = self.used + len(numbers), self._shape[0]
        self._rows, self._windows = _grown(self._rows, stop), _grown(self._windows, stop)
        self._ends, self._scales = _grown(self._ends, stop), _grown(self._scales, stop if self._scaled else 0)
        new = slice(self.used, stop)
        self._rows[new], self._windows[new] = np.repeat(rows, counts), window_numbers(counts)
        self._ends[new] = _NEVER
        if scales is not None:
            self._scales[new] = scales
        place = self.used
        while place < stop:
            block, offset = divmod(place, step)
            if block == len(self._blocks):
                self._blocks.append(np.empty(self._shape, self._dtype))  # memory that the system allocates on first use
            part = numbers[place - new.start :][: step - offset]
            self._blocks[block][offset : offset + len(part)] = part
            place += len(part)
        self.used = stop

    def end(self, rows: Rows, version: int) -> None:
        """Mark documents as deleted from a version on; `rows` ascend."""
        ends = self._ends[: self.used]
        ends[members(self._rows[: self.used], rows) & (ends == _NEVER)] = version

    def at(self, version: int) -> Windows:
        """The windows of a version, which must be the last one."""
        used, step = self.used, self._shape[0]
        blocks = tuple(self._blocks[: used // step])
        if used % step:
            blocks = (*blocks, self._blocks[-1][: used % step])
        scales = self._scales[:used] if self._scaled else None
        return Windows(blocks, self._rows[:used], self._windows[:used], scales, self._ends[:used], version)


def window_numbers(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each window in its document, from the number of windows of each document."""
    numbers: NDArray[np.int64] = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return numbers


def _grown(values: NDArray[Any], needed: int) -> NDArray[Any]:
    """An array with room for this many values; the same array if it is large enough."""
    if needed <= len(values):
        return values
    grown = np.zeros(max(needed, 2 * len(values), 16), values.dtype)
    grown[: len(values)] = values
    return grown
