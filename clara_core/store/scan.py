"""The keys of a table in one array of this process, kept up to date file by file.

A file of rows never changes, only which of its rows are alive; so a refresh reads new files, and nothing else.
Letters of shapes: Q questions, N rows, L numbers of a key, m candidates.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clara_core.store.keys import Key
from clara_core.store.reading import RowIds
from clara_core.store.schema import number_rows

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

Scores = NDArray[np.float32]

_BLOCK_NUMBERS: Final = 1 << 24  # of keys that are compared at a time


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of a snapshot; never changed, only replaced.

    Attributes:
        keys: ``[N, L]``.
        rows: Row ids, ``[N]``.
        alive: Which of them the snapshot has, ``[N]``.
    """

    keys: NDArray[np.float16]
    rows: RowIds
    alive: NDArray[np.bool_]

    def best(self, key: Key, questions: Scores, m: int, allowed: RowIds | None) -> list[RowIds]:
        """Row ids of the m keys most like each question key ``[Q, L]``, best first.

        Args:
            key: Compares.
            questions: Keys of questions.
            m: Most candidates of a question.
            allowed: Rows that may be found; None means all.
        """
        mask = self.alive if allowed is None else self.alive & np.isin(self.rows, allowed)
        chosen = np.flatnonzero(mask) if not mask.all() else None
        total = len(self.rows) if chosen is None else len(chosen)
        step = max(1, _BLOCK_NUMBERS // self.keys.shape[1])
        scores = np.empty((len(questions), 0), np.float32)  # of the best so far, [Q, <= m]
        places = np.empty((len(questions), 0), np.int64)
        for start in range(0, total, step):
            stop = min(start + step, total)
            block = slice(start, stop) if chosen is None else chosen[start:stop]
            here = np.arange(start, stop) if chosen is None else chosen[start:stop]
            scores = np.concatenate([scores, key.scores(questions, self.keys[block])], axis=1)
            places = np.concatenate([places, np.broadcast_to(here, (len(questions), len(here)))], axis=1)
            if scores.shape[1] > m:
                kept = np.argpartition(-scores, m - 1, axis=1)[:, :m]
                scores, places = np.take_along_axis(scores, kept, 1), np.take_along_axis(places, kept, 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        return [self.rows[row] for row in np.take_along_axis(places, order, 1)]


@dataclass(slots=True)
class _File:
    """Where the rows of a file are in the arrays."""

    start: int
    stop: int
    deletions: int


@dataclass(slots=True)
class KeyScan:
    """Keeps `Keys` of the latest snapshot that was asked for. Safe under threads."""

    _keys: Keys | None = None
    _used: int = 0
    _files: dict[int, _File] = field(default_factory=dict)
    _store: NDArray[np.float16] | None = None  # [capacity, L]
    _rows: RowIds | None = None  # [capacity]
    _version: int = -1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, dataset: LanceDataset) -> Keys:
        """The keys of a snapshot."""
        with self._lock:
            if self._keys is None or self._version != dataset.version:
                self._refresh(dataset)
            assert self._keys is not None
            return self._keys

    def _refresh(self, dataset: LanceDataset) -> None:
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        gone = [number for number in self._files if number not in fragments]
        dead = sum(self._files[number].stop - self._files[number].start for number in gone)
        if dead > self._used // 2:  # after a compaction, nearly all of it
            self._files, self._used, self._store, self._rows, gone = {}, 0, None, None, []
        alive = np.zeros(self._used, np.bool_)
        new = [fragment for number, fragment in fragments.items() if number not in self._files]
        for number, place in self._files.items():
            if number in fragments:
                alive[place.start : place.stop] = self._alive(dataset, fragments[number], place)
        for number in gone:
            del self._files[number]
        self._read(dataset, new)
        added = self._used - len(alive)
        alive = np.concatenate([alive, np.ones(added, np.bool_)])
        assert self._store is not None
        assert self._rows is not None
        self._keys = Keys(self._store[: self._used], self._rows[: self._used], alive)
        self._version = dataset.version

    def _alive(self, dataset: LanceDataset, fragment: LanceFragment, place: _File) -> NDArray[np.bool_] | bool:
        if fragment.num_deletions == place.deletions and self._keys is not None:
            return self._keys.alive[place.start : place.stop]
        assert self._rows is not None
        left = dataset.scanner(columns=["window"], fragments=[fragment], with_row_id=True).to_table()["_rowid"]
        return np.isin(self._rows[place.start : place.stop], left.to_numpy())

    def _read(self, dataset: LanceDataset, fragments: list[LanceFragment]) -> None:
        length = dataset.schema.field("key").type.list_size
        self._grow(sum(fragment.count_rows() for fragment in fragments), length)
        assert self._store is not None
        assert self._rows is not None
        for fragment in fragments:
            start = self._used
            scanner = dataset.scanner(columns=["key"], fragments=[fragment], with_row_id=True, scan_in_order=True)
            for batch in scanner.to_batches():
                stop = self._used + batch.num_rows
                self._store[self._used : stop] = number_rows(batch.column("key"))
                self._rows[self._used : stop] = batch.column("_rowid").to_numpy()
                self._used = stop
            self._files[fragment.fragment_id] = _File(start, self._used, fragment.num_deletions)

    def _grow(self, added: int, length: int) -> None:
        """Room for more rows; readers keep the arrays that they have."""
        needed = self._used + added
        if self._store is not None and self._rows is not None and needed <= len(self._store):
            return
        capacity = needed if self._store is None else max(needed, len(self._store) * 5 // 4)
        store, rows = np.empty((capacity, length), np.float16), np.empty(capacity, np.uint64)
        if self._store is not None and self._rows is not None:
            store[: self._used], rows[: self._used] = self._store[: self._used], self._rows[: self._used]
        self._store, self._rows = store, rows
