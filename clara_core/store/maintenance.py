"""Maintenance of a table as it grows: merges files, fits keys and builds indexes. Results of searches do not change.

Files are merged in tiers while documents are added. After every `EVERY` commits, the files with fewer than ``EVERY``
rows become one; when there are `EVERY` files with fewer than ``EVERY**2`` rows, those become one, and so on. So each
document is rewritten only a few times, a number that grows with the logarithm of the number of documents.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from lance import LanceDataset
from lance.progress import IndexProgress

from clara_core.common.errors import StoreError
from clara_core.store.backend import Report
from clara_core.store.scan import made_keys
from clara_core.store.schema import FIT_ROWS, Layout, list_column, window_counts
from clara_core.store.table import Table, batches, data_bytes, readable

INDEX_ROWS: Final = 500_000  # documents from which on indexes over keys and words are built
KEY_INDEX: Final = "key_near"
WORD_INDEX: Final = "words_in"
EVERY: Final = 16  # commits between two merges, and files of a tier

_INDEXES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {  # column, kind and settings by name
    "id_value": ("id", "BTREE", {}),
    "content_value": ("content", "BTREE", {}),
    "facts_value": ("facts", "LABEL_LIST", {}),
}
_LARGE_INDEXES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    WORD_INDEX: (
        "words", "INVERTED",  # the column as it is: words of any length, without stemming, folding or stop words
        {"base_tokenizer": "whitespace", "with_position": False, "stem": False, "lower_case": False,
         "ascii_folding": False, "remove_stop_words": False, "max_token_length": None},
    ),
    KEY_INDEX: ("key", "IVF_RQ", {"metric": "cosine"}),
}  # fmt: skip
_FIT_BYTES: Final = 1 << 26  # most bytes of memories that keys are fitted to
_MANY_ROWS: Final = 1 << 20  # most rows of a file
_LARGE_FILE: Final = 1 << 30  # approximate bytes of a large file
_MERGED_BYTES: Final = 1 << 25  # bytes merged at a time
_LARGE_PART: Final = 1 << 32  # approximate bytes of files merged by one commit
_SUPERSEDED: Final = timedelta(seconds=2)  # how long a version is kept after the next one came
_LEASE: Final = timedelta(hours=1)  # how long a reader may hold a version
_READER: Final = "reader-"  # prefix of the names of readers' tags

_log = logging.getLogger(__name__)


# --- files -----------------------------------------------------------------------------------------------


class Maintenance:
    """Merges files of a table and deletes old versions in a thread of this process, triggered by commits."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._maintained: int | None = None
        self._running: Future[None] | None = None

    def committed(self) -> None:
        """Note a commit. The process that makes every `EVERY`-th commit runs the maintenance."""
        if (dataset := self._table.latest()) is None:
            return
        turn = dataset.version // EVERY
        with self._lock:
            if self._maintained is None:
                self._maintained = (dataset.version - 1) // EVERY
            if turn > self._maintained and (self._running is None or self._running.done()):
                self._maintained, self._running = turn, _pool(os.getpid()).submit(self._maintain)

    def wait(self) -> None:
        """Wait for running maintenance."""
        if (running := self._running) is not None:
            running.result()

    def _maintain(self) -> None:
        try:
            merge_tiers(self._table)
            drop_versions(self._table, _SUPERSEDED)
        except (OSError, StoreError, pa.ArrowException) as exc:  # it is repeated later; lasting errors reach callers
            _log.info("the files of %s were not merged: %s", self._table.uri, exc)


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """The maintenance thread of a process; a fork does not copy it."""
    return ThreadPoolExecutor(1, "clara-store-maintenance")


