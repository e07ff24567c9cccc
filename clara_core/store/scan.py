"""Keys and words of a table, cached in this process and updated file by file.

The rows of a file never change, only which of them are deleted, so an update reads only new files. L is the length of a
key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from lance import LanceDataset, LanceFragment
from numpy.typing import NDArray

from clara_core.retrieval.bm25 import WordIndex, members
from clara_core.store.backend import Candidate, Matches, Rows
from clara_core.store.records import unescape
from clara_core.store.schema import Layout, number_rows, window_counts
from clara_core.store.table import batches, rows_at
from clara_core.store.windows import WindowMatrix, Windows

_BLOCK_BYTES: Final = 1 << 26  # bytes of memories that keys are computed from at a time
_NO_ROWS: Final[Rows] = np.empty(0, np.uint64)


class _Files:
    """The files and rows that are in a cache."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[Rows, int]] = {}  # rows that are not deleted, and how many of the file are deleted

    def follow(
        self, dataset: LanceDataset, remove: Callable[[Rows], None], read: Callable[[LanceFragment], Rows]
    ) -> None:
        """Update a cache to a version of the table.

        `remove` takes rows out of the cache, ascending; `read` puts those of a file in and returns their numbers.
        """
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        gone = [_NO_ROWS]
        for number, (rows, deletions) in list(self._files.items()):
            fragment = fragments.get(number)
            if fragment is None:
                del self._files[number]
                gone.append(rows)
            elif fragment.num_deletions != deletions:
                there = batches(dataset, [], fragments=[fragment])
                left = np.concatenate([_NO_ROWS, *(batch.column("_rowid").to_numpy() for batch in there)])
                kept = members(rows, left)
                self._files[number] = (left, fragment.num_deletions)
                gone.append(rows[~kept])
                if len(left) > kept.sum():  # an earlier version with fewer deleted rows: read the file again
                    del self._files[number]
                    gone.append(rows[kept])
        if any(map(len, gone)):
            remove(np.sort(np.concatenate(gone)))
        for number, fragment in fragments.items():
            if number not in self._files:
                self._files[number] = (read(fragment), fragment.num_deletions)


class KeyScan:
    """Reads the keys of a version and caches those of the last one. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = (-1, 0)  # version of the table and of the key settings

    def at(self, dataset: LanceDataset, layout: Layout) -> Windows:
        """The keys of a version."""
        with self._lock:
            if self._seen != (dataset.version, layout.key_version):
                if self._seen[1] != layout.key_version:
                    self._files, self._matrix = _Files(), WindowMatrix(layout.key.length, np.float16, scaled=False)
                self._seen = (-1, 0)  # unless the update succeeds, all is read again
                self._files.follow(dataset, self._matrix.remove, partial(self._read, dataset, layout))
                self._keys = self._matrix.snapshot()
                self._seen = (dataset.version, layout.key_version)
            return self._keys

    def _read(self, dataset: LanceDataset, layout: Layout, fragment: LanceFragment) -> Rows:
        rows = [_NO_ROWS]
        for batch in batches(dataset, ["key", "key_version"], fragments=[fragment]):
            numbers, counts = batch.column("_rowid").to_numpy(), window_counts(batch.column("key"))
            keys = number_rows(batch.column("key"))
            other = numbers[batch.column("key_version").to_numpy() != layout.key_version]
            if len(other):
                keys = keys.copy()
                keys[members(np.repeat(numbers, counts), other)] = made_keys(dataset, layout, other)
            self._matrix.add(keys, numbers, counts)
            rows.append(numbers)
        return np.concatenate(rows)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a version of the table. Immutable."""

    index: WordIndex  # by serial number, so that texts with equal scores are in the order of adding
    serials: Rows  # of each row, ascending
    rows: Rows

    def search(self, terms: Mapping[str, float], k: int, allowed: Rows | None) -> Matches:
        """The k best rows that have some words, which are weighted."""
        among = None if allowed is None else self.serials[members(self.rows, allowed)]
        found, unit = self.index.search(terms, k, among)
        rows = self.rows[np.searchsorted(self.serials, np.array([serial for serial, _ in found], np.uint64))].tolist()
        candidates = [Candidate(row, score, 0, serial) for row, (serial, score) in zip(rows, found, strict=True)]
        return Matches(candidates, unit)


class WordScan:
    """Reads the words of a version and caches those of the last one. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = -1  # version of the table

    def at(self, dataset: LanceDataset) -> Words:
        """The words of a version."""
        with self._lock:
            if self._seen != dataset.version:
                if self._seen < 0:
                    self._files, self._index, self._rows, self._serials = _Files(), WordIndex(), _NO_ROWS, _NO_ROWS
                self._seen = -1  # unless the update succeeds, all is read again
                self._files.follow(dataset, self._remove, partial(self._read, dataset))
                order = np.argsort(self._serials)
                self._words = Words(self._index.snapshot(), self._serials[order], self._rows[order])
                self._seen = dataset.version
            return self._words

    def _remove(self, rows: Rows) -> None:
        left = ~members(self._rows, rows)
        self._index.remove(self._serials[~left])
        self._rows, self._serials = self._rows[left], self._serials[left]

    def _read(self, dataset: LanceDataset, fragment: LanceFragment) -> Rows:
        table = pa.Table.from_batches(batches(dataset, ["words", "serial"], fragments=[fragment]))
        rows: Rows = table["_rowid"].to_numpy()
        serials = table["serial"].to_numpy()
        order = np.argsort(serials, kind="stable")
        texts = table["words"].take(order).to_pylist()
        self._index.add(serials[order], [unescape(text).split(" ") if text else [] for text in texts])
        self._rows, self._serials = np.concatenate([self._rows, rows]), np.concatenate([self._serials, serials])
        return rows


def made_keys(dataset: LanceDataset, layout: Layout, rows: Rows) -> NDArray[np.float16]:
    """Keys of the windows of rows, ``[windows, L]``, computed from their memories with the present settings."""
    step = max(1, _BLOCK_BYTES // layout.codec.row_bytes)
    parts = [np.empty((0, layout.key.length), np.float16)]
    for start in range(0, len(rows), step):
        table = rows_at(dataset, rows[start : start + step], ["memory"])
        parts.append(layout.key.documents(layout.tokens(table["memory"])))
    return np.concatenate(parts)
