"""One Lance table that many threads and processes read and write: versions, and changes that lose nothing.

A change is one commit of Lance's own: `merge_insert` by the primary key, or `delete`. Two that touch the same document
exclude each other, and the later one is done again on what the earlier left. Nobody waits for a lock.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import lance
import pyarrow as pa
from lance import LanceDataset

from clara_core.common.errors import StoreError

TABLE: Final = "memories"

_PATIENCE: Final = 120.0  # seconds in which a change is tried again when others were quicker
_RETRIES: Final = 1000  # at most, in that time
_TRIES: Final = 3  # of what finds a file gone
_PAUSE: Final = 0.02  # seconds before another try, at most, the first time

T = TypeVar("T")


class Table:
    """The table at an address; it need not exist yet. Safe under threads; a child of a fork opens it anew.

    Args:
        uri: A folder, or the address of an object store.
        storage_options: Credentials and settings of the object store.

    Raises:
        StoreError: The address is that of a file.
    """

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        folder = folder_of(uri)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise StoreError(f"a store is a folder, and {folder} is a file; give the folder that it is to be in")
        self.uri = uri if folder is None else str(folder)
        self.storage_options = storage_options
        self._folder = folder
        self.address = f"{self.uri.rstrip('/')}/{TABLE}.lance"
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.uri, self.storage_options)

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._dataset: LanceDataset | None = None
        self._state = threading.Lock()

    # --- reading -----------------------------------------------------------------------------------------

    def latest(self) -> LanceDataset | None:
        """The table as it is now; None while there is none. What is returned never changes.

        Raises:
            StoreError: It is there and cannot be opened.
        """
        if self._pid != os.getpid():  # a child: what its parent opened is of no use here
            self._forget()
        with self._state:
            if self._dataset is None:
                self._dataset = self._opened()
            elif (version := self._dataset.latest_version) != self._dataset.version:
                self._dataset = self._dataset.checkout_version(version)
            return self._dataset

    def _opened(self) -> LanceDataset | None:
        if self._folder is not None and not (self._folder / f"{TABLE}.lance").exists():
            return None
        try:
            return lance.dataset(self.address, storage_options=self.storage_options)
        except (ValueError, OSError) as exc:
            if "not found" in str(exc).lower() and not self._holds_data():
                return None  # or is just being made, or somebody was killed while making it
            raise StoreError(f"the store at {self.uri} cannot be opened: {exc}") from exc

    def _holds_data(self) -> bool:
        return self._folder is not None and any((self._folder / f"{TABLE}.lance" / "data").glob("*"))

    # --- writing -----------------------------------------------------------------------------------------

    def create(self, schema: pa.Schema) -> LanceDataset:
        """Make the table, unless somebody just did."""
        if (there := self.latest()) is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            try:
                there = lance.write_dataset(
                    schema.empty_table(), self.address, mode="create", storage_options=self.storage_options
                )
            except OSError:  # of makers of one moment one succeeds
                if (there := self.latest()) is None:
                    raise
        return there

    def merge(self, rows: pa.Table) -> None:
        """Put rows in, all of them or none; one whose id is there takes the other's place.

        Raises:
            StoreError: There is no table, or others were quicker all the time.
        """

        def commit(own: LanceDataset) -> None:
            # Not by the index of ids: Lance then does not notice that two writers insert the same new id.
            merge = own.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().use_index(False)
            _patient(merge).execute(rows)

        self.change(commit)

    def update(self, rows: pa.Table) -> None:
        """Replace columns of those documents that still have the ``content`` of the row with their id."""
        condition = "target.content = source.content"
        self.change(lambda own: _patient(own.merge_insert("id").when_matched_update_all(condition)).execute(rows))

    def remove(self, ids: pa.Table) -> int:
        """Take out the documents with these ids, all at once; returns how many there were."""
        done = self.change(lambda own: _patient(own.merge_insert("id").when_matched_delete()).execute(ids))
        return int(done["num_deleted_rows"])

    def remove_where(self, predicate: str) -> int:
        """Take out the rows that a predicate holds for, all at once; returns how many there were."""
        timeout = timedelta(seconds=_PATIENCE)
        done = self.change(lambda own: own.delete(predicate, conflict_retries=_RETRIES, retry_timeout=timeout))
        return int(done["num_deleted_rows"])

    def change(self, work: Callable[[LanceDataset], T]) -> T:
        """Do what Lance commits by itself; again when others got in the way.

        Args:
            work: Called with the latest version, as an object that may change in place.

        Raises:
            StoreError: There is no table, or somebody was quicker all the time.
        """
        until, lost = time.monotonic() + _PATIENCE, 0
        for attempt in range(_RETRIES):
            if (dataset := self.latest()) is None:
                break
            own = dataset.checkout_version(dataset.version)
            try:
                done = work(own)
            except OSError as exc:
                # A file that is gone: somebody dropped this version while it was worked on, or it is broken.
                gone = "not found" in str(exc).lower()
                lost += gone
                if not _is_conflict(exc) and not (gone and lost < _TRIES):
                    raise
                if time.monotonic() > until:
                    raise StoreError(
                        f"others have been writing to {self.uri} for {_PATIENCE:.0f} seconds, each time quicker; let "
                        "fewer writers write, and try again"
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


def _is_conflict(exc: OSError) -> bool:
    """Whether somebody else's commit was the reason; Lance says only some of these by their type."""
    text = str(exc).lower()
    return "conflict" in text or "contention" in text or "concurrent" in text


def data_bytes(dataset: LanceDataset) -> int:
    """What the rows of a version take on disk."""
    return sum(file.file_size_bytes or 0 for fragment in dataset.get_fragments() for file in fragment.metadata.files)


def folder_of(uri: str) -> Path | None:
    """The folder of this machine that an address means, whole: a process may change where it is."""
    if uri.startswith("file://"):
        return Path(url2pathname(urlsplit(uri).path)).absolute()
    return None if "://" in uri else Path(uri).expanduser().absolute()
