"""Questions to documents: keys first, then the exact cosine of the best; or everything; or words.

A document's score is that of its best window. Letters of shapes: Q questions, D numbers of a memory, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from lance.query import MatchQuery
from torch import Tensor

from clara_core.ranking import fuse_ranks, unit_rows
from clara_core.store.reading import RowIds, batches, rows_at, rows_with
from clara_core.store.records import Hit, unguarded
from clara_core.store.scan import Keys
from clara_core.store.schema import RECORD_COLUMNS, Layout, records

if TYPE_CHECKING:
    from lance import LanceDataset

Mode = Literal["memory", "text", "hybrid"]

_SCAN_BYTES: Final = 1 << 25  # of memories that are compared at a time


@dataclass(frozen=True, slots=True)
class Found:
    """A document by its id in the table, with its score, best window and that window's row."""

    id: str
    score: float
    window: int
    row: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a search sees.

    Attributes:
        dataset: The table.
        layout: Of it.
        allowed: Rows that may be found; None means all.
    """

    dataset: LanceDataset
    layout: Layout
    allowed: RowIds | None = None


# --- memories --------------------------------------------------------------------------------------------


def by_memory(snapshot: Snapshot, keys: Keys, questions: Tensor, k: int, oversample: int) -> list[list[Found]]:
    """The k documents most like each question ``[Q, n_mem, hidden]``, by keys and then by memories."""
    units = unit_rows(questions)  # [Q, D]
    key = snapshot.layout.key
    question_keys = key.questions(questions)
    rows_in_all = len(keys.rows) if snapshot.allowed is None else len(snapshot.allowed)
    found: list[list[Found] | None] = [None] * len(units)
    wanted = oversample * k
    while missing := [index for index, done in enumerate(found) if done is None]:
        candidates = keys.best(key, question_keys[missing], wanted, snapshot.allowed)
        ranked = _ranked(snapshot, units[missing], candidates, k)
        for index, documents in zip(missing, ranked, strict=True):
            # Many windows of few documents: look further, until there are enough documents or no more rows.
            if len(documents) >= k or wanted >= rows_in_all:
                found[index] = documents
        wanted *= 4
    return [documents for documents in found if documents is not None]


def _ranked(snapshot: Snapshot, units: Tensor, candidates: Sequence[RowIds], k: int) -> list[list[Found]]:
    """The best documents among the candidate rows of each question, by exact cosine."""
    union = np.unique(np.concatenate(candidates))
    best = _Best(len(units), k)
    step = max(1, _SCAN_BYTES // snapshot.layout.codec.row_bytes)
    for start in range(0, len(union), step):
        block = union[start : start + step]
        table = rows_at(snapshot.dataset, block, ["id", "window", "memory"])
        rows = table["_rowid"].to_numpy()
        scores = units @ unit_rows(snapshot.layout.tokens(table["memory"])).T  # [Q, n]
        for index, own in enumerate(candidates):
            scores[index, torch.from_numpy(~np.isin(rows, own))] = -torch.inf
        best.offer(scores, table["id"].to_pylist(), table["window"].to_pylist(), rows)
    return best.documents()


def by_everything(snapshot: Snapshot, questions: Tensor, k: int) -> list[list[Found]]:
    """The k documents most like each question, from all memories, in bounded memory."""
    units = unit_rows(questions)
    best = _Best(len(units), k)
    step = max(1, _SCAN_BYTES // snapshot.layout.codec.row_bytes)
    for batch in batches(snapshot.dataset, ["id", "window", "memory"], snapshot.allowed, step):
        scores = units @ unit_rows(snapshot.layout.tokens(batch.column("memory"))).T  # [Q, n]
        rows = batch.column("_rowid").to_numpy()
        best.offer(scores, batch.column("id").to_pylist(), batch.column("window").to_pylist(), rows)
    return best.documents()


class _Best:
    """The k best documents of each question, while rows come by."""

    def __init__(self, questions: int, k: int) -> None:
        self._k = k
        self._found: list[dict[str, Found]] = [{} for _ in range(questions)]

    def offer(self, scores: Tensor, ids: Sequence[str], windows: Sequence[int], rows: RowIds) -> None:
        """Rows with their scores ``[Q, n]``; of minus infinity are not meant."""
        # Rounding can push the product of two equal unit vectors past one.
        for found, own in zip(self._found, scores.clamp(max=1.0), strict=True):
            least = min((document.score for document in found.values()), default=-torch.inf)
            floor = least if len(found) >= self._k else -torch.inf
            for place in (own > floor).nonzero().flatten().tolist():
                score = max(float(own[place]), -1.0)
                before = found.get(ids[place])
                if before is None or score > before.score:
                    found[ids[place]] = Found(ids[place], score, windows[place], int(rows[place]))
            if len(found) > self._k:
                kept = sorted(found.values(), key=_order)[: self._k]
                found.clear()
                found.update({document.id: document for document in kept})

    def documents(self) -> list[list[Found]]:
        """Best first; equal scores in the order of the table."""
        return [sorted(found.values(), key=_order) for found in self._found]


def _order(document: Found) -> tuple[float, int]:
    return -document.score, document.row


# --- words -----------------------------------------------------------------------------------------------


def by_text(snapshot: Snapshot, question: str, k: int) -> list[Found]:
    """The k documents that share most with the words of a question (BM25)."""
    from lance.dataset import ScannerBuilder, serialize_row_addrs

    if not question.strip() or (snapshot.allowed is not None and not len(snapshot.allowed)):
        return []
    builder = ScannerBuilder(snapshot.dataset).columns(["id", "_score"]).with_row_id().limit(k)
    builder = builder.full_text_search(MatchQuery(question, "text"))
    if snapshot.allowed is not None:
        builder = builder.prefilter(True).row_addr_prefilter(serialize_row_addrs(snapshot.allowed.tolist()))
    table = builder.to_scanner().to_table()
    found = [
        Found(id_, score, 0, row)
        for id_, score, row in zip(
            table["id"].to_pylist(), table["_score"].to_pylist(), table["_rowid"].to_pylist(), strict=True
        )
    ]
    return sorted(found, key=_order)


def fused(memory: Sequence[Found], text: Sequence[Found], weight: float, k: int) -> list[Found]:
    """Both rankings as one, by reciprocal ranks; `weight` is that of the text, the memory has the rest."""
    known = {document.id: document for document in [*text, *memory]}  # the window is the memory's
    ranked = fuse_ranks([[d.id for d in memory], [d.id for d in text]], [1 - weight, weight])
    return [Found(id_, score, known[id_].window, known[id_].row) for id_, score in ranked[:k] if score > 0]


# --- documents -------------------------------------------------------------------------------------------


def hits(dataset: LanceDataset, found: Sequence[Sequence[Found]]) -> list[list[Hit]]:
    """The documents that were found, as they were given."""
    ids = list(dict.fromkeys(unguarded(document.id) for documents in found for document in documents))
    there = {record.id: record for record in records(rows_with(dataset, "id", ids, RECORD_COLUMNS))}
    import copy

    result = []
    for documents in found:
        own = []
        for document in documents:
            record = there[unguarded(document.id)]
            own.append(Hit(record.id, record.text, copy.deepcopy(record.metadata), document.score, document.window))
        result.append(own)
    return result
