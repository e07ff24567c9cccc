"""Broken files and full disks: errors that say which file and what to do, and a way back to what is whole.

Lance checks the structure of a file, not each byte of it: what is missing or garbled is found, a bit that fell over
inside a memory is not. That is the business of the file system or the object store.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from clara_core.common.errors import StoreError
from clara_core.store.backend import Report
from clara_core.store.records import Broken

if TYPE_CHECKING:
    from lance import LanceDataset, LanceFragment

    from clara_core.store.table import Table

__all__ = ["broken_files", "meaning", "salvage"]

_MAGIC: Final = b"LANC"  # the last bytes of a data file
_SHOWN: Final = 3  # files that an error names
_READ_BYTES: Final = 1 << 28  # of files that are read to find out what an error means, at most
_OF_SYSTEM: Final = re.compile(
    r"os error \d+|no space left|file too large|timed? ?out|connection|credential", re.IGNORECASE
)


def broken_files(dataset: LanceDataset, report: Report, *, sizes_only: bool = False) -> list[Broken]:
    """Files of a table that cannot be read. Looks at all sizes first, and only then reads.

    Args:
        dataset: The table.
        report: Told how many files are done.
        sizes_only: Read nothing.
    """
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
    """Take the documents of broken files out of a table.

    Older versions of the table still name the files, and nothing is deleted.

    Returns:
        list: The broken files; without any, nothing was changed.
    """
    dataset = table.latest()
    found = [] if dataset is None else broken_files(dataset, report)
    if found:
        # The number of a row is that of its file and its place there; a file's number is never used again.
        spans = (f"(_rowid >= {each.fragment << 32} AND _rowid < {(each.fragment + 1) << 32})" for each in found)
        table.remove_where(" OR ".join(spans))
    return found


def meaning(table: Table, exc: BaseException) -> StoreError | None:
    """What an error means for a store; None for one that does not come from Lance.

    It names broken files where their size or end tells, or the error does, or little has to be read to find them: what
    the system says of itself (a full disk, a lost connection) needs no look, and a large store is not read for it.
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
            f"the store at {table.uri} has broken files: {shown}{more}. Put them back from a copy, or call salvage() "
            "to go on without their documents and add those again"
        )
    hint = "make room or mend the disk, and try again" if of_system else "check() reads all of its files"
    return StoreError(
        f"the store at {table.uri} could not be read or written: {reason}. What was acknowledged is safe; {hint}"
    )


def is_of_lance(exc: BaseException) -> bool:
    """Whether an error comes from Lance; where garbage lets it panic, that is no `Exception`."""
    return isinstance(exc, OSError | pa.ArrowException) or type(exc).__name__ == "PanicException"


def _suspects(dataset: LanceDataset, reason: str, *, read: bool) -> list[Broken]:
    """Files with a wrong size or end, else the first of a few that cannot be read."""
    found = broken_files(dataset, lambda *_: None, sizes_only=True)
    if found or not read:
        return found
    fragments = dataset.get_fragments()
    named = [each for each in fragments if any(file.path in reason for file in each.metadata.files)]
    left = _READ_BYTES
    for fragment in named or fragments:
        left -= sum(file.file_size_bytes or 0 for file in fragment.metadata.files)
        if left < 0:
            break
        if broken := _unreadable(dataset, fragment):
            return [broken]
    return []


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
        if not (is_of_lance(exc) or isinstance(exc, ValueError | RuntimeError)):
            raise
        return _broken(dataset, fragment, " ".join(str(exc).split())[:120])
    return None


def _broken(dataset: LanceDataset, fragment: LanceFragment, reason: str) -> Broken:
    path = f"{dataset.uri}/data/{fragment.metadata.files[0].path}"
    return Broken(path, fragment.metadata.num_rows, reason, fragment.fragment_id)
