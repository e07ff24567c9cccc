"""The table of a store on Lance: columns, schema metadata, and conversion between rows and documents.

Each document is one row.

    id                        primary key: a document with a known id replaces the stored one
    text, metadata            as given; metadata as JSON
    facts … odd               values for filters, see `predicate`
    content                   hash of text and fingerprint
    words                     words of the text for the search by words, see `clara_core.retrieval.words`
    spans                     start and end of each window, in characters of the text
    source_tokens             text tokens in the windows
    serial                    orders documents by when they were added, independent of their files
    key, key_version          key of each window for the first step of a search, and the version of the key settings
    memory                    bytes of each window, see `codec`

The key settings are fitted to the memories once there are enough. Rows with keys of other settings are recognised by
`key_version`; their keys are computed again when they are read.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from clara_core.common.errors import StoreError
from clara_core.data.memory import Memory
from clara_core.retrieval.words import words_of
from clara_core.store.backend import Entry, Space
from clara_core.store.codec import MemoryCodec
from clara_core.store.keys import Key
from clara_core.store.predicate import predicate_fields, predicate_values
from clara_core.store.records import Record, escape, metadata_from_json, unescape

FORMAT: Final = 4  # format of the table; increased whenever an older version of this library could not read or write it
RECORD_COLUMNS: Final = ["id", "text", "metadata", "spans", "source_tokens"]
PRIMARY_KEY: Final = {"lance-schema:unenforced-primary-key": "true"}

FIT_ROWS: Final = 256  # smallest number of documents to fit the key settings to

# Names in the schema's metadata.
_SETTINGS: Final = "clara.store"
_KEY: Final = "clara.key"


@dataclass(frozen=True)
class Layout:
    """The settings of a table, fixed when it is created."""

    space: Space
    key: Key
    fitted_to: int = 0  # windows that the key was fitted to; if they are few, the key is fitted again later

    @cached_property
    def codec(self) -> MemoryCodec:
        """Encodes and decodes memories."""
        return MemoryCodec(self.space.memory_type, self.space.n_mem, self.space.hidden)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of memories that are read."""
        return torch.bfloat16 if self.space.memory_type == "bfloat16" else torch.float32

    @cached_property
    def key_version(self) -> int:
        """Identifies the settings of keys."""
        return int.from_bytes(hashlib.sha256(self.key.to_json().encode()).digest()[:8], "little", signed=True)

    @cached_property
    def schema_metadata(self) -> dict[str, str]:
        """The metadata of the table's schema."""
        settings = {"format": FORMAT, **asdict(self.space), "fitted_to": self.fitted_to}
        return {_SETTINGS: json.dumps(settings), _KEY: self.key.to_json()}

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of the table."""
        fields = [
            pa.field("id", pa.string(), nullable=False, metadata=PRIMARY_KEY),
            pa.field("text", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            *predicate_fields(),
            pa.field("content", pa.string(), nullable=False),
            pa.field("words", pa.string(), nullable=False),
            pa.field("spans", pa.list_(pa.int64()), nullable=False),
            pa.field("source_tokens", pa.int64(), nullable=False),
            pa.field("serial", pa.uint64(), nullable=False),
            pa.field("key", pa.list_(pa.list_(pa.float16(), self.key.length)), nullable=False),
            pa.field("key_version", pa.int64(), nullable=False),
            # Lance writes lists of a fixed length faster than binary values of one.
            pa.field("memory", pa.list_(pa.list_(pa.uint8(), self.codec.row_bytes)), nullable=False),
        ]
        return pa.schema(fields, metadata=self.schema_metadata)

    @classmethod
    def new(cls, space: Space, key_length: int, memories: Sequence[Memory]) -> Layout:
        """The layout of a new table, with keys fitted to the memories, if there are any."""
        layout = cls(space, Key(space.n_mem * space.hidden, key_length))
        windows = [memory.tokens for memory in memories if len(memory.tokens)]
        return layout.fitted(torch.cat(windows)) if windows else layout

    def fitted(self, tokens: torch.Tensor) -> Layout:
        """The same layout with keys fitted to memories ``[windows, n_mem, hidden]``."""
        return replace(self, key=self.key.fitted(tokens), fitted_to=len(tokens))

    @classmethod
    def of(cls, schema: pa.Schema, uri: str) -> Layout:
        """The layout in the metadata of a schema; `StoreError` if another library or format wrote it."""
        metadata = schema.metadata or {}
        settings = metadata.get(_SETTINGS.encode())
        if settings is None:
            raise StoreError(f"the table at {uri} was not written by a MemoryStore; open another folder")
        return _read_settings(settings, metadata.get(_KEY.encode(), b""), uri)

    # --- rows --------------------------------------------------------------------------------------------

    def rows(self, entries: Sequence[Entry], serial: int) -> pa.RecordBatch:
        """The rows of documents, with serial numbers from `serial` on."""
        memories = [entry.memory for entry in entries]
        tokens = torch.cat([memory.tokens for memory in memories])  # [windows, n_mem, hidden]
        counts = [memory.n_windows for memory in memories]
        given: dict[str, Any] = {
            "id": [escape(entry.id) for entry in entries],
            "text": [escape(entry.text) for entry in entries],
            "metadata": [entry.metadata for entry in entries],
            "content": [entry.content for entry in entries],
            "words": [escape(" ".join(words_of(entry.text))) for entry in entries],
            "spans": [[place for span in memory.spans for place in span] for memory in memories],
            "source_tokens": [memory.source_tokens for memory in memories],
            "serial": np.arange(serial, serial + len(entries), dtype=np.uint64),
            "key": list_column(self.key.documents(tokens), counts),
            "key_version": np.full(len(entries), self.key_version, np.int64),
            "memory": list_column(self.codec.encode(tokens), counts),
        }
        values = [predicate_values(metadata_from_json(entry.metadata)) for entry in entries]
        given |= {field.name: [each[field.name] for each in values] for field in predicate_fields()}
        arrays = [
            given[field.name] if isinstance(given[field.name], pa.Array) else pa.array(given[field.name], field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def tokens(self, memory: pa.Array | pa.ChunkedArray) -> torch.Tensor:
        """Windows ``[windows, n_mem, hidden]`` of all rows, from the column of their bytes."""
        return self.codec.decode(number_rows(memory), self.dtype)


@lru_cache(maxsize=16)
def _read_settings(settings: bytes, key: bytes, uri: str) -> Layout:
    try:
        found: dict[str, Any] = json.loads(settings)
        version = int(found["format"])
        if version == FORMAT:
            n_mem, hidden = int(found["n_mem"]), int(found["hidden"])
            MemoryCodec(found["memory_type"], n_mem, hidden)  # raises for an invalid type or shape
            space = Space(str(found["fingerprint"]), found["memory_type"], n_mem, hidden)
            return Layout(space, Key.from_json(key.decode()), int(found["fitted_to"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise StoreError(f"the settings of the table at {uri} cannot be read ({exc!r}): {settings[:200]!r}") from exc
    what = f"the store at {uri} has format {version}, this version of clara-rag reads format {FORMAT}: "
    raise StoreError(
        what + ("pip install -U clara-rag" if version > FORMAT else "index its texts again, into another folder")
    )


class Serials:
    """Serial numbers from the clock, so that those of several writers are roughly in order; unique in this process."""

    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> int:
        """Reserve this many numbers; returns the first."""
        with self._lock:
            first = max(self._next, time.time_ns())
            self._next = first + count
            return first


# --- columns ---------------------------------------------------------------------------------------------


def list_column(rows: NDArray[Any], counts: Sequence[int]) -> pa.Array:
    """An array ``[windows, length]`` as one list of windows for each document, without a copy."""
    offsets = pa.array(np.fromiter(accumulate(counts, initial=0), np.int32, len(counts) + 1))
    return pa.ListArray.from_arrays(
        offsets, pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    )


def number_rows(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The windows of such a column as ``[windows, length]``, without a copy if the column is a single chunk."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    windows = column.flatten()
    numbers: NDArray[Any] = windows.flatten().to_numpy()
    return numbers.reshape(len(windows), column.type.value_type.list_size)


def window_counts(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Number of windows in each row of such a column."""
    counts: NDArray[np.int64] = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def records(table: pa.Table | pa.RecordBatch) -> Iterator[Record]:
    """Documents from the columns `RECORD_COLUMNS`, in order."""
    for row in table.select(RECORD_COLUMNS).to_pylist():
        places = row["spans"]
        spans = tuple(zip(places[::2], places[1::2], strict=True))
        metadata = metadata_from_json(row["metadata"])
        yield Record(unescape(row["id"]), unescape(row["text"]), metadata, spans, row["source_tokens"])
