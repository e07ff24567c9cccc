"""Reads rows of one version of a Lance table, by values or by row numbers, in bounded memory.

Input from outside becomes quoted strings in predicates. Errors of Lance become `StoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
from lance import LanceDataset, LanceFragment
from lance.dataset import ScannerBuilder, serialize_row_addrs

from clara_core.common.errors import StoreError
from clara_core.store.backend import Rows
from clara_core.store.records import escape

_AHEAD_BYTES: Final = 1 << 27  # bytes read ahead; Lance's default is two gigabytes
_VALUES: Final = 10_000  # most strings in a predicate


def scanner(dataset: LanceDataset, columns: Sequence[str], rows: Rows | None) -> ScannerBuilder:
    """A scan over the rows with given numbers, or over all rows for None; its result includes ``_rowid``."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id()
    # Both names are public, but not documented; pyproject bounds the version of Lance because of them.
    return builder if rows is None else builder.row_addr_prefilter(serialize_row_addrs(rows.tolist())).prefilter(True)


@contextmanager
def readable(dataset: LanceDataset) -> Iterator[None]:
    """Turn errors of reading into `StoreError`.

    Raises:
        StoreError: Reading failed; the message has Lance's error, which names the file.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as exc:
        raise StoreError(f"the store at {dataset.uri} cannot be read (version {dataset.version}): {exc}") from exc


def rows_with(dataset: LanceDataset, column: str, values: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Rows whose `column` is one of the strings, in the order of the table, with ``_rowid``."""
    parts = [_none(dataset, columns)]
    for start in range(0, len(values), _VALUES):
        predicate = f"{column} IN ({', '.join(map(quoted, values[start : start + _VALUES]))})"
        with readable(dataset):
            parts.append(dataset.to_table(columns=list(columns), filter=predicate, with_row_id=True))
    return parts[-1] if len(parts) <= 2 else pa.concat_tables(parts).sort_by("_rowid")


def rows_at(dataset: LanceDataset, rows: Rows, columns: Sequence[str]) -> pa.Table:
    """The rows with these numbers, ascending, with ``_rowid``."""
    if not len(rows):
        return _none(dataset, columns)
    with readable(dataset):
        found = scanner(dataset, columns, rows).to_scanner().to_table()
    numbers = found["_rowid"].to_numpy()
    return found if bool((numbers[1:] > numbers[:-1]).all()) else found.sort_by("_rowid")


def batches(
    dataset: LanceDataset,
    columns: Sequence[str],
    rows: Rows | None = None,
    batch_size: int = 4096,
    fragments: Sequence[LanceFragment] | None = None,
) -> Iterator[pa.RecordBatch]:
    """All rows, or those with given numbers or of given files, in the order of the table, with ``_rowid``."""
    builder = scanner(dataset, columns, rows).batch_size(batch_size).scan_in_order()
    builder = builder.batch_readahead(2).fragment_readahead(1).io_buffer_size(_AHEAD_BYTES)
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


def quoted(value: str) -> str:
    """A string as a literal of a predicate."""
    return "'" + escape(value).replace("'", "''") + "'"


def _none(dataset: LanceDataset, columns: Sequence[str]) -> pa.Table:
    fields = [dataset.schema.field(name) for name in columns]
    return pa.schema([*fields, pa.field("_rowid", pa.uint64())]).empty_table()
