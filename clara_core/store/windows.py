"""Windows ranked by their scores, and a matrix of windows that grows while it is searched.

All searches by vectors end here: those in memory, those over keys, and those over the memories of a table.

Letters of shapes: Q questions, n windows of a part, N windows of a matrix, L numbers of a window.
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
"""A window with its score: row and place in the order of its document, and which window of the document it is."""

_DIGITS: Final = 6  # of a cosine in float32; so equal memories have equal scores, wherever they were compared
_ROUNDED: Final = 1e-6
_BLOCK_BYTES: Final = 1 << 26  # of windows that lie in one piece, and are never moved
_FEW: Final = 8  # times as many windows as may be found: then those alone are compared
_NEVER: Final = np.iinfo(np.int64).max


def scored_windows(
    scores: NDArray[np.float32], rows: Rows, orders: Rows, windows: NDArray[np.int64], k: int
) -> list[NDArray[Any]]:
    """For each question the windows of a part that may belong to its k best documents.

    Args:
        scores: ``[Q, n]``; ``-inf`` for a window that is not to be found.
        rows: Of their documents, ``[n]``; windows of a document lie side by side.
        orders: When their documents came, ``[n]``.
        windows: Which window of the document each is, ``[n]``.
        k: Most documents.
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
    """What may belong to the k best documents of all parts, which follow each other."""
    found = np.concatenate([np.empty(0, SCORED), *parts])
    return found[_contenders(found["score"], found["row"], k)]


def ranking(found: NDArray[Any], k: int) -> list[Candidate]:
    """The k best documents by their best windows: best first, of equal scores the one that came first."""
    rounded = found["score"].astype(np.float64).round(_DIGITS)
    order = np.lexsort((found["window"], -found["score"], found["row"], found["order"], -rounded))
    first = np.sort(np.unique(found["row"][order], return_index=True)[1])[:k]
    chosen = order[first]
    columns = found["row"][chosen], rounded[chosen], found["window"][chosen], found["order"][chosen]
    return [Candidate(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _contenders(scores: NDArray[np.float32], rows: Rows, k: int) -> NDArray[np.int64]:
    """Places of the windows that score as high as the best window of the k-th document, up to rounding."""
    if not len(rows):
        return np.empty(0, np.int64)
    first = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    best = scores if len(first) == len(rows) else np.maximum.reduceat(scores, first)
    least = -np.inf if k >= len(best) else np.partition(best, len(best) - k)[len(best) - k] - _ROUNDED
    return np.flatnonzero((scores >= least) & (scores > -np.inf))


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a moment; never changed, whatever the matrix gets later.

    Attributes:
        blocks: ``[n, L]`` each; all but the last are of one length.
        rows, windows: Of each window, as in `SCORED`, ``[N]``. Documents are in the order of their rows.
        scales: What the score of each is multiplied by, ``[N]``; None is 1.
        ends: The version from which on a window is not there, ``[N]``.
        version: Of the moment.
    """

    blocks: tuple[NDArray[Any], ...]
    rows: Rows
    windows: NDArray[np.int64]
    scales: NDArray[np.float32] | None
    ends: NDArray[np.int64]
    version: int

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which windows are there, ``[N]``."""
        return self.ends > self.version

    def at(self, start: int, stop: int) -> NDArray[Any]:
        """Some windows, ``[stop - start, L]``; a copy."""
        step = len(self.blocks[0]) if self.blocks else 1
        return np.stack([self.blocks[place // step][place % step] for place in range(start, stop)])

    def best(
        self, questions: int, k: int, allowed: Rows | None, score: Callable[[NDArray[Any]], NDArray[np.float32]],
        threads: int = 1,
    ) -> list[NDArray[Any]]:  # fmt: skip
        """The windows that may belong to the k best documents of each question.

        Args:
            questions: Q.
            k: Most documents.
            allowed: Rows that may be found; None means all.
            score: Scores ``[Q, n]`` of some windows ``[n, L]``.
            threads: That compare blocks at a time.
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
                # Rounding can push the product of two equal unit vectors past one.
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
    """Windows that come and end; nothing is moved, so that readers of an earlier version are not disturbed.

    Args:
        length: L.
        dtype: Of the numbers.
        scaled: Whether windows have scales.
    """

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
        """Add documents.

        Args:
            numbers: Of all their windows, ``[n, L]``.
            rows: Of the documents.
            counts: Windows of each document.
            scales: Of the windows.
        """
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
                self._blocks.append(np.empty(self._shape, self._dtype))  # room that the system gives when it is used
            part = numbers[place - new.start :][: step - offset]
            self._blocks[block][offset : offset + len(part)] = part
            place += len(part)
        self.used = stop

    def end(self, rows: Rows, version: int) -> None:
        """From a version on, documents are not there; `rows` ascend."""
        ends = self._ends[: self.used]
        ends[members(self._rows[: self.used], rows) & (ends == _NEVER)] = version

    def at(self, version: int) -> Windows:
        """What is there in a version, the last one."""
        used, step = self.used, self._shape[0]
        blocks = tuple(self._blocks[: used // step])
        if used % step:
            blocks = (*blocks, self._blocks[-1][: used % step])
        scales = self._scales[:used] if self._scaled else None
        return Windows(blocks, self._rows[:used], self._windows[:used], scales, self._ends[:used], version)


def window_numbers(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which window of its document each window is, from how many each document has."""
    numbers: NDArray[np.int64] = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return numbers


def _grown(values: NDArray[Any], needed: int) -> NDArray[Any]:
    """An array with room for so many values; the same one where it has it."""
    if needed <= len(values):
        return values
    grown = np.zeros(max(needed, 2 * len(values), 16), values.dtype)
    grown[: len(values)] = values
    return grown
