"""Converts texts to rows of a store and writes rows to its files, as functions over record batches for any framework.

    prepare_store -> schema      BatchCompressor: texts -> rows      FragmentWriter: rows -> files      commit_written

Call the first and the last once, where the job is started, and the two between in as many processes as there are
devices. They hold only plain values, so that they can be sent there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from math import inf
from typing import Final

import numpy as np
import pyarrow as pa
from lance import LanceDataset, LanceFragment, LanceOperation
from lance.fragment import FragmentMetadata, write_fragments
from numpy.typing import NDArray

from clara_core.common.errors import DataError, FingerprintMismatch, StoreError
from clara_core.data.memory import content_key
from clara_core.engine.engine import ClaraEngine
from clara_core.engine.options import EngineArguments
from clara_core.store.backend import Entry, Space
from clara_core.store.bulk.shards import Columns, Rows
from clara_core.store.codec import MemoryType
from clara_core.store.keys import DEFAULT_LENGTH
from clara_core.store.maintenance import refit
from clara_core.store.records import made_id, metadata_json, unescape
from clara_core.store.schema import Layout
from clara_core.store.table import Table, batches
from clara_core.store.writing import Document, batches_of, blank_memory, is_blank

WRITTEN: Final = pa.schema(
    [
        pa.field("files", pa.list_(pa.string())),  # Lance's fragments as JSON
        pa.field("ids", pa.binary()),  # concatenated digests
        pa.field("documents", pa.int64()),
    ]
)
"""Describes rows that are written but not committed: one row for each part of a dataset."""

DIGEST: Final = np.dtype("S16")  # digest of an id or a text: 128 bits
_BATCH_BYTES: Final = 1 << 25  # bytes of memories in a batch of rows
_FILE_BYTES: Final = 1 << 30  # approximate bytes of a file of rows


def prepare_store(
    uri: str,
    texts: Sequence[str],
    engine: EngineArguments | None = None,
    *,
    memory_type: MemoryType = "bfloat16",
    key_length: int = DEFAULT_LENGTH,
) -> pa.Schema:
    """Return the schema of a store; create an empty store if there is none.

    Args:
        uri: Folder, or address of an object store.
        texts: A few hundred texts of the corpus, to fit the keys of a new store; an existing store needs none.
        engine: Arguments of the engine whose memories the store will hold.
        memory_type: Number format of memories in a new store.
        key_length: Numbers of a key in a new store.
    """
    table = Table(uri)
    dataset = table.latest()
    if dataset is None:
        opened = ClaraEngine.from_pretrained(**(engine or EngineArguments()).public())
        space = Space(opened.fingerprint, memory_type, opened.n_mem, opened.hidden)
        memories = opened.compress([text for text in texts if not is_blank(text)])
        dataset = table.create(Layout.new(space, key_length, memories).schema)
    return dataset.schema


@dataclass(frozen=True)
class BatchCompressor:
    """Converts record batches of texts to record batches of a store's rows.

        compress_batches = BatchCompressor(schema, EngineArguments(model="pocket"), Columns(id="id"))
        rows = compress_batches(iter(table.to_batches()))

    It can be pickled and gives the same result in every process. Each process opens one engine at first use; the device
    "auto" is resolved there.

    Attributes:
        schema: Schema of the store, from `prepare_store`, and of the result.
        engine: Arguments of the engine. An access token is not sent to other processes: set ``HF_TOKEN`` there.
        columns: Columns of the batches with text, id and metadata.
    """

    schema: pa.Schema
    engine: EngineArguments = field(default_factory=EngineArguments)
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", elsewhere(self.engine))

    def __call__(self, given: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compress any number of batches in bounded memory; the rows have the order of the texts.

        Raises:
            DataError: A row has no text, or metadata that JSON cannot represent.
            FingerprintMismatch: The store is for another engine.
        """
        return self.compress(map(self.columns.rows, given), time.time_ns())

    def compress(self, parts: Iterable[Rows], serial: int) -> Iterator[pa.RecordBatch]:
        """Compress rows that are already extracted from their columns; `serial` is the number of the first one."""
        engine = ClaraEngine.from_pretrained(**self.engine.public())
        layout = Layout.of(self.schema, "schema=")
        if engine.fingerprint != layout.space.fingerprint:
            raise FingerprintMismatch(
                f"the store is for memories of the model {layout.space.fingerprint[:12]}, this engine is "
                f"{engine.fingerprint[:12]}: give the engine that the store was made with"
            )
        for batch in batches_of(self._entries(engine, parts), inf, _BATCH_BYTES, lambda entry: entry.memory.nbytes):
            yield layout.rows(batch, serial)
            serial += len(batch)

    def _entries(self, engine: ClaraEngine, parts: Iterable[Rows]) -> Iterator[Entry]:
        """Documents with their memories, in order; a blank document has no windows."""
        described, ahead = tee(pair for part in parts for pair in described_documents(part, engine.fingerprint))
        memories = engine.compress_stream(document.text for document, _ in ahead if not is_blank(document.text))
        for document, content in described:
            blank = is_blank(document.text)
            memory = blank_memory(document.text, engine, engine.fingerprint) if blank else next(memories)
            yield Entry(document.id, document.text, document.metadata, content, memory)


