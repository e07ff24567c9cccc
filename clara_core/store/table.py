"""One Lance table that many threads and processes read and write: snapshots, and commits that lose nothing.

A commit takes rows out and puts rows in at once. Writers of one machine take turns by a file lock beside the table. On
object storage, where there is none, Lance refuses two commits that touch the same row, and the later one looks again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import lance
import pyarrow as pa
from filelock import FileLock, Timeout
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments
from lance.progress import IndexProgress

from clara_core.errors import StoreError

TABLE: Final = "memories"
TEXT_INDEX: Final = "text_words"
LOCK: Final = ".memories.lock"
UPKEEP_LOCK: Final = ".memories.upkeep.lock"

_ATTEMPTS: Final = 20  # of a commit that others got in the way of
_BESIDE_OTHERS: Final = 3  # attempts of tidying before others have to wait
_PATIENCE: Final = 120.0  # seconds to wait for other writers
_PAUSE: Final = 0.05  # seconds before another attempt, at most, the first time
_MANY_ROWS: Final = 1 << 20  # of a file
_LARGE_FILE: Final = 1 << 30  # bytes, about
_MERGED_BYTES: Final = 1 << 25  # that are merged at a time
_LARGE_PART: Final = 1 << 32  # bytes of files that are merged by one commit, about

T = TypeVar("T")


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
        self._folder = _folder(uri)
        place = uri.rstrip("/") if self._folder is None else str(self._folder)
        self._address = f"{place}/{'private/' if uri == 'memory://' else ''}{TABLE}.lance"
        self._dataset: LanceDataset | None = None
        self._state = threading.Lock()
        self._writing = _Lock(self._folder, LOCK)
        self._tidying = _Lock(self._folder, UPKEEP_LOCK)

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
            if "not found" in str(exc).lower() and not self._holds_data():
                return None  # or is just being made, or somebody was killed while making it
            raise StoreError(f"the store at {self.uri} cannot be opened: {exc}") from exc

    def _holds_data(self) -> bool:
        return self._folder is not None and any((self._folder / f"{TABLE}.lance" / "data").glob("*"))

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
            index_words(dataset)  # it says how rows that it does not cover yet are searched, too: in any case
            with self._state:
                self._dataset = dataset
            return dataset

    def write(self, rows: pa.RecordBatch) -> list[FragmentMetadata]:
        """Write rows into files that belong to no version yet; `commit` makes them part of the table."""
        found: list[FragmentMetadata] = write_fragments(
            pa.Table.from_batches([rows]), self._there(), mode="append", max_rows_per_file=_MANY_ROWS
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
                dataset = self._there()
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

    def maintain(self, work: Callable[[LanceDataset], T]) -> T:
        """Do what Lance itself commits, while others write; if they get in the way too often, while they wait.

        Args:
            work: Called with the latest version, as an object that may change in place; again if it came to nothing.

        Raises:
            StoreError: There is no table, or somebody got in the way every time.
        """
        for attempt in range(_ATTEMPTS):
            with nullcontext() if attempt < _BESIDE_OTHERS else self.turn():
                dataset = self._there()
                try:
                    return work(dataset.checkout_version(dataset.version))
                except OSError as exc:  # Lance says only some conflicts by their type
                    if not isinstance(exc, CommitConflictError) and "commit conflict" not in str(exc):
                        raise
            _pause(attempt)
        raise StoreError(f"{_ATTEMPTS} tries to tidy the store at {self.uri} met others' commits; try again when less "
                         "is written")  # fmt: skip

    def set_cover(self, cover: dict[str, str]) -> None:
        """Replace what stands on the table's cover."""
        self.maintain(lambda dataset: dataset.update_schema_metadata({**cover}))

    def compact(self, older_than: timedelta) -> None:
        """Merge small files, drop rows that were taken out, and delete versions that are older.

        Not all at once: what meets another's commit has to be done again.
        """

        def part(dataset: LanceDataset) -> bool:
            width = max(1, data_bytes(dataset) // max(1, dataset.count_rows()))  # bytes of a row
            done = dataset.optimize.compact_files(
                # A file with fewer rows is merged again: this has to agree with the size that files come out with.
                target_rows_per_fragment=min(_MANY_ROWS, max(1, _LARGE_FILE // width)),
                max_source_bytes=_LARGE_PART,
                batch_size=min(_MANY_ROWS, max(1, _MERGED_BYTES // width)),
                num_threads=1,
            )
            return bool(done.fragments_removed > done.fragments_added)

        while self.maintain(part):
            pass
        self.maintain(lambda dataset: dataset.cleanup_old_versions(older_than=older_than))

    def turn(self) -> AbstractContextManager[None]:
        """Write alone on this machine.

        Raises:
            StoreError: Another writer did not finish in time.
        """
        return self._writing.held(self.uri)

    def upkeep(self) -> AbstractContextManager[None]:
        """Tidy alone on this machine; others may write.

        Raises:
            StoreError: Somebody else who tidies did not finish in time.
        """
        return self._tidying.held(self.uri)

    def _there(self) -> LanceDataset:
        if (dataset := self.latest()) is None:
            raise StoreError(f"there is no table at {self.uri}")
        return dataset


def data_bytes(dataset: LanceDataset) -> int:
    """What the rows of a snapshot take on disk."""
    return sum(file.file_size_bytes or 0 for fragment in dataset.get_fragments() for file in fragment.metadata.files)


def _folder(uri: str) -> Path | None:
    """The folder of this machine that an address means; whole, since a process may change where it is."""
    if uri.startswith("file://"):
        return Path(url2pathname(urlsplit(uri).path)).absolute()
    return None if "://" in uri else Path(uri).absolute()


class _Lock:
    """One holder among the threads and processes of this machine; it may take it again. A killed one lets go.

    Args:
        folder: Where its file lies; without one there are no other processes.
        name: Of the file.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self._folder = folder
        self._here = threading.RLock()
        self._file = None if folder is None else FileLock(folder / name, thread_local=False)

    @contextmanager
    def held(self, uri: str) -> Iterator[None]:
        with self._here:
            if self._folder is None or self._file is None:
                yield
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._file.acquire(timeout=_PATIENCE)
            except Timeout:
                raise StoreError(f"another process has been writing to {uri} for {_PATIENCE:.0f} seconds (it holds "
                                 f"{self._file.lock_file}); try again when it is done") from None  # fmt: skip
            try:
                yield
            finally:
                self._file.release()


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, _PAUSE * min(2**attempt, 32)))


def index_words(dataset: LanceDataset, progress: Callable[[IndexProgress], None] | None = None) -> None:
    """Index the words of texts. Names and numbers are what they are there for: nothing is stemmed or left out."""
    dataset.create_scalar_index(
        "text", "INVERTED", name=TEXT_INDEX, with_position=False, stem=False, remove_stop_words=False,
        progress_callback=progress,
    )  # fmt: skip


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
