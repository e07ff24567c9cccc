"""The backend on a Lance table, in a folder or at an address of an object store.

A version of the table is searched by keys and then by exact cosines of the best, by all memories, or by words.

Dimensions: Q questions, D numbers of a memory, n windows, m candidates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import torch
from lance import LanceDataset
from lance.query import BooleanQuery, MatchQuery, Occur
from numpy.typing import NDArray
from torch import Tensor

from clara_core.common.errors import StoreError
from clara_core.data.memory import Memory
from clara_core.retrieval.bm25 import members, word_weight
from clara_core.retrieval.ranking import unit_rows
from clara_core.retrieval.thesaurus import search_terms
from clara_core.store import integrity, maintenance
from clara_core.store.backend import Candidate, Entry, Matches, Report, Rows, Space
from clara_core.store.codec import MemoryType
from clara_core.store.keys import Key
from clara_core.store.maintenance import KEY_INDEX, WORD_INDEX, held, indexed_rows
from clara_core.store.predicate import passing
from clara_core.store.records import Broken, Record, StoreStats, escape, unescape
from clara_core.store.scan import KeyScan, WordScan
from clara_core.store.schema import FIT_ROWS, RECORD_COLUMNS, Layout, Serials, number_rows, records, window_counts
from clara_core.store.table import Table, batches, data_bytes, readable, rows_at, rows_with, scanner
from clara_core.store.windows import merged, ranking, scored_windows, window_numbers

_RECORDS: Final = 1024  # documents read at a time
_SCAN_BYTES: Final = 1 << 25  # bytes of memories read at a time
_NEAR_BYTES: Final = 1 << 21  # bytes of float32 memories compared at a time, so that they stay in the cache
_CANDIDATE_BYTES: Final = 1 << 22  # bytes of memories that are always compared: short ones cost little
# Partitions of the index that are searched. Of 100,000 synthetic keys of 1,024 numbers, 8 found 97 % of the best ten
# documents and 32 all of them, in the same time.
_PROBES: Final = 32
_TINY: Final = 1e-12  # the same as in torch's normalize

_SERIALS: Final = Serials()


@dataclass(frozen=True, slots=True)
class LanceSnapshot:
    """A version of a table; see `clara_core.store.backend.Snapshot`."""

    dataset: LanceDataset
    layout: Layout
    keys: KeyScan  # caches of all versions
    words: WordScan

    @property
    def space(self) -> Space:
        return self.layout.space

    def stats(self) -> StoreStats:
        with readable(self.dataset):
            fragments, indexed = self.dataset.get_fragments(), indexed_rows(self.dataset)
            documents, size = int(self.dataset.count_rows()), data_bytes(fragments)
            return StoreStats(
                documents=documents,
                bytes=size,
                bytes_per_document=size / documents if documents else 0.0,
                fragments=len(fragments),
                version=self.dataset.version,
                fingerprint=self.space.fingerprint,
                memory_type=self.space.memory_type,
                key_length=self.layout.key.length,
                word_index_rows=indexed.get(WORD_INDEX),
                key_index_rows=indexed.get(KEY_INDEX),
            )

    # --- documents ---------------------------------------------------------------------------------------

    def count(self) -> int:
        with readable(self.dataset):
            return int(self.dataset.count_rows())

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        with readable(self.dataset):
            rows: Rows = np.sort(passing(self.dataset, condition, [])["_rowid"].to_numpy())
        return rows

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        return {record.id: record for record in records(rows_with(self.dataset, "id", ids, RECORD_COLUMNS))}

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        rows = rows_with(self.dataset, "id", ids, ["id", "content", "metadata"]).to_pylist()
        return {unescape(row["id"]): (row["content"], row["metadata"]) for row in rows}

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        table = rows_at(self.dataset, rows, [*RECORD_COLUMNS, "memory"] if with_memories else RECORD_COLUMNS)
        memories = self._memories(table) if with_memories else [None] * table.num_rows
        return dict(zip(table["_rowid"].to_pylist(), zip(records(table), memories, strict=True), strict=True))

    def memories(self, names: Sequence[str], by: Literal["id", "content"] = "id") -> dict[str, Memory]:
        if by == "content":  # several documents may have it, and the memory of one is enough
            rows = rows_with(self.dataset, by, names, [by, "id"]).to_pylist()
            ids = {row["content"]: unescape(row["id"]) for row in rows}
            found = self.memories(list(ids.values()))
            return {content: found[id_] for content, id_ in ids.items()}
        table = rows_with(self.dataset, "id", names, [*RECORD_COLUMNS, "memory"])
        return dict(zip(map(unescape, table["id"].to_pylist()), self._memories(table), strict=True))

    def _memories(self, table: pa.Table) -> list[Memory]:
        if not table.num_rows:
            return []
        tokens = self.layout.tokens(table["memory"]).split(window_counts(table["memory"]).tolist())
        return [
            Memory(own, record.text, record.spans, record.source_tokens, self.space.fingerprint)
            for record, own in zip(records(table), tokens, strict=True)
        ]

    def __iter__(self) -> Iterator[Record]:
        with held(self.dataset):  # keeps maintenance from deleting these rows during the iteration
            with readable(self.dataset):
                table = self.dataset.to_table(columns=["serial"], with_row_id=True)
            rows = table.sort_by("serial")["_rowid"].to_numpy()
            for start in range(0, len(rows), _RECORDS):
                part = rows[start : start + _RECORDS]
                there = self.at_rows(np.sort(part), with_memories=False)
                yield from (there[row][0] for row in part.tolist())

    # --- by memory ---------------------------------------------------------------------------------------

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:
        units, total = unit_rows(questions), self.count() if allowed is None else len(allowed)
        wanted = max(oversample * k, _CANDIDATE_BYTES // self.layout.codec.row_bytes)
        if not total:
            return [[] for _ in questions]
        if exact or total <= wanted:
            return self._ranked(units, k, allowed, None)
        queries = self.layout.key.questions(questions)  # [Q, L]
        if KEY_INDEX in indexed_rows(self.dataset):
            candidates = [self._by_index(question, wanted, allowed) for question in queries]
        else:
            keys = self.keys.at(self.dataset, self.layout)
            near = keys.best(len(queries), wanted, allowed, lambda block: Key.scores(queries, block))
            candidates = [np.unique(own["row"]) for own in near]
        return self._ranked(units, k, np.unique(np.concatenate(candidates)), candidates)

    def _by_index(self, question: NDArray[np.float32], m: int, allowed: Rows | None) -> Rows:
        """Candidates from the index over the keys; rows that it does not cover are scanned."""
        builder = scanner(self.dataset, ["_distance"], allowed)
        # Keys are unit vectors, so their product is the cosine.
        builder = builder.nearest("key", question.astype(np.float16), k=m, metric="cosine", nprobes=_PROBES)
        with readable(self.dataset):
            rows: Rows = builder.to_scanner().to_table()["_rowid"].to_numpy()
        return rows

    def _ranked(
        self, units: Tensor, k: int, rows: Rows | None, candidates: Sequence[Rows] | None
    ) -> list[list[Candidate]]:
        """The best of some rows by exact cosine, in bounded memory; each question may have its own candidates."""
        step = max(1, _SCAN_BYTES // self.layout.codec.row_bytes)
        columns = ["memory", "serial"]
        tables: Iterable[pa.Table | pa.RecordBatch] = batches(self.dataset, columns, rows, step)
        if rows is not None and candidates is not None:  # few rows: read by number, not by a scan
            tables = (rows_at(self.dataset, rows[at : at + step], columns) for at in range(0, len(rows), step))
        best = [merged([], k) for _ in units]
        for table in tables:
            counts = window_counts(table.column("memory"))
            owners, serials = (np.repeat(table.column(name).to_numpy(), counts) for name in ("_rowid", "serial"))
            scores = cosines(units, self.layout, table.column("memory")).numpy()  # [Q, n]
            if candidates is not None and len(candidates) > 1:
                scores[~np.stack([members(owners, own) for own in candidates])] = -np.inf
            found = scored_windows(scores, owners, serials, window_numbers(counts), k)
            best = [merged(parts, k) for parts in zip(best, found, strict=True)]
        return [ranking(own, k) for own in best]

    def windows(self, candidates: Sequence[Candidate]) -> Tensor:
        table = rows_at(self.dataset, np.unique(np.array([each.row for each in candidates], np.uint64)), ["memory"])
        counts = window_counts(table["memory"])
        start = dict(zip(table["_rowid"].to_pylist(), (counts.cumsum() - counts).tolist(), strict=True))
        tokens = self.layout.tokens(table["memory"]).flatten(1)
        return tokens[[start[each.row] + each.window for each in candidates]]

    # --- by words ----------------------------------------------------------------------------------------

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        terms = search_terms(question)
        if WORD_INDEX in indexed_rows(self.dataset):
            return self._by_word_index(terms, k, allowed)
        return self.words.at(self.dataset).search(terms, k, allowed)

    def _by_word_index(self, terms: Mapping[str, float], k: int, allowed: Rows | None) -> Matches:
        """The same with the index over words, for stores too large to hold their words in this process."""
        if not terms or (allowed is not None and not len(allowed)):
            return Matches([], 0.0)
        total = self.count()
        unit = 0.0
        with readable(self.dataset):
            for word in (word for word, factor in terms.items() if factor == 1):
                having = scanner(self.dataset, [], None).full_text_search(MatchQuery(escape(word), "words"))
                df = having.to_scanner().to_table().num_rows
                unit += word_weight(total, df)
            any_of = BooleanQuery(
                [(Occur.SHOULD, MatchQuery(escape(word), "words", boost=factor)) for word, factor in terms.items()]
            )
            builder = scanner(self.dataset, ["_score", "serial"], allowed).limit(k).full_text_search(any_of)
            table = builder.to_scanner().to_table()
        columns = [table[name].to_pylist() for name in ("_rowid", "_score", "serial")]
        found = [Candidate(row, score, 0, serial) for row, score, serial in zip(*columns, strict=True)]
        return Matches(sorted(found, key=lambda each: (-each.score, each.order, each.row)), unit)


def cosines(units: Tensor, layout: Layout, memory: pa.Array | pa.ChunkedArray) -> Tensor:
    """Cosines in float32 of unit vectors ``[Q, D]`` with windows, from the column of their bytes: ``[Q, n]``.

    Equal to `clara_core.retrieval.ranking.window_scores`, in pieces that stay in the processor's cache.
    """
    rows = number_rows(memory)  # [n, bytes]
    scores = torch.empty(len(units), len(rows))
    step = max(1, _NEAR_BYTES // (4 * units.shape[1]), len(units))
    for start in range(0, len(rows), step):
        windows = layout.codec.decode(rows[start : start + step], layout.dtype).flatten(1).float()
        lengths = torch.linalg.vector_norm(windows, dim=1).clamp_min(_TINY)
        scores[:, start : start + step] = (units @ windows.T) / lengths
    # Rounding can make the product of two equal unit vectors exceed one.
    return scores.clamp_(-1.0, 1.0)


class OnLance:
    """The backend on a Lance table; see `clara_core.store.backend.Backend` and, for its options, `MemoryStore.open`.

    A pickle contains only its address and settings.

    Raises:
        StoreError: The address holds something other than a store, or cannot be read.
    """

    def __init__(
        self, uri: str, memory_type: MemoryType, key_length: int, storage_options: dict[str, str] | None = None
    ) -> None:
        self._settings = memory_type, key_length
        self._open(uri, storage_options)
        self.latest()

    def _open(self, uri: str, storage_options: dict[str, str] | None) -> None:
        self._pid, self._opened = os.getpid(), Table(uri, storage_options)
        self._maintenance = maintenance.Maintenance(self._opened)
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return OnLance, (self.uri, *self._settings, self._opened.storage_options)

    @property
    def uri(self) -> str:
        return self._opened.uri

    @property
    def _table(self) -> Table:
        """The table. A forked child opens it again, since locks of other threads of its parent are never released."""
        if self._pid != os.getpid():
            self._open(self.uri, self._opened.storage_options)
        return self._opened

    def latest(self) -> LanceSnapshot | None:
        if (dataset := self._table.latest()) is None:
            return None
        return LanceSnapshot(dataset, Layout.of(dataset.schema, self.uri), self._keys, self._words)

    # --- writing -----------------------------------------------------------------------------------------

    def put(self, entries: Sequence[Entry]) -> None:
        if (dataset := self._table.latest()) is None:
            memories = [entry.memory for entry in entries]
            memory_type, key_length = self._settings
            space = Space.of(memories[0], memory_type)
            space.check(entries, self.uri)
            dataset = self._table.create(Layout.new(space, key_length, memories).schema)
        layout = Layout.of(dataset.schema, self.uri)
        layout.space.check(entries, self.uri)
        self._table.merge(pa.Table.from_batches([layout.rows(entries, _SERIALS.take(len(entries)))]))
        self._maintenance.committed()
        if layout.fitted_to < FIT_ROWS:
            maintenance.refit(self._table)

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        if (dataset := self._table.latest()) is None:
            return 0
        chosen = None if ids is None else set(map(escape, ids))
        if condition:
            with readable(dataset):
                passes = set(passing(dataset, condition, ["id"])["id"].to_pylist())
            chosen = passes if chosen is None else chosen & passes
        if chosen is None:
            count = self._table.remove_where("true")
        else:
            count = self._table.remove(pa.table({"id": list(chosen)})) if chosen else 0
        if count:
            self._maintenance.committed()
        return count

    # --- maintenance -------------------------------------------------------------------------------------

    def compact(self, older_than: timedelta) -> None:
        table = self._table  # first, since a forked child makes its own maintenance, too
        self._maintenance.wait()
        maintenance.compact(table, older_than)

    def optimize(self, report: Report) -> None:
        report("keys", 0, 0)
        maintenance.refit(self._table)
        maintenance.rewrite_keys(self._table, lambda done: report("keys", done, 0))
        maintenance.build_indexes(self._table, report)

    def check(self, report: Report) -> list[Broken]:
        dataset = self._table.latest()
        return [] if dataset is None else integrity.broken_files(dataset, report)

    def salvage(self, report: Report) -> list[Broken]:
        return integrity.salvage(self._table, report)

    def explain(self, error: BaseException) -> StoreError | None:
        return integrity.meaning(self._table, error)

    def close(self) -> None:
        self._keys, self._words = KeyScan(), WordScan()