@dataclass(frozen=True)
class FragmentWriter:
    """Writes record batches of a store's rows into files of the store, which `commit_written` adds to it.

    Attributes:
        uri: Address of the store.
    """

    uri: str

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write all rows; yields one batch of one row with the schema `WRITTEN`."""
        dataset = Table(self.uri).latest()
        if dataset is None:
            raise StoreError(f"there is no store at {self.uri}; call prepare_store first")
        ids: list[str] = []
        files = [json.dumps(file.to_json()) for file in _write(dataset, _noted(rows, ids))]
        row = {"files": files, "ids": digests(ids).tobytes(), "documents": len(ids)}
        yield pa.RecordBatch.from_pylist([row], WRITTEN)


def _noted(rows: Iterator[pa.RecordBatch], ids: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        ids.extend(map(unescape, batch["id"].to_pylist()))
        yield batch


def _write(dataset: LanceDataset, rows: Iterator[pa.RecordBatch]) -> list[FragmentMetadata]:
    """Write rows to files of a table that belong to no version of it yet; no rows give no file."""
    first = next(rows, None)
    if first is None:
        return []
    failures: list[Exception] = []

    def kept() -> Iterator[pa.RecordBatch]:
        try:
            yield first
            yield from rows
        except Exception as exc:
            failures.append(exc)  # Lance keeps only its text
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
    """Add written rows to a store in one commit; documents with the same ids are replaced.

    Args:
        uri: Address of the store.
        written: The batches that `FragmentWriter` returned.

    Returns:
        Number of documents.

    Raises:
        DataError: An id was written twice.
    """
    rows = pa.Table.from_batches(written, WRITTEN).to_pylist()
    ids = np.frombuffer(b"".join(row["ids"] for row in rows), DIGEST)
    if twice := len(ids) - int(first_of_each(ids).sum()):
        raise DataError(f"{twice} ids were written twice; give each document its own")
    if not len(ids):
        return 0
    fragments = [FragmentMetadata.from_json(fragment) for row in rows for fragment in row["files"]]
    table = Table(uri)

    def commit(latest: LanceDataset) -> tuple[int, int]:
        changed, gone = [], []
        for fragment, replaced in _rows_with(latest, ids, latest.get_fragments()):
            if (left := fragment.delete(_numbered(replaced))) is None:
                gone.append(fragment.fragment_id)
            else:
                changed.append(left)
        # Lance documents this operation for distributed jobs; pyproject bounds the version of Lance because of it.
        operation = LanceOperation.Update(
            removed_fragment_ids=gone, updated_fragments=changed, new_fragments=fragments, fields_modified=[]
        )
        return latest.version, LanceDataset.commit(latest, operation, read_version=latest.version).version

    before, after = table.change(commit)
    if after != before + 1 and (dataset := table.latest()) is not None:
        # Others wrote at the same time: of ids that they added as well, the rows of this job stay.
        written = {file.path for fragment in fragments for file in fragment.files}
        others = [
            fragment
            for fragment in dataset.get_fragments()
            if not written.intersection(file.path for file in fragment.metadata.files)
        ]
        if doubles := [row for _, own in _rows_with(dataset, ids, others) for row in own]:
            table.remove_where(_numbered(doubles))
    refit(table)
    return len(ids)


def _rows_with(
    dataset: LanceDataset, ids: NDArray[np.bytes_], files: Iterable[LanceFragment]
) -> Iterator[tuple[LanceFragment, list[int]]]:
    """The files that have rows with one of the ids, and the numbers of those rows."""
    for fragment in files:
        rows: list[int] = []
        for batch in batches(dataset, ["id"], batch_size=1 << 16, fragments=[fragment]):
            known = np.isin(digests(map(unescape, batch["id"].to_pylist())), ids)
            rows += batch["_rowid"].filter(pa.array(known)).to_pylist()
        if rows:
            yield fragment, rows


def _numbered(rows: Iterable[int]) -> str:
    return f"_rowid IN ({', '.join(map(str, rows))})"


def digests(strings: Iterable[str]) -> NDArray[np.bytes_]:
    """16-byte digests ``[n]`` of type `DIGEST`, for sets of very many strings."""
    hashes = (hashlib.blake2b(string.encode("utf-8", "surrogatepass"), digest_size=16).digest() for string in strings)
    return np.fromiter(hashes, DIGEST)


def first_of_each(found: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Which digests ``[n]`` did not occur before."""
    first = np.zeros(len(found), bool)
    first[np.unique(found, return_index=True)[1]] = True
    return first


def elsewhere(engine: EngineArguments) -> EngineArguments:
    """Arguments with the same meaning in another process: absolute paths, no access token, "auto" not resolved."""
    whole = engine.model_copy(update={"device": "cpu"}).resolved()
    return whole.model_copy(update={"device": engine.device, "dtype": engine.dtype, "token": None})


def described_documents(rows: Rows, fingerprint: str) -> list[tuple[Document, str]]:
    """Checked documents of a dataset with their contents; a document without an id gets one made from its text."""
    found = []
    for index, (text, metadata) in enumerate(zip(rows.texts, rows.metadatas, strict=True)):
        try:
            written = metadata_json(metadata, "metadata")
        except (TypeError, ValueError) as exc:
            raise DataError(f"{exc}; the text begins {text[:60]!r}") from exc
        id_ = made_id(text, 0) if rows.ids is None else rows.ids[index]
        found.append((Document(id_, text, written), content_key(text, fingerprint)))
    return found
