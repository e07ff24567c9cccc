"""Cuts a dataset into shards, the same way every time, and reads their rows.

This module handles files and rows only, not models or stores. A dataset is a file or a folder (or an address of an
object store) of Parquet or JSON lines, or a Lance dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from clara_core.common.errors import DataError
from clara_core.common.place import absolute

Format = Literal["parquet", "jsonl", "lance"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".lance": "lance"}

_READ = 1 << 24  # bytes of a file scanned at a time
_ROWS = 1024  # rows in a batch


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a dataset."""

    path: str  # of the file or Lance dataset
    format: Format
    start: int  # first row group (Parquet), byte (JSON lines) or row (Lance)
    stop: int  # the one after the last
    rows: int  # including empty lines
    version: int  # changes if the file changes: its size, or the version of a Lance dataset

    @property
    def name(self) -> str:
        """A unique name of the shard that can be a file name; always the same for the same shard."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        return digest.hexdigest()[:24]


class Rows(NamedTuple):
    """Some rows of a dataset; `ids` is None if ids are made from the texts."""

    texts: list[str]
    ids: list[str] | None
    metadatas: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a dataset that the store needs.

    Attributes:
        text: Column of the texts.
        id: Column of the ids; None to make ids from the texts.
        metadata: Columns that become metadata under their own names. None takes the column ``metadata`` (objects,
            or JSON strings) if it exists, else every column except the two above.
    """

    text: str = "text"
    id: str | None = None
    metadata: tuple[str, ...] | None = None

    def names(self, present: Sequence[str]) -> list[str]:
        """The columns to read.

        Raises:
            ValueError: A column is missing.
        """
        wanted = [self.text, *([] if self.id is None else [self.id]), *self._extra(present)]
        if missing := [name for name in wanted if name not in present]:
            raise ValueError(f"columns {missing} are not among {list(present)}; name yours with text=, id=, metadata=")
        return wanted

    def rows(self, batch: pa.RecordBatch) -> Rows:
        """The rows of a batch.

        Raises:
            ValueError: A column is missing.
            DataError: A value has the wrong type.
        """
        self.names(batch.schema.names)
        return self._rows(batch.to_pylist(maps_as_pydicts="strict"), batch.schema.names)

    def objects(self, found: Sequence[dict[str, Any]]) -> Rows:
        """The rows of JSON objects, which may have different keys; only text and id are required."""
        return self._rows(found, list(dict.fromkeys(name for row in found for name in row)))

    def _rows(self, found: Sequence[dict[str, Any]], present: Sequence[str]) -> Rows:
        texts = [_string(row, self.text) for row in found]
        ids = None if self.id is None else [_string(row, self.id) for row in found]
        extra = self._extra(present)
        if self.metadata is None and extra == ["metadata"]:
            return Rows(texts, ids, [_mapping(row.get("metadata")) for row in found])
        return Rows(texts, ids, [{name: row[name] for name in extra if name in row} for row in found])

    def _extra(self, present: Sequence[str]) -> list[str]:
        if self.metadata is not None:
            return list(self.metadata)
        if "metadata" in present:
            return ["metadata"]
        return [name for name in present if name not in (self.text, self.id)]


def _string(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"column {name!r} must hold strings, got {value!r:.60} in {row!r:.120}")
    return value


