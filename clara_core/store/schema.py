"""The table of a store: its columns, what is written on its cover, and rows from documents and back.

A row is a window of a document; the rows of one document are always written by one commit.

    id, window, windows      of the document; which window, of how many
    text                     of the document, on its first window; null on the others
    start, end               characters of the text that this window stands for
    source_tokens            of the document
    metadata                 of the document, as JSON
    facts … odd              what filters ask, see `predicate`
    content                  hash of text and fingerprint, on the first window
    key                      of the memory, for the first step of a search; its settings stand in the field's metadata
    memory                   bytes, see `codec`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clara_core.errors import StoreError
from clara_core.memory import Memory
from clara_core.store.codec import MemoryCodec, MemoryType
from clara_core.store.keys import Key
from clara_core.store.predicate import predicate_fields, predicate_values
from clara_core.store.records import Record, guarded, unguarded

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT: Final = 1  # of the table; rises whenever an older version of this library could not read or write it
RECORD_COLUMNS: Final = ["id", "window", "windows", "text", "start", "end", "source_tokens", "metadata"]

_COVER: Final = "clara.store"  # key of the schema's metadata
_KEY: Final = b"clara.key"  # key of the key column's metadata


@dataclass(frozen=True, slots=True)
class Entry:
    """A document on its way into the table.

    Attributes:
        id: Of the document.
        text: Of the document.
        metadata: As JSON.
        content: `content_key` of text and fingerprint.
    """

    id: str
    text: str
    metadata: str
    content: str


@dataclass(frozen=True)
class Layout:
    """What a table holds, fixed when it is made.

    Attributes:
        fingerprint: Of the model that made its memories.
        memory_type: How they are written.
        n_mem: Memory tokens of a window.
        hidden: Numbers of a memory token.
        key: Makes keys.
    """

    fingerprint: str
    memory_type: MemoryType
    n_mem: int
    hidden: int
    key: Key

    @cached_property
    def codec(self) -> MemoryCodec:
        """Reads and writes memories."""
        return MemoryCodec(self.memory_type, self.n_mem, self.hidden)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of memories that are read without an engine."""
        return torch.bfloat16 if self.memory_type == "bfloat16" else torch.float32

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the table."""
        cover = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "memory_type": self.memory_type,
            "n_mem": self.n_mem,
            "hidden": self.hidden,
        }
        fields = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("window", pa.int32(), nullable=False),
            pa.field("windows", pa.int32(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("source_tokens", pa.int64(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            *predicate_fields(),
            pa.field("content", pa.string()),
            pa.field("key", pa.list_(pa.float16(), self.key.length), metadata={_KEY: self.key.to_json().encode()}),
            pa.field("memory", pa.binary(self.codec.row_bytes)),
        ]
        return pa.schema(fields, metadata={_COVER: json.dumps(cover)})

    @classmethod
    def of(cls, schema: pa.Schema, uri: str) -> Layout:
        """What a table says on its cover.

        Raises:
            StoreError: It is not one of ours, or of another format; says what to do.
        """
        cover = (schema.metadata or {}).get(_COVER.encode())
        if cover is None:
            raise StoreError(f"the table at {uri} was not written by a MemoryStore; open another folder")
        try:
            found: dict[str, Any] = json.loads(cover)
            version = int(found["format"])
            if version > FORMAT:
                raise StoreError(
                    f"the store at {uri} has format {version}, this version of clara-rag reads up to {FORMAT}: "
                    "pip install -U clara-rag"
                )
            key = Key.from_json(schema.field("key").metadata[_KEY].decode())
            memory_type = cast("MemoryType", found["memory_type"])
            if memory_type not in get_args(MemoryType):
                raise ValueError(f"memory_type {memory_type!r} is unknown")
            return cls(str(found["fingerprint"]), memory_type, int(found["n_mem"]), int(found["hidden"]), key)
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreError(f"the cover of the table at {uri} cannot be read ({exc!r}): {cover[:200]!r}") from exc

    # --- rows --------------------------------------------------------------------------------------------

    def rows(self, entries: Sequence[Entry], memories: Sequence[Memory]) -> pa.RecordBatch:
        """The rows of documents, one a window, in order.

        Raises:
            ValueError: A memory has another shape, or holds NaN or infinity.
        """
        tokens = torch.cat([memory.tokens for memory in memories])  # [rows, n_mem, hidden]
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in ("key", "memory")}
        for entry, memory in zip(entries, memories, strict=True):
            _add_rows(columns, entry, memory)
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else self._numbers(field.name, tokens)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _numbers(self, name: str, tokens: torch.Tensor) -> pa.Array:
        if name == "key":
            keys = self.key.documents(tokens)
            return pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), self.key.length)
        rows = self.codec.encode(tokens)
        return pa.Array.from_buffers(pa.binary(self.codec.row_bytes), len(rows), [None, pa.py_buffer(rows)])

    def tokens(self, memory: pa.Array | pa.ChunkedArray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Windows ``[rows, n_mem, hidden]`` from a column of bytes."""
        return self.codec.decode(byte_rows(memory), dtype or self.dtype)


def memory_shape(memory: Memory) -> tuple[int, int]:
    """``(n_mem, hidden)`` of a memory.

    Raises:
        ValueError: It has no windows, or not three axes.
    """
    shape = memory.tokens.shape
    if len(shape) != 3 or not len(memory.tokens) or len(memory.spans) != len(memory.tokens):
        raise ValueError(f"a memory needs tokens [windows, n_mem, hidden] and a span for each of its windows, at least "
                         f"one; got tokens {list(shape)} and {len(memory.spans)} spans")  # fmt: skip
    return int(shape[1]), int(shape[2])


def _add_rows(columns: dict[str, list[Any]], entry: Entry, memory: Memory) -> None:
    shared = {
        "id": guarded(entry.id),
        "windows": memory.n_windows,
        "source_tokens": memory.source_tokens,
        "metadata": entry.metadata,
        **predicate_values(json.loads(entry.metadata)),
    }
    for window, (start, end) in enumerate(memory.spans):
        first = window == 0
        row = {
            **shared,
            "window": window,
            "start": start,
            "end": end,
            "text": guarded(entry.text) if first else None,
            "content": entry.content if first else None,
        }
        for name, values in columns.items():
            values.append(row[name])


def byte_rows(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint8]:
    """A column of equally long bytes as ``[rows, bytes]``, without a copy where it lies in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    width = column.type.byte_width
    start = column.offset * width
    return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, start).reshape(len(column), width)


def number_rows(column: pa.Array) -> NDArray[np.float16]:
    """A column of keys as ``[rows, length]``, without a copy."""
    numbers: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=True)
    return numbers.reshape(len(column), -1)


def records(table: pa.Table) -> Iterator[Record]:
    """Documents from the columns `RECORD_COLUMNS` of all their windows, in the order of their first row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(RECORD_COLUMNS).to_pylist():
        found.setdefault(row["id"], []).append(row)
    for id_, rows in found.items():
        rows.sort(key=lambda row: row["window"])
        first = rows[0]
        if first["window"] != 0 or len(rows) != first["windows"]:
            raise StoreError(f"the document {unguarded(id_)!r:.80} has {len(rows)} of its {first['windows']} windows")
        spans = tuple((row["start"], row["end"]) for row in rows)
        yield Record(
            unguarded(id_), unguarded(first["text"]), json.loads(first["metadata"]), spans, first["source_tokens"]
        )
