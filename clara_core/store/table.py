"""One Lance table that many threads and processes read and write: snapshots, and commits that lose nothing.

A commit takes rows out and puts rows in at once. Writers of one machine take turns by a file lock beside the table. On
object storage, where there is none, Lance refuses two commits that touch the same row, and the later one looks again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import lance
import pyarrow as pa
from filelock import FileLock, Timeout
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from clara_core.errors import StoreError

TABLE: Final = "memories"
LOCK: Final = ".memories.lock"

_ATTEMPTS: Final = 20  # of a commit that others got in the way of
_PATIENCE: Final = 120.0  # seconds to wait for other writers
_PAUSE: Final = 0.05  # seconds before another attempt, at most, the first time
_MANY_ROWS: Final = 1 << 20  # of a file
_LARGE_FILE: Final = 1 << 30  # bytes, about


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit does.

    Attributes:
        removed: Row ids to take out.
        added: Files of rows to put in.
    """

    removed: Sequence[int] = ()
    added: Sequence[FragmentMetadata] = ()


class Table:
    """The table at a uri; it need not exist yet. Safe under threads.

    Args:
        uri: A folder, ``memory://`` for one that ends with this object, or the address of an object store.
        storage_options: Credentials and settings of the object store.
    """

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = storage_options
        self._folder = None if "://" in uri else Path(uri)
        self._address = f"{uri.rstrip('/')}/{'private/' if uri == 'memory://' else ''}{TABLE}.lance"
        self._dataset: LanceDataset | None = None
        self._state = threading.Lock()
        self._writing = threading.RLock()

    # --- reading -----------------------------------------------------------------------------------------

    def latest(self) -> LanceDataset | None:
        """A snapshot of the table as it is now; None while there is none. It never changes.

        Raises:
            StoreError: It is there and cannot be opened.
        """
        with self._state:
            if self._dataset is None:
                self._dataset = self._opened()
            elif (version := self._dataset.latest_version) != self._dataset.version:
                self._dataset = self._dataset.checkout_version(version)
            return self._dataset

    def _opened(self) -> LanceDataset | None:
        if self.uri.startswith("memory://"):
            return None
        if self._folder is not None and not (self._folder / f"{TABLE}.lance").exists():
            return None
        try:
            return lance.dataset(self._address, storage_options=self.storage_options)
        except (ValueError, OSError) as exc:
            if self._folder is None and "not found" in str(exc).lower():
                return None
            raise StoreError(f"the store at {self.uri} cannot be opened: {exc}") from exc

    # --- writing -----------------------------------------------------------------------------------------

    def create(self, schema: pa.Schema) -> LanceDataset:
        """Make the table, unless somebody just did."""
        with self.turn():
            if (there := self.latest()) is not None:
                return there
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            dataset = lance.write_dataset(
                schema.empty_table(), self._address, mode="create", storage_options=self.storage_options
            )
            with self._state:
                self._dataset = dataset
            return dataset

    def write(self, rows: pa.RecordBatch) -> list[FragmentMetadata]:
        """Write rows into files that belong to no version yet; `commit` makes them part of the table."""
        dataset = self.latest()
        if dataset is None:
            raise StoreError(f"there is no table at {self.uri}")
        found: list[FragmentMetadata] = write_fragments(
            pa.Table.from_batches([rows]), dataset, mode="append", max_rows_per_file=_MANY_ROWS
        )
        return found

    def commit(self, change: Callable[[LanceDataset], Change]) -> LanceDataset:
        """Change the table by what is right for its latest version; all of it becomes visible at once, or nothing.

        Args:
            change: Asked again whenever others changed the table meanwhile.

        Raises:
            StoreError: There is no table, others were always quicker, or did not let go of the lock.
        """
        return self.operate(lambda latest: _operation(latest, change(latest)))

    def operate(self, operation: Callable[[LanceDataset], LanceOperation.BaseOperation | None]) -> LanceDataset:
        """The same, with an operation of Lance; None is nothing to do."""
        with self.turn():
            for attempt in range(_ATTEMPTS):
                dataset = self.latest()
                if dataset is None:
                    raise StoreError(f"there is no table at {self.uri}")
                if (wanted := operation(dataset)) is None:
                    return dataset
                try:
                    done = LanceDataset.commit(
                        dataset, wanted, read_version=dataset.version, storage_options=self.storage_options
                    )
                except CommitConflictError:
                    _pause(attempt)
                    continue
                with self._state:
                    self._dataset = done
                return done
        raise StoreError(f"{_ATTEMPTS} commits to the store at {self.uri} met others' commits; let fewer writers write")

    def set_cover(self, cover: dict[str, str]) -> None:
        """Replace what stands on the table's cover."""
        with self.turn():
            dataset = self.latest()
            if dataset is None:
                raise StoreError(f"there is no table at {self.uri}")
            _own(dataset).update_schema_metadata({**cover})

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Write alone on this machine.

        Raises:
            StoreError: Another writer did not finish in time.
        """
        with self._writing:
            if self._folder is None:
                yield
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / LOCK)
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout:
                raise StoreError(f"another process has been writing to {self.uri} for {_PATIENCE:.0f} seconds; "
                                 "try again when it is done") from None  # fmt: skip
            try:
                yield
            finally:
                lock.release()

    def compact(self, older_than: timedelta) -> None:
        """Merge small files, drop rows that were taken out, and delete versions that are older."""
        for attempt in range(_ATTEMPTS):
            if (dataset := self.latest()) is None:
                return
            try:
                own = _own(dataset)
                own.optimize.compact_files(target_rows_per_fragment=_MANY_ROWS, max_bytes_per_file=_LARGE_FILE)
                own.cleanup_old_versions(older_than=older_than)
            except CommitConflictError:
                _pause(attempt)
                continue
            return
        raise StoreError(f"{_ATTEMPTS} tries to compact the store at {self.uri} met others' commits; "
                         "compact it when less is written")  # fmt: skip


def _own(dataset: LanceDataset) -> LanceDataset:
    """The same version as an object that may change in place."""
    return dataset.checkout_version(dataset.version)


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, _PAUSE * min(2**attempt, 32)))


def _operation(dataset: LanceDataset, change: Change) -> LanceOperation.BaseOperation | None:
    if not change.removed and not change.added:
        return None
    offsets: dict[int, list[int]] = {}
    for row in change.removed:
        offsets.setdefault(row >> 32, []).append(row & 0xFFFFFFFF)  # a row id is file and place
    changed, gone = [], []
    for fragment, rows in offsets.items():
        file = dataset.get_fragment(fragment)
        left = None if file is None else file.delete_rows(rows)
        if left is None:
            gone.append(fragment)
        else:
            changed.append(left)
    return LanceOperation.Update(removed_fragment_ids=gone, updated_fragments=changed, new_fragments=list(change.added))