def merge_tiers(table: Table) -> None:
    """Merge the files of each tier that has enough of them."""
    size = EVERY
    while (dataset := table.latest()) is not None:
        width = _row_bytes(dataset)
        sizes = [fragment.count_rows() for fragment in dataset.get_fragments()]
        if size * width > _LARGE_FILE or not any(rows >= size // EVERY for rows in sizes):
            return
        # Files of lower tiers do not count; otherwise large files would be rewritten for every few small ones.
        lowest = 0 if size == EVERY else size // EVERY
        if sum(lowest <= rows < size for rows in sizes) >= EVERY:
            _compact(table, min(size, _MANY_ROWS), width)
        size *= EVERY


def compact(table: Table, older_than: timedelta) -> None:
    """Merge all small files, remove deleted rows, and delete versions older than `older_than`.

    It makes several commits, because a commit that conflicts with another one must be repeated.
    """
    dataset = table.latest()
    if dataset is not None:
        width = _row_bytes(dataset)
        # A file with fewer rows is merged again, so this must agree with the size of merged files.
        while _compact(table, min(_MANY_ROWS, max(1, _LARGE_FILE // width)), width):
            pass
        drop_versions(table, older_than)


def _compact(table: Table, rows: int, width: int) -> bool:
    """Merge files with fewer rows, or some of them; return whether more may remain."""

    def part(dataset: LanceDataset) -> bool:
        done = dataset.optimize.compact_files(
            target_rows_per_fragment=rows,
            max_source_bytes=_LARGE_PART,
            batch_size=min(_MANY_ROWS, max(1, _MERGED_BYTES // width)),
            num_threads=1,
        )
        return bool(done.fragments_removed > done.fragments_added)

    return table.change(part)


def _row_bytes(dataset: LanceDataset) -> int:
    return max(1, data_bytes(dataset.get_fragments()) // max(1, int(dataset.count_rows())))


# --- versions --------------------------------------------------------------------------------------------


def drop_versions(table: Table, superseded: timedelta) -> None:
    """Delete versions that were replaced longer ago than `superseded`, except those that a reader holds."""

    def drop(dataset: LanceDataset) -> None:
        now = datetime.now(UTC)
        for name, tag in dataset.tags.list().items():
            made = tag["created_at"]
            if name.startswith(_READER) and (made is None or now - made > _LEASE):
                dataset.tags.delete(name)
        # A version's time is that of its creation; it was the latest version until the next one was created.
        stamps: list[Any] = [version["timestamp"] for version in dataset.versions()]
        times = sorted(stamp.astimezone(UTC) for stamp in stamps)
        past = [time for time in times if time <= now - superseded]
        if len(past) > 1:
            age = datetime.now(UTC) - past[-1] + timedelta(microseconds=1)
            dataset.cleanup_old_versions(older_than=age, error_if_tagged_old_versions=False)

    if table.latest() is not None:
        table.change(drop)  # again where a reader has released its tag between the listing of tags and their reading


@contextmanager
def held(dataset: LanceDataset) -> Iterator[None]:
    """Keep a version of a table during a long read, so that others do not delete it."""
    tags = dataset.checkout_version(dataset.version).tags  # creating a tag changes the object
    name = f"{_READER}{os.getpid()}-{time.time_ns()}-{threading.get_ident()}"
    try:
        tags.create(name, dataset.version)
        created = True
    except (OSError, ValueError) as exc:  # a read-only store
        _log.info("version %d cannot be held: %s", dataset.version, exc)
        created = False
    try:
        yield
    finally:
        if created:
            try:
                tags.delete(name)
            except (OSError, ValueError) as exc:
                _log.info("the tag %s was not deleted: %s", name, exc)


# --- keys ------------------------------------------------------------------------------------------------


def refit(table: Table) -> None:
    """Fit the keys to the memories if they were fitted to too few, and compute the keys of all rows again."""
    dataset = table.latest()
    if dataset is None:
        return
    layout = Layout.of(dataset.schema, table.uri)
    rows = int(dataset.count_rows())
    if layout.fitted_to >= FIT_ROWS or rows < FIT_ROWS:
        return
    wanted = max(FIT_ROWS, min(2 * FIT_ROWS, _FIT_BYTES // layout.codec.row_bytes))
    places = np.unique(np.linspace(0, rows - 1, min(rows, wanted)).astype(np.int64))
    with readable(dataset):
        memories = dataset.take(places.tolist(), columns=["memory"])["memory"]
    if len(tokens := layout.tokens(memories)) < FIT_ROWS:
        return  # most documents are blank
    metadata = layout.fitted(tokens).schema_metadata
    table.change(lambda own: own.update_schema_metadata({**metadata}))
    rewrite_keys(table, lambda done: None)


def rewrite_keys(table: Table, progress: Callable[[int], Any]) -> None:
    """Write the keys that were made with older settings again; `progress` receives the number of rows done."""
    dataset = table.latest()
    if dataset is None:
        return
    layout = Layout.of(dataset.schema, table.uri)
    old = f"key_version <> {layout.key_version}"
    with readable(dataset):
        rows = np.sort(dataset.to_table(columns=[], filter=old, with_row_id=True)["_rowid"].to_numpy())
    parts = []
    for batch in batches(dataset, ["id", "content", "key"], rows) if len(rows) else ():
        keys = made_keys(dataset, layout, batch.column("_rowid").to_numpy())
        versions = pa.array(np.full(len(batch), layout.key_version, np.int64))
        own = [batch["id"], batch["content"], list_column(keys, window_counts(batch["key"]).tolist()), versions]
        parts.append(pa.Table.from_arrays(own, schema=pa.schema([dataset.schema.field(name) for name in _REWRITTEN])))
        progress(len(batch))
    if parts:
        table.update(pa.concat_tables(parts).combine_chunks())


_REWRITTEN: Final = ("id", "content", "key", "key_version")


# --- indexes ---------------------------------------------------------------------------------------------


def indexed_rows(dataset: LanceDataset) -> dict[str, int]:
    """Number of rows that each index of a version covers, by its name."""
    return {index.name: index.num_rows_indexed for index in dataset.describe_indices()}


def build_indexes(table: Table, report: Report) -> None:
    """Build missing indexes, and add new rows to the others; `report` receives the progress if Lance reports it."""
    dataset = table.latest()
    if dataset is None or not dataset.count_rows():
        return
    there, many = indexed_rows(dataset), dataset.count_rows() >= INDEX_ROWS
    for name, (column, kind, settings) in {**_INDEXES, **(_LARGE_INDEXES if many else {})}.items():
        if name not in there:
            _build_index(table, report, name, column, kind, settings)
    report("rows added since", 0, 0)
    table.change(lambda own: own.optimize.optimize_indices())


def _build_index(table: Table, report: Report, name: str, column: str, kind: str, settings: Mapping[str, Any]) -> None:
    step = f"index of {column}"
    report(step, 0, 0)

    def shown(event: IndexProgress) -> None:
        report(f"{step}: {event.stage}", event.completed or 0, event.total or 0)

    def build(own: LanceDataset) -> None:
        make: Callable[..., object] = own.create_index if kind == "IVF_RQ" else own.create_scalar_index
        make(column, kind, name=name, progress_callback=shown, **settings)

    table.change(build)
