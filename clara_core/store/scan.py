"""Keys and words of a table in this process, kept up to date file by file.

A file of rows never changes, only which of its rows are alive; so a refresh reads new files, and nothing else.
Letters of shapes: Q questions, N windows, L numbers of a key, m candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clara_core.retrieval.bm25 import WordIndex
from clara_core.store.backend import Candidate, Rows
from clara_core.store.keys import Key
from clara_core.store.reading import batches, rows_at
from clara_core.store.records import unguarded
from clara_core.store.schema import Layout, number_rows, window_counts

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

Scores = NDArray[np.float32]

_PART: Final = 1 << 15  # keys that a thread compares before it takes the next ones
_BLOCK_BYTES: Final = 1 << 26  # of memories that keys are made from at a time
_NO_ROWS: Final[Rows] = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of a version of the table; never changed, only replaced.

    Attributes:
        keys: ``[N, L]``.
        rows: Number of the row of each window, ``[N]``; windows of a row lie side by side.
        alive: Which of them the version has, ``[N]``.
    """

    keys: NDArray[np.float16]
    rows: Rows
    alive: NDArray[np.bool_]

    def best(self, questions: Scores, m: int, allowed: Rows | None) -> list[Rows]:
        """The m rows with a window most like each question key ``[Q, L]``.

        Args:
            questions: Keys of questions.
            m: Most rows of a question.
            allowed: Rows that may be found; None means all.
        """
        mask = self.alive if allowed is None else self.alive & members(self.rows, allowed)
        chosen = None if mask.all() else np.flatnonzero(mask)
        total = len(self.rows) if chosen is None else len(chosen)

        def part(start: int) -> list[tuple[Scores, Rows]]:
            places = slice(start, min(start + _PART, total)) if chosen is None else chosen[start : start + _PART]
            rows = self.rows[places]
            scores = Key.scores(questions, self.keys[places])
            first = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
            if len(first) < len(rows):  # a row counts as its best window
                scores, rows = np.maximum.reduceat(scores, first, axis=1), rows[first]
            return [_top(own, rows, m) for own in scores]

        starts = range(0, total, _PART)
        if len(starts) > 1:
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                parts = list(pool.map(part, starts))
        else:
            parts = [part(start) for start in starts]
        return [_best_rows([each[index] for each in parts], m) for index in range(len(questions))]


def _top(scores: Scores, rows: Rows, m: int) -> tuple[Scores, Rows]:
    best = torch.from_numpy(scores).topk(min(m, len(scores))).indices.numpy()
    return scores[best], rows[best]


def _best_rows(parts: list[tuple[Scores, Rows]], m: int) -> Rows:
    """The m best rows of all parts; the windows of one may lie in two."""
    if not parts:
        return _NO_ROWS
    scores, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    ordered = rows[np.argsort(-scores, kind="stable")]
    if len(parts) > 1:
        ordered = ordered[np.sort(np.unique(ordered, return_index=True)[1])]
    best: Rows = ordered[:m]
    return best


