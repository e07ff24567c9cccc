"""Stores in a single file: a JSON header, vectors as little-endian float32, and a hash over both.

The file is written under a temporary name and moved into place when it is complete, so that a crash leaves the old
file. For a store in a folder, only the header is written, with the folder's address.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from clara_core.common.errors import CheckpointError

if TYPE_CHECKING:
    from clara_core.data.memory import Memory
    from clara_core.store import MemoryStore, Record

VECTORS: Final = "vectors"  # written instead of a fingerprint for a store of vectors

SUFFIX: Final = ".clara"
"""Suffix of the name that LlamaIndex gives: LlamaIndex's own store would open a file of that name as an empty store."""
_MAGIC: Final = b"clara-store-3\n"


def write_file(
    path: str, fs: fsspec.AbstractFileSystem | None, header: dict[str, Any], store: MemoryStore | None = None
) -> None:
    """Write a header and the content of a store in memory atomically.

    Args:
        path: Path of the file.
        fs: File system of the path; None is the local one.
        header: Description of the store.
        store: Its documents.
    """
    fs = fs or fsspec.filesystem("file")
    if folder := os.path.dirname(path):  # noqa: PTH120 - paths of any file system
        fs.makedirs(folder, exist_ok=True)
    beside = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with fs.open(beside, "wb") as file:
            _write(file, header, store)
        if isinstance(fs, LocalFileSystem):
            os.replace(fs._strip_protocol(beside), fs._strip_protocol(path))  # noqa: PTH105, SLF001
        else:
            fs.mv(beside, path)
    except BaseException:
        with suppress(OSError):
            fs.rm_file(beside)
        raise


def _write(file: IO[bytes], header: dict[str, Any], store: MemoryStore | None) -> None:
    from clara_core.store.records import metadata_json

    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    records = [] if store is None else list(store)
    nodes = [
        [record.id, record.text, metadata_json(record.metadata, "metadata"), record.spans, record.source_tokens]
        for record in records
    ]
    memories = (store.memories([record.id])[0] for record in records) if store is not None else iter(())
    shape = list(store.memories([records[0].id])[0].tokens.shape[1:]) if store is not None and records else []
    text = json.dumps({**header, "shape": shape, "nodes": nodes}).encode()
    put(_MAGIC + len(text).to_bytes(8, "little") + text)
    for memory in memories:
        put(memory.vectors().astype("<f4", copy=False).tobytes())
    file.write(digest.digest())
    file.flush()
    with suppress(AttributeError, OSError, ValueError):  # not every file system has a local disk
        os.fsync(file.fileno())


def read_file(
    path: str, fs: fsspec.AbstractFileSystem | None
) -> tuple[dict[str, Any], Iterator[tuple[Record, Memory]]]:
    """Read a store: the header now, and the documents one by one on iteration.

    Raises:
        CheckpointError: The file is missing, has another format, or is damaged.
    """
    fs = fs or fsspec.filesystem("file")
    if not fs.exists(path):
        raise CheckpointError(f"there is no stored ClaraVectorStore at {path}; persist() writes one")
    file = fs.open(path, "rb")
    head = file.read(len(_MAGIC) + 8)
    size = int.from_bytes(head[len(_MAGIC) :], "little")
    text = file.read(size) if head.startswith(_MAGIC) and size <= fs.size(path) else b""
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as exc:
        file.close()
        raise CheckpointError(f"{path} is not a ClaraVectorStore, or its beginning is damaged") from exc
    return header, _documents(path, file, header, hashlib.sha256(head + text))


def _documents(path: str, file: IO[bytes], header: dict[str, Any], digest: Any) -> Iterator[tuple[Record, Memory]]:
    from clara_core.data.memory import Memory
    from clara_core.store.records import Record, metadata_from_json

    with file:
        for id_, text, metadata, places, source_tokens in header["nodes"]:
            size = 4 * math.prod(header["shape"]) * len(places)
            data = file.read(size)
            if len(data) < size:
                raise CheckpointError(f"{path} is damaged: it ends too early")
            digest.update(data)
            spans = tuple((start, end) for start, end in places)
            vectors = np.frombuffer(data, "<f4").reshape(len(spans), math.prod(header["shape"]))
            n_mem, fingerprint = header["shape"][0], header["fingerprint"]
            record = Record(id_, text, metadata_from_json(metadata), spans, source_tokens)
            yield record, Memory.from_vectors(vectors, n_mem, text, spans, source_tokens, fingerprint)
        if file.read() != digest.digest():
            raise CheckpointError(f"{path} is damaged: its content does not match its hash")