def _mapping(value: object) -> dict[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as exc:
        raise DataError(f"column 'metadata' holds a string that is not JSON ({exc}): {value!r:.60}") from exc
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DataError(f"column 'metadata' must hold objects or JSON strings of objects, got {value!r:.60}")
    return found


def plan_shards(source: str, rows: int) -> list[Shard]:
    """Cut a dataset into shards of about this many rows. A row group of a Parquet file is never cut."""
    if rows < 1:
        raise ValueError(f"a shard needs at least one row, got {rows}")
    if source.rstrip("/").endswith(".lance"):
        return _lance_shards(source, rows)
    filesystem, paths = _files(source)
    kinds = {SUFFIXES[_suffix(path)] for path in paths}
    if len(kinds) != 1:
        known = ", ".join(SUFFIXES)
        found = f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else "no file of a known kind"
        raise ValueError(f"{source} holds {found}; give a dataset of one of {known}")
    cut = _parquet_shards if kinds == {"parquet"} else _line_shards
    return [shard for path in paths for shard in cut(filesystem, path, rows)]


def read_shard(source: str, shard: Shard, columns: Columns) -> Iterator[Rows]:
    """The rows of a shard, in batches; a `DataError` names a file that has changed since it was cut."""
    if shard.format == "lance":
        import lance

        dataset = lance.dataset(shard.path, version=shard.version)
        names = columns.names(dataset.schema.names)
        for batch in dataset.to_batches(columns=names, offset=shard.start, limit=shard.stop - shard.start):
            yield columns.rows(batch)
        return
    filesystem, _ = pafs.FileSystem.from_uri(absolute(source))
    if (size := filesystem.get_file_info(shard.path).size) != shard.version:
        raise DataError(
            f"{shard.path} has changed while it was read: {size} bytes, {shard.version} before; start again"
        )
    if shard.format == "parquet":
        with filesystem.open_input_file(shard.path) as file:
            table = pq.ParquetFile(file)
            names = columns.names(table.schema_arrow.names)
            for batch in table.iter_batches(_ROWS, row_groups=range(shard.start, shard.stop), columns=names):
                yield columns.rows(batch)
        return
    yield from _line_rows(filesystem, shard, columns)


# --- cutting ---------------------------------------------------------------------------------------------


def _lance_shards(source: str, rows: int) -> list[Shard]:
    import lance

    dataset = lance.dataset(source)
    total = dataset.count_rows()
    starts = range(0, total, rows)
    return [
        Shard(source, "lance", start, min(start + rows, total), min(rows, total - start), dataset.version)
        for start in starts
    ]


def _parquet_shards(filesystem: pafs.FileSystem, path: str, rows: int) -> Iterator[Shard]:
    with filesystem.open_input_file(path) as file:
        size, metadata = file.size(), pq.ParquetFile(file).metadata
    start = held = 0
    for group in range(metadata.num_row_groups):
        held += metadata.row_group(group).num_rows
        if held >= rows or group + 1 == metadata.num_row_groups:
            yield Shard(path, "parquet", start, group + 1, held, size)
            start, held = group + 1, 0


def _line_shards(filesystem: pafs.FileSystem, path: str, rows: int) -> Iterator[Shard]:
    start = place = held = 0
    with filesystem.open_input_file(path) as file:
        size = file.size()
        while block := file.read(_READ):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1 + place  # ends of lines
            for end in ends[rows - held - 1 :: rows].tolist():
                yield Shard(path, "jsonl", start, end, rows, size)
                start = end
            held = (held + len(ends)) % rows
            place += len(block)
        if start < size:
            file.seek(size - 1)
            yield Shard(path, "jsonl", start, size, held + (file.read(1) != b"\n"), size)


# --- reading ---------------------------------------------------------------------------------------------


def _line_rows(filesystem: pafs.FileSystem, shard: Shard, columns: Columns) -> Iterator[Rows]:
    with filesystem.open_input_file(shard.path) as file:
        file.seek(shard.start)
        rest, place = b"", shard.start
        while place < shard.stop:
            block = file.read(min(_READ, shard.stop - place))
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            lines += [rest] if place == shard.stop else []
            found = [_object(line, shard.path) for line in lines if line.strip()]
            if found:
                yield columns.objects(found)


def _object(line: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise DataError(f"{path}: a line is not JSON ({exc}): {line[:60]!r}") from exc
    if not isinstance(found, dict):
        raise DataError(f"{path}: a line must be a JSON object, got {line[:60]!r}")
    return found


def _files(source: str) -> tuple[pafs.FileSystem, list[str]]:
    """The files of a dataset in order, without hidden files and files of other kinds."""
    filesystem, path = pafs.FileSystem.from_uri(absolute(source))
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"there is no dataset at {source}")
    files = (
        [info] if info.type == pafs.FileType.File else filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    )
    paths = sorted(file.path for file in files if file.type == pafs.FileType.File and _suffix(file.path) in SUFFIXES)
    hidden = [any(part.startswith((".", "_")) for part in found[len(path) :].split("/")) for found in paths]
    return filesystem, [found for found, out in zip(paths, hidden, strict=True) if not out]


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