class _Files:
    """Which rows of which files are here; says what has changed since."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[Rows, int]] = {}  # rows that are alive, and how many of the file are dead

    def gone(self, dataset: LanceDataset, fragments: dict[int, LanceFragment]) -> Rows:
        """Rows that were here and are not in a version of the table; forgets them."""
        gone = []
        for number, (rows, deletions) in list(self._files.items()):
            fragment = fragments.get(number)
            if fragment is None:
                del self._files[number]
                gone.append(rows)
            elif fragment.num_deletions != deletions:
                left = np.concatenate([_NO_ROWS, *_numbers(dataset, fragment)])
                kept = members(rows, left)
                self._files[number] = (left, fragment.num_deletions)
                gone.append(rows[~kept])
                if len(left) > kept.sum():  # an earlier version, in which more rows are alive: read it anew
                    del self._files[number]
                    gone.append(rows[kept])
        return np.concatenate([_NO_ROWS, *gone])

    def new(self, fragments: dict[int, LanceFragment]) -> list[LanceFragment]:
        """Files that are not here."""
        return [fragment for number, fragment in fragments.items() if number not in self._files]

    def read(self, fragment: LanceFragment, rows: Rows) -> None:
        """A file is here from now on."""
        self._files[fragment.fragment_id] = (rows, fragment.num_deletions)


def _numbers(dataset: LanceDataset, fragment: LanceFragment) -> list[Rows]:
    return [batch.column("_rowid").to_numpy() for batch in batches(dataset, [], fragments=[fragment])]


class KeyScan:
    """Gives the keys of a version; remembers those of the last one. Safe under threads."""

    _seen: tuple[int, int]  # version and settings of keys

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget(0)

    def at(self, dataset: LanceDataset, layout: Layout) -> Keys:
        """The keys of a version."""
        with self._lock:
            if self._seen != (dataset.version, layout.fit):
                if self._seen[1] != layout.fit:
                    self._forget(layout.key.length)
                try:
                    self._refresh(dataset, layout)
                except BaseException:
                    self._forget(layout.key.length)
                    raise
                self._seen = (dataset.version, layout.fit)
            return self._keys

    def _forget(self, length: int) -> None:
        self._files = _Files()
        self._used = 0
        self._store = np.empty((0, length), np.float16)  # [capacity, L]
        self._rows = np.empty(0, np.uint64)  # [capacity]
        self._keys = Keys(self._store, self._rows, np.empty(0, np.bool_))
        self._seen = (-1, 0)

    def _refresh(self, dataset: LanceDataset, layout: Layout) -> None:
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        alive = self._keys.alive
        if len(gone := np.sort(self._files.gone(dataset, fragments))):
            alive = alive & ~members(self._keys.rows, gone)
            if alive.sum() < self._used // 2:  # as after a compaction, which makes new files of everything
                self._forget(layout.key.length)
                alive = self._keys.alive
        for fragment in self._files.new(fragments):
            self._read(dataset, layout, fragment)
        alive = np.concatenate([alive, np.ones(self._used - len(alive), np.bool_)])
        self._keys = Keys(self._store[: self._used], self._rows[: self._used], alive)

    def _read(self, dataset: LanceDataset, layout: Layout, fragment: LanceFragment) -> None:
        rows: list[Rows] = []
        for batch in batches(dataset, ["key", "fit"], fragments=[fragment]):
            numbers = batch.column("_rowid").to_numpy()
            owners = np.repeat(numbers, window_counts(batch.column("key")))
            place = slice(self._used, self._used + len(owners))
            self._grow(len(owners))
            if len(owners):
                self._store[place], self._rows[place] = number_rows(batch.column("key")), owners
            other = numbers[batch.column("fit").to_numpy() != layout.fit]
            if len(other):
                self._store[place][members(owners, other)] = made_keys(dataset, layout, other)
            self._used = place.stop
            rows.append(numbers)
        self._files.read(fragment, np.concatenate([_NO_ROWS, *rows]))

    def _grow(self, added: int) -> None:
        """Room for more windows; readers keep the arrays that they have."""
        needed = self._used + added
        if needed <= len(self._rows):
            return
        capacity = max(needed, len(self._rows) * 5 // 4)
        store, rows = np.empty((capacity, self._store.shape[1]), np.float16), np.empty(capacity, np.uint64)
        store[: self._used], rows[: self._used] = self._store[: self._used], self._rows[: self._used]
        self._store, self._rows = store, rows


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a version of the table; never changed, only replaced.

    Attributes:
        index: Of them, by serial number: texts with equal scores are in the order in which they came.
        rows: Numbers of the rows, ascending.
        serials: Of each row.
    """

    index: WordIndex
    rows: Rows
    serials: Rows

    def search(self, words: Sequence[str], k: int, allowed: Rows | None) -> tuple[list[Candidate], float]:
        """The k rows that share words with a question, and what scores are measured by."""
        among = None if allowed is None else np.sort(self.serials[members(self.rows, np.sort(allowed))])
        found, unit = self.index.search(words, k, among)
        by_serial = np.argsort(self.serials)
        places = by_serial[
            np.searchsorted(self.serials[by_serial], np.array([serial for serial, _ in found], np.uint64))
        ]
        rows = self.rows[places].tolist()
        return [Candidate(row, score, 0, serial) for row, (serial, score) in zip(rows, found, strict=True)], unit


class WordScan:
    """Gives the words of a version; remembers those of the last one. Safe under threads."""

    _seen: int  # version
    _words: Words

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def at(self, dataset: LanceDataset) -> Words:
        """The words of a version."""
        with self._lock:
            if self._seen != dataset.version:
                try:
                    self._refresh(dataset)
                except BaseException:
                    self._forget()
                    raise
                self._seen = dataset.version
            return self._words

    def _forget(self) -> None:
        self._files, self._index, self._seen = _Files(), WordIndex(), -1
        self._words = Words(self._index, _NO_ROWS, _NO_ROWS)

    def _refresh(self, dataset: LanceDataset) -> None:
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        rows, serials = self._words.rows, self._words.serials
        if len(gone := np.sort(self._files.gone(dataset, fragments))):
            left = ~members(rows, gone)
            self._index.remove(serials[~left])
            rows, serials = rows[left], serials[left]
        for fragment in self._files.new(fragments):
            table = pa.Table.from_batches(batches(dataset, ["words", "serial"], fragments=[fragment]))
            numbers, own = table["_rowid"].to_numpy(), table["serial"].to_numpy()
            order = np.argsort(own, kind="stable")
            texts = table["words"].take(order).to_pylist()
            self._index.add(own[order], [unguarded(text).split(" ") if text else [] for text in texts])
            self._files.read(fragment, numbers)
            rows, serials = np.concatenate([rows, numbers]), np.concatenate([serials, own])
        order = np.argsort(rows)
        self._words = Words(self._index.snapshot(), rows[order], serials[order])


def members(rows: Rows, among: Rows) -> NDArray[np.bool_]:
    """Which rows are among others, which are ascending."""
    if not len(among):
        return np.zeros(len(rows), np.bool_)
    places = np.searchsorted(among, rows)
    places[places == len(among)] = 0
    found: NDArray[np.bool_] = among[places] == rows
    return found


def made_keys(dataset: LanceDataset, layout: Layout, rows: Rows) -> NDArray[np.float16]:
    """Keys of the windows of rows, ``[windows, L]``, by the settings of now, from their memories."""
    step = max(1, _BLOCK_BYTES // layout.codec.row_bytes)
    parts = [np.empty((0, layout.key.length), np.float16)]
    for start in range(0, len(rows), step):
        table = rows_at(dataset, rows[start : start + step], ["memory"])
        parts.append(layout.key.documents(layout.tokens(table["memory"])))
    return np.concatenate(parts)
