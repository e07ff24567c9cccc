"""Searches one version of a store on Lance: by keys and then exact cosines of the best, by all memories, or by words.

Dimensions: Q questions, D numbers of a memory, n windows, m candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import torch
from lance.query import MatchQuery
from numpy.typing import NDArray
from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.retrieval.bm25 import members
from clara_core.retrieval.ranking import unit_rows
from clara_core.retrieval.words import words_of
from clara_core.store.backend import Candidate, Matches, Rows, Space
from clara_core.store.keys import Key
from clara_core.store.lance_calls import scanner
from clara_core.store.maintenance import KEY_INDEX, WORD_INDEX, held, index_names, indexed_rows
from clara_core.store.predicate import passing
from clara_core.store.reading import batches, readable, rows_at, rows_with
from clara_core.store.records import Record, StoreStats, escape, unescape
from clara_core.store.scan import KeyScan, WordScan
from clara_core.store.schema import RECORD_COLUMNS, Layout, number_rows, records, window_counts
from clara_core.store.table import data_bytes
from clara_core.store.windows import merged, ranking, scored_windows, window_numbers

if TYPE_CHECKING:
    from lance import LanceDataset

_RECORDS: Final = 1024  # documents read at a time
_SERIALS: Final = 1 << 16  # serial numbers read at a time
_SERIAL_SCHEMA: Final = pa.schema([pa.field("serial", pa.uint64(), nullable=False), pa.field("_rowid", pa.uint64())])
_SCAN_BYTES: Final = 1 << 25  # bytes of memories read at a time
_NEAR_BYTES: Final = 1 << 21  # bytes of float32 memories compared at a time, so that they stay in the cache
_CANDIDATE_BYTES: Final = 1 << 22  # bytes of memories that are always compared: short ones cost little
# Partitions of the index that are searched. Of 100,000 synthetic keys of 1,024 numbers, 8 found 97 % of the best ten
# documents and 32 all of them, in the same time.
_PROBES: Final = 32
_TINY: Final = 1e-12  # the same as in torch's normalize


@dataclass(frozen=True, slots=True)
class LanceSnapshot:
    """A version of a table; see `clara_core.store.backend.Snapshot`.

    Attributes:
        dataset: The version.
        layout: Its layout.
        keys: Cache of keys.
        words: Cache of words.
    """

    dataset: LanceDataset
    layout: Layout
    keys: KeyScan
    words: WordScan

    @property
    def space(self) -> Space:
        return self.layout.space

    def stats(self) -> StoreStats:
        with readable(self.dataset):
            documents, size = int(self.dataset.count_rows()), data_bytes(self.dataset)
            return StoreStats(
                documents=documents,
                bytes=size,
                bytes_per_document=size / documents if documents else 0.0,
                fragments=len(self.dataset.get_fragments()),
                version=self.dataset.version,
                fingerprint=self.space.fingerprint,
                memory_type=self.space.memory_type,
                key_length=self.layout.key.length,
                word_index_rows=indexed_rows(self.dataset, WORD_INDEX),
                key_index_rows=indexed_rows(self.dataset, KEY_INDEX),
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

    def memories(self, ids: Sequence[str]) -> dict[str, Memory]:
        table = rows_with(self.dataset, "id", list(dict.fromkeys(ids)), [*RECORD_COLUMNS, "memory"])
        return dict(zip(map(unescape, table["id"].to_pylist()), self._memories(table), strict=True))

    def _memories(self, table: pa.Table) -> list[Memory]:
        if not table.num_rows:
            return []
        tokens = self.layout.tokens(table["memory"]).split(window_counts(table["memory"]).tolist())
        return [
            Memory(own, record.text, record.spans, record.source_tokens, self.space.fingerprint)
            for record, own in zip(records(table), tokens, strict=True)
        ]

    def with_contents(self, contents: Sequence[str]) -> dict[str, str]:
        rows = rows_with(self.dataset, "content", contents, ["id", "content"]).to_pylist()
        return {row["content"]: unescape(row["id"]) for row in rows}

    def __iter__(self) -> Iterator[Record]:
        with held(self.dataset):  # keeps maintenance from deleting these rows during the iteration
            table = pa.Table.from_batches(batches(self.dataset, ["serial"], batch_size=_SERIALS), _SERIAL_SCHEMA)
            rows = table["_rowid"].to_numpy()[np.argsort(table["serial"].to_numpy(), kind="stable")]
            for start in range(0, len(rows), _RECORDS):
                part = rows[start : start + _RECORDS]
                ascending = np.argsort(part)
                yield from records(rows_at(self.dataset, part[ascending], RECORD_COLUMNS).take(np.argsort(ascending)))

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
        if KEY_INDEX in index_names(self.dataset):
            candidates = [self._by_index(question, wanted, allowed) for question in queries]
        else:
            keys, threads = self.keys.at(self.dataset, self.layout), torch.get_num_threads()
            near = keys.best(len(queries), wanted, allowed, lambda block: Key.scores(queries, block), threads)
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
        if WORD_INDEX in index_names(self.dataset):
            return self._by_word_index(words_of(question), k, allowed)
        return Matches(*self.words.at(self.dataset).search(words_of(question), k, allowed))

    def _by_word_index(self, words: Sequence[str], k: int, allowed: Rows | None) -> Matches:
        """The same with the index over words, for stores too large to hold their words in this process."""
        different = list(dict.fromkeys(words))
        if not different or (allowed is not None and not len(allowed)):
            return Matches([], 0.0)
        total = self.count()
        unit = 0.0
        with readable(self.dataset):
            for word in different:
                having = scanner(self.dataset, [], None).full_text_search(MatchQuery(escape(word), "words"))
                df = having.to_scanner().to_table().num_rows
                unit += float(np.log(1 + (total - df + 0.5) / (df + 0.5)))
            query = MatchQuery(escape(" ".join(different)), "words")
            builder = scanner(self.dataset, ["_score", "serial"], allowed).limit(k).full_text_search(query)
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
