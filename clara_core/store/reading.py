"""Finding rows of a snapshot by what they say. Nothing that comes from outside becomes more than a quoted string."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from lance.dataset import ScannerBuilder, serialize_row_addrs
from numpy.typing import NDArray

from clara_core.store.predicate import passing
from clara_core.store.records import guarded

if TYPE_CHECKING:
    from lance import LanceDataset

RowIds = NDArray[np.uint64]

_VALUES: Final = 500  # of a predicate: Lance parses it recursively


def rows_with(dataset: LanceDataset, column: str, values: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Rows whose `column` is one of the strings, in the order of the table, with ``_rowid``."""
    parts = []
    for start in range(0, len(values), _VALUES):
        quoted = ", ".join("'" + guarded(value).replace("'", "''") + "'" for value in values[start : start + _VALUES])
        parts.append(dataset.to_table(columns=list(columns), filter=f"{column} IN ({quoted})", with_row_id=True))
    if not parts:
        return dataset.schema.empty_table().select(list(columns)).append_column("_rowid", pa.array([], pa.uint64()))
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts).sort_by("_rowid")


def rows_at(dataset: LanceDataset, rows: Sequence[int] | RowIds, columns: Sequence[str]) -> pa.Table:
    """The rows of these ids, in this order, with ``_rowid``; rows that are gone are missing."""
    wanted = np.asarray(rows, np.uint64)
    found = dataset._take_rows(pa.array(wanted), columns=[*columns, "_rowid"])  # noqa: SLF001
    return found


def passing_rows(dataset: LanceDataset, condition: Mapping[str, Any]) -> RowIds:
    """Ids of the rows that pass a filter, ascending.

    Raises:
        TypeError, ValueError: It is no filter.
    """
    found: RowIds = passing(dataset, condition, ["window"]).column("_rowid").to_numpy()
    return found


def batches(
    dataset: LanceDataset, columns: Sequence[str], rows: RowIds | None = None, batch_size: int = 1024
) -> Iterator[pa.RecordBatch]:
    """All rows, or those with some ids, in the order of the table and in bounded memory, with ``_rowid``."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id().batch_size(batch_size).scan_in_order()
    builder = builder.batch_readahead(2).fragment_readahead(1)
    if rows is not None:
        builder = builder.row_addr_prefilter(serialize_row_addrs(rows.tolist()))
    yield from builder.to_scanner().to_batches()
