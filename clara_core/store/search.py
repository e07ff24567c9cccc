"""Questions to rows of a snapshot: keys first, then the exact cosine of the best; or everything; or words.

A document's score is that of its best window. Letters of shapes: Q questions, D numbers of a memory, n rows,
m candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import torch
from lance.dataset import ScannerBuilder, serialize_row_addrs
from lance.query import MatchQuery
from torch import Tensor

from clara_core.ranking import fuse_ranks, unit_rows
from clara_core.store.reading import RowIds, batches, readable, rows_at, rows_with
from clara_core.store.records import Hit, guarded, unguarded
from clara_core.store.scan import Keys
from clara_core.store.schema import RECORD_COLUMNS, Layout, number_rows, records

if TYPE_CHECKING:
    from lance import LanceDataset

_SCAN_BYTES: Final = 1 << 25  # of memories that are read at a time
_NEAR_BYTES: Final = 1 << 21  # of float32 memories that are compared at a time, so that they stay in the cache
# Parts of an index that are looked through. Of 100,000 synthetic keys of 1,024 numbers, 8 found 97 % of the best ten
# documents and 32 all of them, in the same time.
_PROBES: Final = 32
_DIGITS: Final = 6  # of a cosine in float32; so equal memories have equal scores, wherever they were compared
_TINY: Final = 1e-12  # as in torch's normalize

Nominate = Callable[[Sequence[int], int], list[RowIds]]
"""Row ids of the m best candidates of some of the questions, by their places."""


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

    @property
    def rows(self) -> int:
        """How many may be found."""
        return int(self.dataset.count_rows()) if self.allowed is None else len(self.allowed)


# --- candidates ------------------------------------------------------------------------------------------


def by_scan(snapshot: Snapshot, keys: Keys, questions: Tensor) -> Nominate:
    """Candidates for questions ``[Q, n_mem, hidden]`` from all keys."""
    asked = snapshot.layout.key.questions(questions)  # [Q, L]
    return lambda places, m: keys.best(asked[list(places)], m, snapshot.allowed)


def by_index(snapshot: Snapshot, questions: Tensor) -> Nominate:
    """Candidates by the index over the keys; rows that it does not cover are scanned."""
    asked = snapshot.layout.key.questions(questions)

    def nearest(place: int, m: int) -> RowIds:
        builder = ScannerBuilder(snapshot.dataset).columns(["_distance"]).with_row_id()
        builder = builder.nearest("key", asked[place].astype(np.float16), k=m, metric="dot", nprobes=_PROBES)
        if snapshot.allowed is not None:
            builder = builder.prefilter(True).row_addr_prefilter(serialize_row_addrs(snapshot.allowed.tolist()))
        with readable(snapshot.dataset):
            rows: RowIds = builder.to_scanner().to_table()["_rowid"].to_numpy()
        return rows

    return lambda places, m: [nearest(place, m) for place in places]


# --- memories --------------------------------------------------------------------------------------------


def by_memory(snapshot: Snapshot, questions: Tensor, nominate: Nominate, k: int, oversample: int) -> list[list[Found]]:
    """The k documents most like each question ``[Q, n_mem, hidden]`` among candidates, by exact cosine."""
    found: list[list[Found]] = [[] for _ in questions]
    missing, wanted, most = list(range(len(questions))), oversample * k, snapshot.rows
    while missing and wanted < most:
        ranked = _ranked(snapshot, unit_rows(questions[missing]), nominate(missing, wanted), k)
        for place, documents in zip(missing, ranked, strict=True):
            found[place] = documents
        # Many windows of few documents: look further.
        missing, wanted = [place for place in missing if len(found[place]) < k], 4 * wanted
    for place, documents in zip(
        missing, by_everything(snapshot, questions[missing], k) if missing else (), strict=True
    ):
        found[place] = documents
    return found


def _ranked(snapshot: Snapshot, units: Tensor, candidates: Sequence[RowIds], k: int) -> list[list[Found]]:
    """The best documents among the candidate rows of each question, by exact cosine."""
    union = np.unique(np.concatenate(candidates))
    best = _Best(len(units), k)
    step = max(1, _SCAN_BYTES // snapshot.layout.codec.row_bytes)
    for start in range(0, len(union), step):
        table = rows_at(snapshot.dataset, union[start : start + step], ["id", "window", "memory"])
        rows = table["_rowid"].to_numpy()
        scores = cosines(units, snapshot.layout, table["memory"])
        if len(candidates) > 1:
            meant = np.stack([np.isin(rows, own) for own in candidates])
            scores.masked_fill_(~torch.from_numpy(meant), -torch.inf)
        best.offer(scores, table["id"], table["window"], rows)
    return best.documents()


def by_everything(snapshot: Snapshot, questions: Tensor, k: int) -> list[list[Found]]:
    """The k documents most like each question, from all memories, in bounded memory."""
    units = unit_rows(questions)
    best = _Best(len(units), k)
    step = max(1, _SCAN_BYTES // snapshot.layout.codec.row_bytes)
    for batch in batches(snapshot.dataset, ["id", "window", "memory"], snapshot.allowed, step):
        scores = cosines(units, snapshot.layout, batch.column("memory"))
        best.offer(scores, batch.column("id"), batch.column("window"), batch.column("_rowid").to_numpy())
    return best.documents()


def cosines(units: Tensor, layout: Layout, memory: pa.Array | pa.ChunkedArray) -> Tensor:
    """Cosine of unit vectors ``[Q, D]`` with windows, from the column of their bytes: ``[Q, n]``, in float32.

    As `clara_core.ranking.window_scores`, in pieces that stay in the processor's cache.
    """
    rows = number_rows(memory)  # [n, bytes]
    scores = torch.empty(len(units), len(rows))
    step = max(1, _NEAR_BYTES // (4 * units.shape[1]), len(units))
    for start in range(0, len(rows), step):
        windows = layout.codec.decode(rows[start : start + step], layout.dtype).flatten(1).float()
        lengths = torch.linalg.vector_norm(windows, dim=1).clamp_min(_TINY)
        scores[:, start : start + step] = (units @ windows.T) / lengths
    # Rounding can push the product of two equal unit vectors past one.
    return scores.clamp_(-1.0, 1.0)


class _Best:
    """The k best documents of each question, while rows come by."""

    def __init__(self, questions: int, k: int) -> None:
        self._k = k
        self._found: list[dict[str, Found]] = [{} for _ in range(questions)]

    def offer(self, scores: Tensor, ids: pa.ChunkedArray, windows: pa.ChunkedArray, rows: RowIds) -> None:
        """Rows with their scores ``[Q, n]``; minus infinity is no candidate."""
        for found, own in zip(self._found, scores.numpy(), strict=True):
            floor = min(each.score for each in found.values()) if len(found) >= self._k else -np.inf
            for place in np.flatnonzero(own > floor).tolist():
                id_, score = ids[place].as_py(), round(float(own[place]), _DIGITS)
                if id_ not in found or score > found[id_].score:
                    found[id_] = Found(id_, score, windows[place].as_py(), int(rows[place]))
            for each in sorted(found.values(), key=_order)[self._k :]:
                del found[each.id]

    def documents(self) -> list[list[Found]]:
        """Best first; equal scores in the order of the table."""
        return [sorted(found.values(), key=_order) for found in self._found]


def _order(document: Found) -> tuple[float, int]:
    return -document.score, document.row


# --- words -----------------------------------------------------------------------------------------------


def by_text(snapshot: Snapshot, question: str, k: int) -> list[Found]:
    """The k documents that share most with the words of a question (BM25), rows without an index among them."""
    builder = ScannerBuilder(snapshot.dataset).columns(["id", "_score"]).with_row_id().limit(k)
    builder = builder.full_text_search(MatchQuery(guarded(question), "text"))
    if snapshot.allowed is not None:
        if not len(snapshot.allowed):
            return []
        builder = builder.prefilter(True).row_addr_prefilter(serialize_row_addrs(snapshot.allowed.tolist()))
    with readable(snapshot.dataset):
        table = builder.to_scanner().to_table()
    columns = (table["id"].to_pylist(), table["_score"].to_pylist(), table["_rowid"].to_pylist())
    return sorted((Found(id_, score, 0, row) for id_, score, row in zip(*columns, strict=True)), key=_order)


def fused(memory: Sequence[Found], text: Sequence[Found], weight: float, k: int) -> list[Found]:
    """Both rankings as one, by reciprocal ranks; `weight` is that of the text, the memory has the rest."""
    known = {document.id: document for document in [*text, *memory]}  # the window is the memory's
    ranked = fuse_ranks([[each.id for each in memory], [each.id for each in text]], [1 - weight, weight])
    return [Found(id_, score, known[id_].window, known[id_].row) for id_, score in ranked[:k] if score > 0]


# --- documents -------------------------------------------------------------------------------------------


def hits(dataset: LanceDataset, found: Sequence[Sequence[Found]]) -> list[list[Hit]]:
    """The documents that were found, as they were given."""
    rows = np.array(sorted({each.row for documents in found for each in documents}), np.uint64)
    table = rows_at(dataset, rows, RECORD_COLUMNS)
    whole = pa.compute.equal(table["windows"], 1)
    there = {record.id: record for record in records(table.filter(whole))}
    # The text of a document of several windows stands on its first one.
    split = [unguarded(id_) for id_ in table.filter(pa.compute.invert(whole))["id"].unique().to_pylist()]
    there.update({record.id: record for record in records(rows_with(dataset, "id", split, RECORD_COLUMNS))})

    def hit(document: Found) -> Hit:
        record = there[unguarded(document.id)]
        return Hit(record.id, record.text, copy.deepcopy(record.metadata), document.score, document.window)

    return [[hit(document) for document in documents] for documents in found]
