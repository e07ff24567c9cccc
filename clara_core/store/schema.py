"""The table of a store: its columns, what is written on its cover, and rows from documents and back.

A row is a window of a document; the rows of one document are always written by one commit.

    id, window, windows      of the document; which window, of how many
    text                     of the document, on its first window; null on the others
    start, end               characters of the text that this window stands for
    source_tokens            of the document
    metadata                 of the document, as JSON
    facts … odd              what filters ask, see `predicate`
    content                  hash of text and fingerprint, on the first window
    key, fit                 of the memory, for the first step of a search; by which settings it was made
    memory                   bytes, see `codec`

The settings of keys are fitted to the memories, and fitted again once there are many; rows with keys of other settings
are told by `fit`, and their keys are made anew when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

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

FIT_ROWS: Final = 256  # windows that settings of keys are fitted to at least, once there are so many

# Keys of the schema's metadata.
_COVER: Final = "clara.store"
_KEY: Final = "clara.key"


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
        fitted_to: How many windows the key was fitted to; it is fitted again as long as they were few.
    """

    fingerprint: str
    memory_type: MemoryType
    n_mem: int
    hidden: int
    key: Key
    fitted_to: int = 0

    @cached_property
    def codec(self) -> MemoryCodec:
        """Reads and writes memories."""
        return MemoryCodec(self.memory_type, self.n_mem, self.hidden)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of memories that are read without an engine."""
        return torch.bfloat16 if self.memory_type == "bfloat16" else torch.float32

    @cached_property
    def fit(self) -> int:
        """Tells keys of these settings from others."""
        return int.from_bytes(hashlib.sha256(self.key.to_json().encode()).digest()[:8], "little", signed=True)

    @cached_property
    def cover(self) -> dict[str, str]:
        """What stands on the table's cover: the metadata of its schema."""
        cover = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "memory_type": self.memory_type,
            "n_mem": self.n_mem,
            "hidden": self.hidden,
            "fitted_to": self.fitted_to,
        }
        return {_COVER: json.dumps(cover), _KEY: self.key.to_json()}

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the table."""
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
            pa.field("key", pa.list_(pa.float16(), self.key.length), nullable=False),
            pa.field("fit", pa.int64(), nullable=False),
            # Lance writes lists of a fixed length twice as fast as binary values of one.
            pa.field("memory", pa.list_(pa.uint8(), self.codec.row_bytes), nullable=False),
        ]
        return pa.schema(fields, metadata=self.cover)

    def fitted(self, tokens: torch.Tensor) -> Layout:
        """The same with keys that are fitted to memories ``[rows, n_mem, hidden]``."""
        return replace(self, key=self.key.fitted(tokens), fitted_to=len(tokens))

    @classmethod
    def of(cls, schema: pa.Schema, uri: str) -> Layout:
        """What a table says on its cover.

        Raises:
            StoreError: It is not one of ours, or of another format; says what to do.
        """
        metadata = schema.metadata or {}
        cover = metadata.get(_COVER.encode())
        if cover is None:
            raise StoreError(f"the table at {uri} was not written by a MemoryStore; open another folder")
        return _read_cover(cover, metadata.get(_KEY.encode(), b""), uri)

    # --- rows --------------------------------------------------------------------------------------------

    def rows(self, entries: Sequence[Entry], memories: Sequence[Memory]) -> pa.RecordBatch:
        """The rows of documents, one a window, in order.

        Raises:
            ValueError: A memory has another shape, or holds NaN or infinity.
        """
        for memory in memories:
            if memory_shape(memory) != (self.n_mem, self.hidden):
                raise ValueError(f"memories of this store have windows of {self.n_mem} x {self.hidden} numbers, got "
                                 f"{list(memory.tokens.shape)}")  # fmt: skip
        tokens = torch.cat([memory.tokens for memory in memories])  # [rows, n_mem, hidden]
        made = {
            "key": number_column(self.key.documents(tokens)),
            "fit": pa.array(np.full(len(tokens), self.fit, np.int64)),
            "memory": number_column(self.codec.encode(tokens)),
        }
        told: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in made}
        for entry, memory in zip(entries, memories, strict=True):
            _add_rows(told, entry, memory)
        arrays = [made.get(each.name, pa.array(told.get(each.name, ()), each.type)) for each in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def tokens(self, memory: pa.Array | pa.ChunkedArray) -> torch.Tensor:
        """Windows ``[rows, n_mem, hidden]`` from the column of their bytes."""
        return self.codec.decode(number_rows(memory), self.dtype)


@lru_cache(maxsize=16)
def _read_cover(cover: bytes, settings: bytes, uri: str) -> Layout:
    try:
        found: dict[str, Any] = json.loads(cover)
        version = int(found["format"])
        if version == FORMAT:
            key = Key.from_json(settings.decode())
            n_mem, hidden, fitted_to = (int(found[name]) for name in ("n_mem", "hidden", "fitted_to"))
            layout = Layout(str(found["fingerprint"]), found["memory_type"], n_mem, hidden, key, fitted_to)
            MemoryCodec(layout.memory_type, n_mem, hidden)  # knows what is possible
            return layout
    except (KeyError, TypeError, ValueError) as exc:
        raise StoreError(f"the cover of the table at {uri} cannot be read ({exc!r}): {cover[:200]!r}") from exc
    what = f"the store at {uri} has format {version}, this version of clara-rag reads format {FORMAT}: "
    raise StoreError(what + ("pip install -U clara-rag" if version > FORMAT else _RESCUE.format(uri=uri)))


# Ids, texts and metadata stand in the same columns in every format.
_RESCUE: Final = (
    "compress its texts again, into another folder: "
    "rows = lance.dataset({uri!r} + '/memories.lance').to_table(['id', 'text', 'metadata'], 'window = 0').to_pylist(); "
    "MemoryStore.open('ANOTHER FOLDER', model='pocket').add([row['text'] for row in rows], "
    "[json.loads(row['metadata']) for row in rows], [row['id'] for row in rows])"
)


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


def number_column(rows: NDArray[Any]) -> pa.Array:
    """``[rows, length]`` as a column, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def number_rows(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """A column of equally long lists of numbers as ``[rows, length]``, without a copy where it lies in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    numbers: NDArray[Any] = column.flatten().to_numpy()
    return numbers.reshape(len(column), column.type.list_size)


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
