"""Texts to rows of a store and rows to its files, as functions over record batches that any framework can call.

    prepare_store -> schema      BatchCompressor: texts -> rows      FragmentWriter: rows -> files      commit_written

The first and the last are called once, where the job is started; the two between in as many processes as there are
devices. They hold nothing but plain values, so that they can be sent there.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lance.fragment import FragmentMetadata, write_fragments

from clara_core.engine import ClaraEngine
from clara_core.errors import DataError, FingerprintMismatch, StoreError
from clara_core.memory import Memory, content_key
from clara_core.options import EngineArguments
from clara_core.store.digests import DIGEST, digests, first_of_each, member_of
from clara_core.store.keys import DEFAULT_LENGTH, Key
from clara_core.store.reading import batches
from clara_core.store.records import made_id, metadata_json, unguarded
from clara_core.store.schema import Entry, Layout
from clara_core.store.shards import Columns, Rows
from clara_core.store.table import Change, Table
from clara_core.store.upkeep import refit

if TYPE_CHECKING:
    from lance import LanceDataset

    from clara_core.store.codec import MemoryType

WRITTEN: Final = pa.schema(
    [
        pa.field("files", pa.list_(pa.string())),  # JSON of Lance
        pa.field("ids", pa.binary()),  # digests, one after the other
        pa.field("documents", pa.int64()),
    ]
)
"""What is known of rows that were written and not committed yet: one row for each part of a dataset."""

_BATCH_BYTES: Final = 1 << 25  # of memories in a batch of rows
_FILE_BYTES: Final = 1 << 30  # of rows in a file, about


def prepare_store(
    uri: str,
    texts: Sequence[str],
    engine: EngineArguments | None = None,
    *,
    memory_type: MemoryType = "bfloat16",
    key_length: int = DEFAULT_LENGTH,
) -> pa.Schema:
    """The schema of a store; where there is none yet, an empty one is made.

    Args:
        uri: Folder, or address of an object store.
        texts: A few hundred of the corpus: knowing what their memories have in common makes the keys better. A store
            that is there already needs none.
        engine: What the store is for.
        memory_type: How memories are written, in a new store.
        key_length: Numbers of a key, in a new store.
    """
    table = Table(uri)
    dataset = table.latest()
    if dataset is None:
        opened = ClaraEngine.from_pretrained(**(engine or EngineArguments()).public())
        key = Key(opened.dimension, key_length)
        layout = Layout(opened.fingerprint, memory_type, opened.n_mem, opened.hidden, key)
        if memories := opened.compress(texts):
            layout = layout.fitted(torch.cat([memory.tokens for memory in memories]))
        dataset = table.create(layout.schema)
    return dataset.schema


@dataclass(frozen=True)
class BatchCompressor:
    """Record batches of texts to record batches of a store's rows; may be pickled, and is the same in every process.

        compress_batches = BatchCompressor(schema, EngineArguments(model="pocket"), Columns(id="id"))
        rows = compress_batches(iter(table.to_batches()))

    Each process opens one engine, at first use; there, "auto" finds its device.

    Attributes:
        schema: Of the store, from `prepare_store`; what comes out has it.
        engine: Arguments of the engine. An access token does not travel: set ``HF_TOKEN`` where the work is done.
        columns: Where the batches keep text, id and metadata.
    """

    schema: pa.Schema
    engine: EngineArguments = field(default_factory=EngineArguments)
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", elsewhere(self.engine))

    def __call__(self, given: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compress any number of batches in bounded memory; the rows come in the order of the texts.

        Raises:
            DataError: A row holds no text, or metadata that JSON does not know.
            FingerprintMismatch: The engine is another than the one that the store is for.
        """
        return self.compress(map(self.columns.rows, given))

    def compress(self, parts: Iterable[Rows]) -> Iterator[pa.RecordBatch]:
        """The same, from rows that are taken out of their columns."""
        engine = ClaraEngine.from_pretrained(**self.engine.public())
        layout = self.layout
        if engine.fingerprint != layout.fingerprint:
            raise FingerprintMismatch(
                f"the store is for memories of the model {layout.fingerprint[:12]}, this engine is "
                f"{engine.fingerprint[:12]}: give the engine that the store was made with"
            )
        waiting: deque[Entry] = deque()

        def texts() -> Iterator[str]:
            for part in parts:
                for entry in entries_of(part, layout.fingerprint):
                    waiting.append(entry)
                    yield entry.text

        entries: list[Entry] = []
        memories: list[Memory] = []
        size = 0
        for memory in engine.compress_stream(texts()):
            entries.append(waiting.popleft())
            memories.append(memory)
            size += memory.nbytes
            if size >= _BATCH_BYTES:
                yield layout.rows(entries, memories)
                entries, memories, size = [], [], 0
        if entries:
            yield layout.rows(entries, memories)

    @cached_property
    def layout(self) -> Layout:
        """What the schema says."""
        return Layout.of(self.schema, "schema=")

    def __getstate__(self) -> dict[str, Any]:
        return {"schema": self.schema, "engine": self.engine, "columns": self.columns}


