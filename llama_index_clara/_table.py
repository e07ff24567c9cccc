"""Nodes with their vectors in this process's memory: what a `ClaraVectorStore` stands on.

A node has one row for each window of its memory, and its score is that of its best row. Rows lie in blocks that are
never moved, so that adding takes no more memory than what is added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NoReturn

import numpy as np
from llama_index.core.schema import BaseNode
from numpy.typing import NDArray

from llama_index_clara._text_search import TextSearch
from llama_index_clara._vectors import Array

_BLOCK_BYTES = 1 << 24


class BadVector(ValueError):
    """A vector that has no direction."""


@dataclass(slots=True)
class Entry:
    """A stored node.

    Attributes:
        node: A copy without embedding.
        text: What was compressed, or would be.
        metadata: As filters see it.
        spans: Character spans of the windows; None where the vector is not known to be the text's memory.
        source_tokens: Text tokens that the windows stand for.
        rows: Where its vectors are.
    """

    node: BaseNode
    text: str
    metadata: dict[str, Any]
    spans: tuple[tuple[int, int], ...] | None = None
    source_tokens: int = 0
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows in the order of entries: what a search needs of them at once."""

    ids: list[str]
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]


class Table:
    """Entries by id. Safe under threads; copies are the object itself.

    Args:
        measure: Says how many numbers a vector has; asked at first use.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self.lock = threading.RLock()
        self._measure = measure
        self.clear()

    @cached_property
    def length(self) -> int:
        """Numbers of a vector."""
        return self._measure()

    @cached_property
    def _per_block(self) -> int:
        """Rows of a block."""
        return max(1, _BLOCK_BYTES // (4 * self.length))

    def __copy__(self) -> Table:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClaraVectorStore lives in its process and is not pickled; use persist and from_persist_dir")

    def __len__(self) -> int:
        return len(self._entries)

    # --- writing -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._blocks: list[Array] = []
            self._scales = np.zeros(0, np.float32)  # 1 / length of each row
            self._free: list[int] = []
            self._end = 0
            self._entries: dict[str, Entry] = {}
            self._text_search = TextSearch()
            self._layout: _Layout | None = None

    def stage(self, vectors: Array) -> list[int]:
        """Copy vectors ``[W, length]`` into rows that nothing refers to yet.

        Raises:
            BadVector: One is not finite, or zero.
        """
        lengths = np.linalg.norm(vectors.astype(np.float64, copy=False), axis=1)
        if not np.isfinite(lengths).all():
            raise BadVector("its vector holds NaN or infinity, or numbers too large for float32")
        if not lengths.all():
            raise BadVector("its vector is zero, which points nowhere")
        with self.lock:
            rows = [self._free.pop() if self._free else self._grown() for _ in range(len(vectors))]
            for row, vector, length in zip(rows, vectors, lengths, strict=True):
                self._row(row)[:] = vector
                self._scales[row] = 1 / length
            return rows

    def commit(self, entries: Sequence[tuple[str, Entry]]) -> None:
        """Let entries with staged rows be found; one whose id is here takes the other's place."""
        with self.lock:
            for id_, entry in entries:
                if id_ in self._entries:
                    self.release(self._entries[id_].rows)
                self._entries[id_] = entry
                self._text_search.put(id_, entry.text)
            self._layout = None

    def release(self, rows: Iterable[int]) -> None:
        """Give back rows that nothing refers to any more."""
        with self.lock:
            self._free.extend(rows)

    def remove(self, ids: Iterable[str]) -> None:
        """Forget entries; unknown ids are nothing to do."""
        with self.lock:
            for id_ in ids:
                entry = self._entries.pop(id_, None)
                if entry is not None:
                    self.release(entry.rows)
                    self._text_search.remove(id_)
            self._layout = None

    def _grown(self) -> int:
        if self._end == len(self._blocks) * self._per_block:
            self._blocks.append(np.empty((self._per_block, self.length), np.float32))
            self._scales = np.concatenate([self._scales, np.zeros(self._per_block, np.float32)])
        self._end += 1
        return self._end - 1

    def _row(self, row: int) -> Array:
        vector: Array = self._blocks[row // self._per_block][row % self._per_block]
        return vector

    # --- reading -----------------------------------------------------------------------------------------

    @contextmanager
    def entries(self) -> Iterator[dict[str, Entry]]:
        """All entries, while nobody else writes; not to be changed."""
        with self.lock:
            yield self._entries

    def vectors(self, entry: Entry) -> Array:
        """A copy of the vectors of an entry, ``[W, length]``."""
        with self.lock:
            return np.stack([self._row(row) for row in entry.rows])

    def nearest(self, question: Array, allowed: set[str] | None, k: int) -> list[tuple[str, float]]:
        """Ids by the cosine of their best row with ``question [length]``, best first; equals in order of arrival."""
        with self.lock:
            layout = self._laid_out()
            if not layout.ids:
                return []
            scores = np.maximum.reduceat(self._cosines(question)[layout.rows], layout.starts)
        order = np.argsort(-scores, kind="stable")
        found = ((layout.ids[index], float(scores[index])) for index in order)
        kept = (pair for pair in found if allowed is None or pair[0] in allowed)
        return list(islice(kept, k))

    def diverse(self, question: Array, allowed: set[str] | None, k: int, balance: float) -> list[tuple[str, float]]:
        """Maximal marginal relevance by the rule of LlamaIndex: what is new against the one chosen last.

        Scores are ``balance * cosine - (1 - balance) * overlap`` at the time of the choice. An entry is compared by
        the row that answers the question best.
        """
        with self.lock:
            layout = self._laid_out()
            if not layout.ids:
                return []
            cosines = self._cosines(question)
            ends = np.append(layout.starts[1:], len(layout.rows))
            spans = [layout.rows[start:end] for start, end in zip(layout.starts, ends, strict=True)]
            best = np.array([rows[cosines[rows].argmax()] for rows in spans])
            relevance = balance * cosines[best].astype(np.float64)
            open_ = np.array([allowed is None or id_ in allowed for id_ in layout.ids])
            gain = relevance
            chosen: list[tuple[str, float]] = []
            for _ in range(min(k, int(open_.sum()))):
                index = int(np.where(open_, gain, -np.inf).argmax())
                chosen.append((layout.ids[index], float(gain[index])))
                open_[index] = False
                gain = relevance - (1 - balance) * self._cosines(self._row(best[index]))[best]
            return chosen

    def matching(self, question: str, allowed: set[str] | None, k: int) -> list[tuple[str, float]]:
        """Ids by the words they share with the question, best first."""
        with self.lock:
            return self._text_search.search(question, allowed, k)

    def _cosines(self, question: Array) -> Array:
        """Cosine of a vector with every row, used or not."""
        n = self._per_block
        products = [block[: self._end - at * n] @ question for at, block in enumerate(self._blocks)]
        # Rounding can push the product of two equal unit vectors past one.
        cosines: Array = np.concatenate(products) * self._scales[: self._end] / np.linalg.norm(question)
        return cosines.clip(-1.0, 1.0)

    def _laid_out(self) -> _Layout:
        if self._layout is None:
            rows = [entry.rows for entry in self._entries.values()]
            counts = np.array([len(each) for each in rows], np.int64)
            starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])[: len(rows)]
            self._layout = _Layout(list(self._entries), np.array([row for each in rows for row in each], int), starts)
        return self._layout
