"""What keeps a table quick as it grows: keys that fit it, indexes, few files. Nothing here changes what is found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.progress import IndexProgress

from clara_core.store.reading import readable
from clara_core.store.records import StoreStats
from clara_core.store.scan import made_keys
from clara_core.store.schema import FIT_ROWS, Layout, number_column
from clara_core.store.table import TEXT_INDEX, Table, data_bytes, index_words

if TYPE_CHECKING:
    from lance import LanceDataset

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is; 0 where that is not known."""

INDEX_ROWS: Final = 500_000  # from here on an index over the keys is quicker than the keys themselves

KEY_INDEX: Final = "key_near"
_IndexKind = Literal["BTREE", "LABEL_LIST"]
_VALUE_INDEXES: Final[dict[str, _IndexKind]] = {"id": "BTREE", "content": "BTREE", "facts": "LABEL_LIST"}
_SAMPLE: Final = 2 * FIT_ROWS  # windows that keys are fitted to


def indexed_rows(dataset: LanceDataset, name: str) -> int | None:
    """How many rows an index covers; None where there is no such index."""
    index = next((index for index in dataset.describe_indices() if index.name == name), None)
    if index is None:
        return None
    covered = {number for segment in index.segments for number in segment.fragment_ids}
    return sum(fragment.count_rows() for fragment in dataset.get_fragments() if fragment.fragment_id in covered)


def is_indexed(dataset: LanceDataset) -> bool:
    """Whether there is an index over the keys."""
    return any(index.name == KEY_INDEX for index in dataset.describe_indices())


def refit(table: Table) -> None:
    """Fit the keys to the memories, if that was done when there were too few.

    Keys that are there stay as they are; readers make them anew (see `scan`), `rewrite_keys` does it once for all.
    """
    with table.turn():
        dataset = table.latest()
        if dataset is None:
            return
        layout = Layout.of(dataset.schema, table.uri)
        rows = int(dataset.count_rows())
        if layout.fitted_to >= FIT_ROWS or rows < FIT_ROWS:
            return
        places = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(np.int64))
        with readable(dataset):
            memories = dataset.take(places.tolist(), columns=["memory"])["memory"]
        table.set_cover(layout.fitted(layout.tokens(memories)).cover)


def rewrite_keys(table: Table, progress: Callable[[int], Any]) -> None:
    """Write the keys that were made by older settings anew, a file at a time.

    Args:
        table: The table.
        progress: Told how many rows were done.
    """
    dataset = table.latest()
    if dataset is None:
        return
    layout = Layout.of(dataset.schema, table.uri)
    with readable(dataset):
        old = dataset.to_table(columns=[], filter=f"fit <> {layout.fit}", with_row_id=True)["_rowid"].to_numpy()
    for number in np.unique(old >> np.uint64(32)).tolist():
        rows = old[old >> np.uint64(32) == number]

        def change(latest: LanceDataset, number: int = number) -> LanceOperation.BaseOperation | None:
            fragment = latest.get_fragment(number)
            if fragment is None:
                return None
            with readable(latest):
                left = latest.scanner(
                    columns=[], filter=f"fit <> {layout.fit}", fragments=[fragment], with_row_id=True
                ).to_table()["_rowid"]
                rows = left.to_numpy()
                if not len(rows):
                    return None
                keys = made_keys(latest, layout, rows)
                made = pa.table(
                    {"_rowid": rows, "key": number_column(keys), "fit": np.full(len(rows), layout.fit, np.int64)}
                )
                metadata, fields = fragment.update_columns(made)
            return LanceOperation.Update(updated_fragments=[metadata], fields_modified=fields)

        table.operate(change)
        progress(len(rows))


def build_indexes(table: Table, report: Report) -> None:
    """Make the indexes that are missing, and take rows that were added since into the others.

    Args:
        table: The table.
        report: Told what is being done, and how far it is where Lance knows.
    """
    dataset = table.latest()
    if dataset is None or not dataset.count_rows():
        return
    there = {index.name for index in dataset.describe_indices()}
    if TEXT_INDEX not in there:
        table.maintain(partial(index_words, progress=_reporting(report, "index of words")))
    for column, kind in _VALUE_INDEXES.items():
        if (name := f"{column}_value") not in there:
            shown = _reporting(report, f"index of {column}")
            table.maintain(partial(_index_values, column=column, kind=kind, name=name, progress=shown))
    if KEY_INDEX not in there and dataset.count_rows() >= INDEX_ROWS:
        table.maintain(partial(_index_keys, progress=_reporting(report, "index of keys")))
    report("rows added since", 0, 0)
    table.maintain(lambda own: own.optimize.optimize_indices())


def _index_values(
    dataset: LanceDataset, column: str, kind: _IndexKind, name: str, progress: Callable[[IndexProgress], None]
) -> None:
    dataset.create_scalar_index(column, kind, name=name, progress_callback=progress)


def _index_keys(dataset: LanceDataset, progress: Callable[[IndexProgress], None]) -> None:
    dataset.create_index("key", "IVF_RQ", name=KEY_INDEX, metric="dot", progress_callback=progress)


def _reporting(report: Report, step: str) -> Callable[[IndexProgress], None]:
    report(step, 0, 0)
    return lambda event: report(f"{step}: {event.stage}", event.completed or 0, event.total or 0)


def statistics(table: Table) -> StoreStats:
    """Size and state of a table."""
    dataset = table.latest()
    if dataset is None:
        return StoreStats(0, 0, 0, 0.0, 0, 0, None, None, None, 0, None)
    layout = Layout.of(dataset.schema, table.uri)
    with readable(dataset):
        documents, rows = int(dataset.count_rows("window = 0")), int(dataset.count_rows())
        fragments = dataset.get_fragments()
        size = data_bytes(dataset)
        return StoreStats(
            documents=documents,
            rows=rows,
            bytes=size,
            bytes_per_document=size / documents if documents else 0.0,
            fragments=len(fragments),
            version=dataset.version,
            fingerprint=layout.fingerprint,
            memory_type=layout.memory_type,
            key_length=layout.key.length,
            text_index_rows=indexed_rows(dataset, TEXT_INDEX) or 0,
            key_index_rows=indexed_rows(dataset, KEY_INDEX),
        )
