"""Broken files and full disks: errors that say which file and what to do, and a way back to what is whole.

Lance checks the structure of a file, not each byte of it: what is missing or garbled is found, a bit that fell over
inside a memory is not. That is the business of the file system or the object store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from clara_core.errors import StoreError
from clara_core.store.table import Change, Table

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

__all__ = ["Broken", "broken_files", "explained", "explaining", "salvage"]

_MAGIC: Final = b"LANC"  # the last bytes of a data file
_SHOWN: Final = 3  # files that an error names


@dataclass(frozen=True, slots=True)
class Broken:
    """A file of rows that cannot be read.

    Attributes:
        path: Of the file.
        rows: Windows of documents that were in it.
        reason: What was found.
        fragment: Its number in the table.
    """

    path: str
    rows: int
    reason: str
    fragment: int


def broken_files(dataset: LanceDataset, *, first_only: bool = False) -> list[Broken]:
    """Files of a table that cannot be read. Looks at all sizes first, and only then reads.

    Args:
        dataset: The table.
        first_only: Stop as soon as there are some.
    """
    fragments = dataset.get_fragments()
    found = [broken for fragment in fragments if (broken := _misshapen(dataset, fragment))]
    seen = {broken.fragment for broken in found}
    for fragment in fragments:
        if found and first_only:
            break
        if fragment.fragment_id not in seen and (broken := _unreadable(dataset, fragment)):
            found.append(broken)
    return found


def salvage(table: Table) -> list[Broken]:
    """Take the rows of broken files out of a table, with what else is left of their documents.

    Older versions of the table still name the files, and nothing is deleted.

    Returns:
        list: The broken files; without any, nothing was changed.
    """
    found: list[Broken] = []

    def change(latest: LanceDataset) -> Change:
        found[:] = broken_files(latest)
        if not found:
            return Change()
        gone = {broken.fragment for broken in found}
        rows = [number << 32 | row for number in sorted(gone) for row in range(_physical_rows(latest, number))]
        whole = [fragment for fragment in latest.get_fragments() if fragment.fragment_id not in gone]
        return Change([*rows, *_torn_rows(latest, whole)])

    if table.latest() is not None:
        table.commit(change)
    return found


@contextmanager
def explained(table: Table) -> Iterator[None]:
    """Say of an error of the engine what it means for the store.

    Raises:
        StoreError: A file is broken, or could not be read or written.
    """
    try:
        yield
    except BaseException as exc:
        cause = exc.__cause__ if isinstance(exc, StoreError) and exc.__cause__ is not None else exc
        if not _is_of_engine(cause):
            raise
        raise StoreError(_meaning(table, cause)) from cause


class _HasTable(Protocol):
    _table: Table


C = TypeVar("C", bound=type[Any])


def explaining(*methods: str) -> Callable[[C], C]:
    """For a class with a ``_table``: its methods explain errors of the engine."""

    def decorated(cls: C) -> C:
        for name in methods:
            setattr(cls, name, _explaining(getattr(cls, name)))
        return cls

    return decorated


def _explaining(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: _HasTable, *args: Any, **kwargs: Any) -> Any:
        with explained(self._table):
            result = method(self, *args, **kwargs)
        return _each(self._table, result) if isinstance(result, Iterator) else result

    return wrapper


def _each(table: Table, values: Iterator[Any]) -> Iterator[Any]:
    with explained(table):
        yield from values


def _meaning(table: Table, exc: BaseException) -> str:
    reason = " ".join(str(exc).split())[:300]
    try:
        dataset = table.latest()
        broken = [] if dataset is None else broken_files(dataset, first_only=True)
    except BaseException as other:
        if not _is_of_engine(other):
            raise
        broken = []
    if not broken:
        return (
            f"the store at {table.uri} could not be read or written: {reason}. What was acknowledged is safe; make "
            "room or mend the disk, and try again"
        )
    shown = "; ".join(f"{file.path} ({file.rows} rows: {file.reason})" for file in broken[:_SHOWN])
    more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return (
        f"the store at {table.uri} has broken files: {shown}{more}. Put them back from a copy, or call salvage() to go "
        "on without their documents and add those again"
    )


def _is_of_engine(exc: BaseException) -> bool:
    """Whether an error comes from Lance; where garbage lets it panic, that is no `Exception`."""
    return isinstance(exc, OSError | pa.ArrowException) or type(exc).__name__ == "PanicException"


# --- looking at files ------------------------------------------------------------------------------------


def _misshapen(dataset: LanceDataset, fragment: LanceFragment) -> Broken | None:
    """Files of this machine whose size or end is not what it should be."""
    if "://" in dataset.uri:
        return None
    for file in fragment.metadata.files:
        path = Path(dataset.uri) / "data" / file.path
        try:
            with path.open("rb") as opened:
                size = opened.seek(0, 2)
                opened.seek(max(0, size - len(_MAGIC)))
                end = opened.read()
        except OSError as exc:
            return _broken(dataset, fragment, exc.strerror or type(exc).__name__)
        if file.file_size_bytes and size != file.file_size_bytes:
            return _broken(dataset, fragment, f"{size} bytes instead of {file.file_size_bytes}")
        if end != _MAGIC:
            return _broken(dataset, fragment, f"ends with {end!r} instead of {_MAGIC!r}")
    return None


def _unreadable(dataset: LanceDataset, fragment: LanceFragment) -> Broken | None:
    try:
        for batch in fragment.to_batches():
            batch.validate(full=True)
    except BaseException as exc:
        if not _is_of_engine(exc):
            raise
        return _broken(dataset, fragment, " ".join(str(exc).split())[:120])
    return None


def _broken(dataset: LanceDataset, fragment: LanceFragment, reason: str) -> Broken:
    path = f"{dataset.uri}/data/{fragment.metadata.files[0].path}"
    return Broken(path, fragment.metadata.num_rows, reason, fragment.fragment_id)


def _physical_rows(dataset: LanceDataset, number: int) -> int:
    fragment = dataset.get_fragment(number)
    return 0 if fragment is None else int(fragment.metadata.physical_rows)


def _torn_rows(dataset: LanceDataset, fragments: Sequence[LanceFragment]) -> list[int]:
    """Rows of documents of which these fragments do not hold all windows."""
    if not fragments:
        return []
    columns = ["id", "window", "windows"]
    table: pa.Table = dataset.scanner(columns=columns, fragments=list(fragments), with_row_id=True).to_table()
    counted = table.group_by("id").aggregate([("window", "count"), ("windows", "max")])
    torn = counted.filter(pc.not_equal(counted["window_count"], pc.cast(counted["windows_max"], pa.int64())))
    rows: list[int] = table.filter(pc.is_in(table["id"], torn["id"].combine_chunks()))["_rowid"].to_pylist()
    return rows
