"""Ranks windows by their scores, and holds windows in a matrix that can grow while it is searched.

All searches by vectors use these functions: in memory, over keys, and over the memories of a table.

Dimensions: Q questions, n windows of a part, N windows of a matrix, L numbers of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clara_core.common.threads import one_thread, usual_threads
from clara_core.retrieval.bm25 import members
from clara_core.store.backend import Candidate, Rows

SCORED: Final = np.dtype([("score", "f4"), ("row", "u8"), ("order", "u8"), ("window", "i8")])
"""A window with its score: the row of its document, the document's position in order, and the window's index in it."""

_DIGITS: Final = 6  # digits kept of a cosine in float32, so that equal memories have equal scores in every search
_ROUNDED: Final = 1e-6
_BLOCK_BYTES: Final = 1 << 26  # bytes of a block of windows, which is never moved
_FEW: Final = 8  # if fewer than 1 / _FEW of the windows of a block are allowed, only those are compared


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
    alive: NDArray[np.bool_]  # [N], whether each window's document is there

    def at(self, places: Iterable[int]) -> NDArray[Any]:
        """A copy of some windows, ``[n, L]``."""
        step = len(self.blocks[0])
        return np.stack([self.blocks[place // step][place % step] for place in places])

    def best(
        self, questions: int, k: int, allowed: Rows | None, score: Callable[[NDArray[Any]], NDArray[np.float32]]
    ) -> list[NDArray[Any]]:
        """The windows that may belong to the k best documents of each question, among the allowed rows (None: all).

        `score` computes scores ``[questions, n]`` of windows ``[n, L]``.
        """
        there = self.alive if allowed is None else self.alive & members(self.rows, allowed)
        step = len(self.blocks[0]) if self.blocks else 1

        @one_thread()
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

        numbers, threads = range(len(self.blocks)), usual_threads()
        if threads > 1 and len(numbers) > 1:
            with ThreadPoolExecutor(threads) as pool:
                parts = list(pool.map(part, numbers))
        else:
            parts = list(map(part, numbers))
        return [merged([each[question] for each in parts], k) for question in range(questions)]


class WindowMatrix:
    """A growing matrix of windows. What a snapshot holds never changes: later windows lie behind it."""

    def __init__(self, length: int, dtype: Any, *, scaled: bool) -> None:
        self._shape = max(1, _BLOCK_BYTES // (length * np.dtype(dtype).itemsize)), length
        self._dtype, self._scaled = dtype, scaled
        self._clear()

    def _clear(self) -> None:
        self._blocks: list[NDArray[Any]] = []
        self._rows, self._windows, self._alive = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.bool_)
        self._scales = np.empty(0, np.float32)
        self._used = 0

    def add(
        self, numbers: NDArray[Any], rows: Rows, counts: NDArray[np.int64], scales: NDArray[np.float32] | None = None
    ) -> None:
        """Add all windows ``[n, L]`` of some documents, each with its row and its number of windows."""
        self._append(numbers, np.repeat(rows, counts), window_numbers(counts), scales)

    def _append(
        self, numbers: NDArray[Any], rows: Rows, windows: NDArray[np.int64], scales: NDArray[np.float32] | None
    ) -> None:
        place, stop, step = self._used, self._used + len(numbers), self._shape[0]
        self._rows, self._windows = _grown(self._rows, place, rows), _grown(self._windows, place, windows)
        self._alive = _grown(self._alive, place, np.ones(len(numbers), np.bool_))
        if scales is not None:
            self._scales = _grown(self._scales, place, scales)
        while place < stop:
            block, offset = divmod(place, step)
            if block == len(self._blocks):
                self._blocks.append(np.empty(self._shape, self._dtype))  # memory that the system allocates on first use
            part = numbers[len(numbers) - (stop - place) :][: step - offset]
            self._blocks[block][offset : offset + len(part)] = part
            place += len(part)
        self._used = stop

    def remove(self, rows: Rows) -> None:
        """Delete documents; `rows` ascend. Their windows take room until most windows are deleted."""
        alive = self._alive[: self._used]
        alive &= ~members(self._rows[: self._used], rows)
        if 2 * np.count_nonzero(alive) < len(alive):
            self.compact()

    def compact(self) -> None:
        """Copy the windows that are left into new blocks."""
        old, start = self.snapshot(), 0
        self._clear()
        for block in old.blocks:
            own = start + np.flatnonzero(old.alive[start : start + len(block)])
            scales = None if old.scales is None else old.scales[own]
            self._append(block[own - start], old.rows[own], old.windows[own], scales)
            start += len(block)

    def snapshot(self) -> Windows:
        """The windows that are there now."""
        used, step = self._used, self._shape[0]
        blocks = tuple(block[: used - start] for block, start in zip(self._blocks, range(0, used, step), strict=True))
        scales = self._scales[:used] if self._scaled else None
        return Windows(blocks, self._rows[:used], self._windows[:used], scales, self._alive[:used].copy())


def window_numbers(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each window in its document, from the number of windows of each document."""
    numbers: NDArray[np.int64] = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return numbers


def _grown(values: NDArray[Any], used: int, new: NDArray[Any]) -> NDArray[Any]:
    """An array whose first values are the used ones and the new ones; the same array if it has the room."""
    needed = used + len(new)
    if needed > len(values):
        grown = np.empty(max(needed, 2 * used, 16), values.dtype)
        grown[:used] = values[:used]
        values = grown
    values[used:needed] = new
    return values
