"""The keys of a table in one array of this process, kept up to date file by file.

A file of rows never changes, only which of its rows are alive; so a refresh reads new files, and nothing else.
Letters of shapes: Q questions, N rows, L numbers of a key, m candidates.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.store.keys import Key
from clara_core.store.reading import RowIds, batches, rows_at
from clara_core.store.schema import Layout, number_rows

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

Scores = NDArray[np.float32]

_PART: Final = 1 << 15  # keys that a thread compares before it takes the next ones
_BLOCK_BYTES: Final = 1 << 26  # of memories that keys are made from at a time


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

    def best(self, questions: Scores, m: int, allowed: RowIds | None) -> list[RowIds]:
        """Row ids of the m keys most like each question key ``[Q, L]``, best first.

        Args:
            questions: Keys of questions.
            m: Most candidates of a question.
            allowed: Rows that may be found, ascending; None means all.
        """
        mask = self.alive if allowed is None else self.alive & _members(self.rows, allowed)
        chosen = None if mask.all() else np.flatnonzero(mask)
        total = len(self.rows) if chosen is None else len(chosen)

        def part(start: int) -> tuple[Tensor, Tensor]:
            places = slice(start, min(start + _PART, total)) if chosen is None else chosen[start : start + _PART]
            scores = torch.from_numpy(Key.scores(questions, self.keys[places]))
            best = scores.topk(min(m, scores.shape[1]), dim=1)
            return best.values, best.indices + start if chosen is None else torch.from_numpy(places)[best.indices]

        starts = range(0, total, _PART)
        if len(starts) > 1:
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                parts = list(pool.map(part, starts))
        else:
            parts = [part(0)]
        scores, places = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :m]
        return [self.rows[row] for row in places.gather(1, order).numpy()]


@dataclass(slots=True)
class _File:
    """Where the rows of a file are in the arrays, and how many of them were dead when it was looked at last."""

    place: slice
    deletions: int


class KeyScan:
    """Gives the keys of a snapshot; remembers those of the last one. Safe under threads."""

    _keys: Keys
    _seen: tuple[int, int]  # version and settings of keys

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget(0)

    def at(self, dataset: LanceDataset, layout: Layout) -> Keys:
        """The keys of a snapshot."""
        with self._lock:
            if self._seen == (dataset.version, layout.fit):
                return self._keys
            fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
            dead = sum(f.place.stop - f.place.start for number, f in self._files.items() if number not in fragments)
            # Other settings, or a compaction, which makes new files of everything.
            if self._seen[1] != layout.fit or dead > self._used // 2:
                self._forget(layout.key.length)
            alive = self._still_alive(dataset, fragments)
            try:
                self._read(dataset, layout, [each for number, each in fragments.items() if number not in self._files])
            except BaseException:
                self._forget(layout.key.length)
                raise
            alive = np.concatenate([alive, np.ones(self._used - len(alive), np.bool_)])
            self._keys = Keys(self._store[: self._used], self._rows[: self._used], alive)
            self._seen = (dataset.version, layout.fit)
            return self._keys

    def _forget(self, length: int) -> None:
        self._files: dict[int, _File] = {}
        self._used = 0
        self._store = np.empty((0, length), np.float16)  # [capacity, L]
        self._rows = np.empty(0, np.uint64)  # [capacity]
        self._keys = Keys(self._store, self._rows, np.empty(0, np.bool_))
        self._seen = (-1, 0)

    def _still_alive(self, dataset: LanceDataset, fragments: dict[int, LanceFragment]) -> NDArray[np.bool_]:
        """Which of the rows that are here the snapshot has; forgets files that it has not."""
        alive = np.zeros(self._used, np.bool_)
        for number, file in list(self._files.items()):
            fragment = fragments.get(number)
            if fragment is None:
                del self._files[number]
                continue
            if fragment.num_deletions == file.deletions:
                alive[file.place] = self._keys.alive[file.place]
                continue
            left = dataset.scanner(columns=["window"], fragments=[fragment], with_row_id=True).to_table()["_rowid"]
            alive[file.place] = _members(self._rows[file.place], left.to_numpy())
            file.deletions = fragment.num_deletions
        return alive

    def _read(self, dataset: LanceDataset, layout: Layout, fragments: list[LanceFragment]) -> None:
        self._grow(sum(fragment.count_rows() for fragment in fragments))
        for fragment in fragments:
            start = self._used
            for batch in batches(dataset, ["key", "fit"], fragments=[fragment]):
                rows = batch.column("_rowid").to_numpy()
                place = slice(self._used, self._used + len(rows))
                self._store[place], self._rows[place] = number_rows(batch.column("key")), rows
                other = np.flatnonzero(batch.column("fit").to_numpy() != layout.fit)
                if len(other):
                    self._store[place.start + other] = made_keys(dataset, layout, rows[other])
                self._used = place.stop
            self._files[fragment.fragment_id] = _File(slice(start, self._used), fragment.num_deletions)

    def _grow(self, added: int) -> None:
        """Room for more rows; readers keep the arrays that they have."""
        needed = self._used + added
        if needed <= len(self._rows):
            return
        capacity = max(needed, len(self._rows) * 5 // 4)
        store, rows = np.empty((capacity, self._store.shape[1]), np.float16), np.empty(capacity, np.uint64)
        store[: self._used], rows[: self._used] = self._store[: self._used], self._rows[: self._used]
        self._store, self._rows = store, rows


def _members(rows: RowIds, among: RowIds) -> NDArray[np.bool_]:
    """Which rows are among others, which are ascending."""
    if not len(among):
        return np.zeros(len(rows), np.bool_)
    places = np.searchsorted(among, rows)
    places[places == len(among)] = 0
    found: NDArray[np.bool_] = among[places] == rows
    return found


def made_keys(dataset: LanceDataset, layout: Layout, rows: RowIds) -> NDArray[np.float16]:
    """Keys of rows ``[n, L]`` by the settings of now, from their memories."""
    step = max(1, _BLOCK_BYTES // layout.codec.row_bytes)
    parts = [
        layout.key.documents(layout.tokens(rows_at(dataset, rows[start : start + step], ["memory"])["memory"]))
        for start in range(0, len(rows), step)
    ]
    return np.concatenate(parts)
