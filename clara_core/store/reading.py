"""Rows of a snapshot: found by what they say, or taken by their ids, in bounded memory.

Nothing that comes from outside becomes more than a quoted string. What Lance cannot read is a `StoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from lance.dataset import ScannerBuilder, serialize_row_addrs
from numpy.typing import NDArray

from clara_core.errors import StoreError
from clara_core.filters import check_filter
from clara_core.memory import Memory
from clara_core.store.predicate import passing
from clara_core.store.records import Record, guarded
from clara_core.store.schema import RECORD_COLUMNS, Layout, records

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

RowIds = NDArray[np.uint64]

_AHEAD_BYTES: Final = 1 << 27  # that are read before they are asked for; Lance would take two gigabytes
_VALUES: Final = 10_000  # strings of a predicate


@contextmanager
def readable(dataset: LanceDataset) -> Iterator[None]:
    """What goes wrong within is the fault of the files.

    Raises:
        StoreError: With what Lance says, which names the file.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as exc:
        raise StoreError(f"the store at {dataset.uri} cannot be read (version {dataset.version}): {exc}") from exc


def rows_with(dataset: LanceDataset, column: str, values: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Rows whose `column` is one of the strings, in the order of the table, with ``_rowid``."""
    parts = [_none(dataset, columns)]
    for start in range(0, len(values), _VALUES):
        quoted = ", ".join("'" + guarded(value).replace("'", "''") + "'" for value in values[start : start + _VALUES])
        with readable(dataset):
            parts.append(dataset.to_table(columns=list(columns), filter=f"{column} IN ({quoted})", with_row_id=True))
    return parts[-1] if len(parts) <= 2 else pa.concat_tables(parts).sort_by("_rowid")


def rows_at(dataset: LanceDataset, rows: RowIds, columns: Sequence[str]) -> pa.Table:
    """The rows of these ids in this order, with ``_rowid``."""
    if not len(rows):
        return _none(dataset, columns)
    with readable(dataset):
        # `take` counts rows from the first that is alive; this is what it stands on.
        return dataset._take_rows(rows.tolist(), columns=[*columns, "_rowid"])  # noqa: SLF001


def passing_rows(dataset: LanceDataset, condition: Mapping[str, Any]) -> pa.Table:
    """``window`` and ``_rowid`` of the rows that pass a filter, in the order of the table.

    Raises:
        TypeError, ValueError: It is no filter.
    """
    check_filter(condition)
    with readable(dataset):
        return passing(dataset, condition, ["window"])


def batches(
    dataset: LanceDataset,
    columns: Sequence[str],
    rows: RowIds | None = None,
    batch_size: int = 4096,
    fragments: Sequence[LanceFragment] | None = None,
) -> Iterator[pa.RecordBatch]:
    """All rows, or those with some ids or of some files, in the order of the table, with ``_rowid``."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id().batch_size(batch_size).scan_in_order()
    builder = builder.batch_readahead(2).fragment_readahead(1).io_buffer_size(_AHEAD_BYTES)
    if rows is not None:
        builder = builder.row_addr_prefilter(serialize_row_addrs(rows.tolist()))
    if fragments is not None:
        builder = builder.with_fragments(list(fragments))
    with readable(dataset):
        found = builder.to_scanner().to_batches()
    while True:
        with readable(dataset):
            batch = next(found, None)
        if batch is None:
            return
        yield batch


def memories_of(dataset: LanceDataset, layout: Layout, ids: Sequence[str]) -> dict[str, Memory]:
    """Memories by the id of their document, for those that are there."""
    rows = rows_with(dataset, "id", list(dict.fromkeys(ids)), RECORD_COLUMNS)
    row_ids = rows["_rowid"].to_numpy()
    found: dict[str, tuple[Record, list[int]]] = {}
    places = list(zip(rows["id"].to_pylist(), rows["window"].to_pylist(), range(rows.num_rows), strict=True))
    by_window = {(id_, window): place for id_, window, place in places}
    for record in records(rows):
        id_ = guarded(record.id)
        found[record.id] = (record, [by_window[id_, window] for window in range(len(record.spans))])
    if not found:
        return {}
    tokens = layout.tokens(rows_at(dataset, row_ids, ["memory"])["memory"])  # [rows, n_mem, hidden]
    return {
        id_: Memory(tokens[own], record.text, record.spans, record.source_tokens, layout.fingerprint)
        for id_, (record, own) in found.items()
    }


def _none(dataset: LanceDataset, columns: Sequence[str]) -> pa.Table:
    fields = [dataset.schema.field(name) for name in columns]
    return pa.schema([*fields, pa.field("_rowid", pa.uint64())]).empty_table()
