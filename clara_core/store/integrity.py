"""Finds broken files, explains errors of Lance, and removes the documents of broken files.

Lance checks the structure of a file but not each byte: it finds missing and garbled data, but not a changed bit inside
a memory. The file system or object store has to prevent that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pyarrow as pa
from lance import LanceDataset, LanceFragment

from clara_core.common.errors import StoreError
from clara_core.store.backend import Report
from clara_core.store.records import Broken
from clara_core.store.table import Table, data_bytes

_MAGIC: Final = b"LANC"  # the last bytes of a data file
_SHOWN: Final = 3  # files named in an error
_READ_BYTES: Final = 1 << 28  # most bytes read to find the cause of an error
_OF_SYSTEM: Final = re.compile(
    r"os error \d+|no space left|file too large|timed? ?out|connection|credential", re.IGNORECASE
)


def broken_files(dataset: LanceDataset, report: Report, *, sizes_only: bool = False) -> list[Broken]:
    """Return the files of a table that cannot be read. All sizes are checked before any file is read, if any is."""
    fragments = dataset.get_fragments()
    found = [broken for fragment in fragments if (broken := _misshapen(dataset, fragment))]
    seen = {broken.fragment for broken in found}
    for number, fragment in enumerate(() if sizes_only else fragments):
        report("files", number, len(fragments))
        if fragment.fragment_id not in seen and (broken := _unreadable(dataset, fragment)):
            found.append(broken)
    report("files", len(fragments), len(fragments))
    return found


def salvage(table: Table, report: Report) -> list[Broken]:
    """Delete the documents of broken files, but no file, since older versions refer to them; returns the files."""
    dataset = table.latest()
    found = [] if dataset is None else broken_files(dataset, report)
    if found:
        # A row number consists of the number of its file and its position there; file numbers are never used again.
        spans = (f"(_rowid >= {each.fragment << 32} AND _rowid < {(each.fragment + 1) << 32})" for each in found)
        table.remove_where(" OR ".join(spans))
    return found


def meaning(table: Table, exc: BaseException) -> StoreError | None:
    """The meaning of an error for a store; None for an error that does not come from Lance.

    The error names broken files if they are found by their sizes, by the text of the error, or by reading a little.
    Errors of the system (a full disk, a lost connection) and large stores are not examined by reading.
    """
    cause = exc.__cause__ if isinstance(exc, StoreError) and exc.__cause__ is not None else exc
    if not is_of_lance(cause):
        return None
    reason = " ".join(str(cause).split())[:300]
    of_system = getattr(cause, "errno", None) is not None or _OF_SYSTEM.search(reason) is not None
    try:
        dataset = table.latest()
        broken = [] if dataset is None else _suspects(dataset, reason, read=not of_system)
    except BaseException as other:
        if not is_of_lance(other) and not isinstance(other, StoreError):
            raise
        broken = []
    if broken:
        shown = "; ".join(f"{file.path} ({file.rows} rows: {file.reason})" for file in broken[:_SHOWN])
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        return StoreError(
            f"the store at {table.uri} has broken files: {shown}{more}. Restore them from a copy, or call salvage() "
            "to remove their documents and add those again"
        )
    hint = "free space or repair the disk, and try again" if of_system else "check() reads all of its files"
    return StoreError(
        f"the store at {table.uri} could not be read or written: {reason}. What was acknowledged is safe; {hint}"
    )


def is_of_lance(exc: BaseException) -> bool:
    """Whether an error comes from Lance. Lance may panic on garbled data; such an error is not an `Exception`."""
    return isinstance(exc, OSError | pa.ArrowException) or type(exc).__name__ == "PanicException"


def _suspects(dataset: LanceDataset, reason: str, *, read: bool) -> list[Broken]:
    """Files with a wrong size or end; otherwise the first unreadable one of a few that are read."""
    found = broken_files(dataset, lambda *_: None, sizes_only=True)
    if found or not read:
        return found
    fragments = dataset.get_fragments()
    named = [each for each in fragments if any(file.path in reason for file in each.metadata.files)]
    left = _READ_BYTES
    for fragment in named or fragments:
        left -= data_bytes([fragment])
        if left < 0:
            break
        if broken := _unreadable(dataset, fragment):
            return [broken]
    return []


# --- looking at files ------------------------------------------------------------------------------------


def _misshapen(dataset: LanceDataset, fragment: LanceFragment) -> Broken | None:
    """The first file of a fragment in a local folder whose size or end is wrong."""
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
        if not (is_of_lance(exc) or isinstance(exc, ValueError | RuntimeError)):
            raise
        return _broken(dataset, fragment, " ".join(str(exc).split())[:120])
    return None


def _broken(dataset: LanceDataset, fragment: LanceFragment, reason: str) -> Broken:
    path = f"{dataset.uri}/data/{fragment.metadata.files[0].path}"
    return Broken(path, fragment.metadata.num_rows, reason, fragment.fragment_id)