@dataclass(frozen=True)
class FragmentWriter:
    """Record batches of a store's rows into files of the store, which `commit_written` makes part of it.

    Attributes:
        uri: Of the store.
    """

    uri: str

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write all of them; yields one batch of one row with the schema `WRITTEN`."""
        dataset = Table(self.uri).latest()
        if dataset is None:
            raise StoreError(f"there is no store at {self.uri}; call prepare_store first")
        ids: list[str] = []
        files = [json.dumps(file.to_json()) for file in _write(dataset, _noted(rows, ids))]
        row = {"files": files, "ids": digests(ids).tobytes(), "documents": len(ids)}
        yield pa.RecordBatch.from_pylist([row], WRITTEN)


def _noted(rows: Iterator[pa.RecordBatch], ids: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        heads = batch.filter(pc.equal(batch["window"], 0))
        ids.extend(map(unguarded, heads["id"].to_pylist()))
        yield batch


def _write(dataset: LanceDataset, rows: Iterator[pa.RecordBatch]) -> list[FragmentMetadata]:
    """Write rows to files of a table that belong to no version of it yet; none for none."""
    first = next(rows, None)
    if first is None:
        return []
    failures: list[Exception] = []

    def kept() -> Iterator[pa.RecordBatch]:
        try:
            yield first
            yield from rows
        except Exception as exc:
            failures.append(exc)  # Lance keeps nothing of it but its text
            raise

    reader = pa.RecordBatchReader.from_batches(first.schema, kept())
    try:
        found: list[FragmentMetadata] = write_fragments(reader, dataset, mode="append", max_bytes_per_file=_FILE_BYTES)
    except Exception:
        if failures:
            raise failures[0] from None
        raise
    return found


def commit_written(uri: str, written: Iterable[pa.RecordBatch]) -> int:
    """Make rows part of a store, all at once; a document that was there under one of their ids is replaced.

    Args:
        uri: Of the store.
        written: What `FragmentWriter` said of them.

    Returns:
        How many documents they are.

    Raises:
        DataError: An id was written twice.
    """
    rows = pa.Table.from_batches(written, WRITTEN).to_pylist()
    ids = np.frombuffer(b"".join(row["ids"] for row in rows), DIGEST)
    if not first_of_each(ids).all():
        raise DataError(f"{len(ids) - first_of_each(ids).sum()} ids were written twice; give each document its own")
    fragments = [FragmentMetadata.from_json(fragment) for row in rows for fragment in row["files"]]

    def change(latest: LanceDataset) -> Change:
        removed: list[int] = []
        for batch in batches(latest, ["id"], batch_size=1 << 16):
            known = member_of(digests(map(unguarded, batch["id"].to_pylist())), ids)
            removed += batch["_rowid"].filter(pa.array(known)).to_pylist()
        return Change(removed, fragments)

    table = Table(uri)
    table.commit(change)
    refit(table)
    return len(ids)


def elsewhere(engine: EngineArguments) -> EngineArguments:
    """Arguments that mean the same in another process: whole paths, no access token, "auto" not decided yet."""
    whole = engine.model_copy(update={"device": "cpu"}).resolved()
    return whole.model_copy(update={"device": engine.device, "dtype": engine.dtype, "token": None})


def entries_of(rows: Rows, fingerprint: str) -> list[Entry]:
    """Documents of a dataset, checked; one without an id has one that follows from its text.

    Raises:
        DataError: A text is empty, or metadata is not JSON.
    """
    entries = []
    for index, (text, metadata) in enumerate(zip(rows.texts, rows.metadatas, strict=True)):
        if not text:
            raise DataError(
                f"a text is empty: there is nothing in it to find or to read; its metadata is {metadata!r:.80}"
            )
        try:
            written = metadata_json(metadata, "metadata")
        except (TypeError, ValueError) as exc:
            raise DataError(f"{exc}; the text begins {text[:60]!r}") from exc
        id_ = made_id(text, 0) if rows.ids is None else rows.ids[index]
        entries.append(Entry(id_, text, written, content_key(text, fingerprint)))
    return entries
