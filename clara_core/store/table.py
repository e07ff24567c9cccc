"""One Lance table that many threads and processes read and write: its versions, and commits that lose no change.

A change is one commit of Lance: `merge_insert` by the primary key, or `delete`. Of two commits that change the same
document, the later one fails and is repeated on the result of the earlier one. There are no locks.

Rows of a version are read by values or by row numbers, in bounded memory. Input from outside becomes quoted strings in
predicates. Errors of reading become `StoreError`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import lance
import pyarrow as pa
from lance import LanceDataset, LanceFragment
from lance.dataset import ScannerBuilder, serialize_row_addrs

from clara_core.common.errors import StoreError
from clara_core.store.backend import Rows
from clara_core.store.records import escape

TABLE: Final = "memories"

_PATIENCE: Final = 120.0  # seconds for which a change is repeated while other writers are faster
_RETRIES: Final = 1000  # most repetitions in that time
_TRIES: Final = 3  # attempts if a file is missing
_PAUSE: Final = 0.02  # longest pause in seconds before the first repetition
_AHEAD_BYTES: Final = 1 << 27  # bytes read ahead; Lance's default is two gigabytes
_VALUES: Final = 10_000  # most strings in a predicate

T = TypeVar("T")


class Table:
    """The table at an address; it need not exist yet. Safe under threads, but not after a fork."""

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        folder = folder_of(uri)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise StoreError(f"a store is a folder, but {folder} is a file; give the path of a folder")
        self.uri = uri if folder is None else str(folder)
        self.storage_options = storage_options
        self._folder = folder
        self.address = f"{self.uri.rstrip('/')}/{TABLE}.lance"
        self._dataset: LanceDataset | None = None
        self._state = threading.Lock()

    def latest(self) -> LanceDataset | None:
        """The latest version of the table, which never changes; None if the table does not exist."""
        with self._state:
            for left in reversed(range(_TRIES)):
                try:
                    if self._dataset is None:
                        self._dataset = self._opened()
                    elif (version := self._dataset.latest_version) != self._dataset.version:
                        self._dataset = self._dataset.checkout_version(version)
                    break
                except (OSError, ValueError) as exc:
                    if not left or not _is_deleted(exc):
                        raise
            return self._dataset

    def _opened(self) -> LanceDataset | None:
        if self._folder is not None and not (self._folder / f"{TABLE}.lance").exists():
            return None
        try:
            return lance.dataset(self.address, storage_options=self.storage_options)
        except (ValueError, OSError) as exc:
            if "not found" in str(exc).lower() and not self._holds_data():
                return None  # or it is being created now, or its creator was killed
            raise StoreError(f"the store at {self.uri} cannot be opened: {exc}") from exc

    def _holds_data(self) -> bool:
        return self._folder is not None and any((self._folder / f"{TABLE}.lance" / "data").glob("*"))

    def create(self, schema: pa.Schema) -> LanceDataset:
        """Create the table, unless it exists."""
        if (there := self.latest()) is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            try:
                there = lance.write_dataset(
                    schema.empty_table(), self.address, mode="create", storage_options=self.storage_options
                )
            except OSError:  # of several simultaneous creators one succeeds
                if (there := self.latest()) is None:
                    raise
        return there

    def merge(self, rows: pa.Table) -> None:
        """Add rows, all of them or none; a row with a known id replaces the stored one."""

        def commit(own: LanceDataset) -> None:
            # The index of ids is not used: with it, Lance does not notice that two writers insert the same new id.
            merge = own.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().use_index(False)
            _patient(merge).execute(rows)

        self.change(commit)

    def update(self, rows: pa.Table) -> None:
        """Replace columns of the documents whose ``content`` still equals that of the row with their id."""
        condition = "target.content = source.content"
        self.change(lambda own: _patient(own.merge_insert("id").when_matched_update_all(condition)).execute(rows))

    def remove(self, ids: pa.Table) -> int:
        """Delete the documents with these ids in one commit; returns their number."""
        done = self.change(lambda own: _patient(own.merge_insert("id").when_matched_delete()).execute(ids))
        return int(done["num_deleted_rows"])

    def remove_where(self, predicate: str) -> int:
        """Delete the rows that meet a predicate in one commit; returns their number."""
        timeout = timedelta(seconds=_PATIENCE)
        done = self.change(lambda own: own.delete(predicate, conflict_retries=_RETRIES, retry_timeout=timeout))
        return int(done["num_deleted_rows"])

    def change(self, work: Callable[[LanceDataset], T]) -> T:
        """Make a change of the latest version, an object of its own; repeat it if it conflicts with others.

        Raises:
            StoreError: There is no table, or other writers were faster every time.
        """
        until, lost = time.monotonic() + _PATIENCE, 0
        for attempt in range(_RETRIES):
            if (dataset := self.latest()) is None:
                break
            try:
                own = dataset.checkout_version(dataset.version)
                done = work(own)
            except (OSError, ValueError) as exc:
                # A file is missing: another process deleted this version meanwhile, or the file is broken.
                gone = "not found" in str(exc).lower()
                lost += gone
                if not _is_conflict(exc) and not (gone and lost < _TRIES):
                    raise
                if time.monotonic() > until:
                    raise StoreError(
                        f"others have been writing to {self.uri} for {_PATIENCE:.0f} seconds and were faster every "
                        "time; use fewer writers, and try again"
                    ) from exc
                time.sleep(random.uniform(0, _PAUSE * min(2**attempt, 32)))
                continue
            with self._state:
                if self._dataset is not None and own.version > self._dataset.version:
                    self._dataset = own
            return done
        raise StoreError(f"there is no table at {self.uri}")


def _patient(merge: Any) -> Any:
    return merge.conflict_retries(_RETRIES).retry_timeout(timedelta(seconds=_PATIENCE))


def _is_conflict(exc: OSError | ValueError) -> bool:
    """Whether the error comes from another writer's commit. Lance gives only some of these errors their own type."""
    text = str(exc).lower()
    return _is_deleted(exc) or (
        isinstance(exc, OSError) and ("conflict" in text or "contention" in text or "concurrent" in text)
    )


def _is_deleted(exc: OSError | ValueError) -> bool:
    """Whether another process has deleted a version, or a reader its tag, after this one read of it."""
    text = str(exc).lower()
    return "not found" in text and ("/_versions/" in text or "/_refs/tags/" in text)


def data_bytes(fragments: Iterable[LanceFragment]) -> int:
    """Bytes on disk of rows."""
    return sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.metadata.files)


def folder_of(uri: str) -> Path | None:
    """The absolute local folder of an address, since a process may change its working directory."""
    if uri.startswith("file://"):
        return Path(url2pathname(urlsplit(uri).path)).absolute()
    return None if "://" in uri else Path(uri).expanduser().absolute()


# --- reading ---------------------------------------------------------------------------------------------


def scanner(dataset: LanceDataset, columns: Sequence[str], rows: Rows | None) -> ScannerBuilder:
    """A scan over the rows with given numbers, or over all rows for None; its result includes ``_rowid``."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id()
    # Both names are public, but not documented; pyproject bounds the version of Lance because of them.
    return builder if rows is None else builder.row_addr_prefilter(serialize_row_addrs(rows.tolist())).prefilter(True)


@contextmanager
def readable(dataset: LanceDataset) -> Iterator[None]:
    """Turn errors of reading into `StoreError`, with Lance's error, which names the file."""
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
