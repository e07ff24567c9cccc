"""A store in one file: a header of JSON, vectors as little-endian float32, and a hash over both.

The file is written beside its place and moved there when it is whole, so that a crash leaves the old one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from clara_core.common.errors import CheckpointError

if TYPE_CHECKING:
    from clara_core.data.memory import Memory
    from clara_core.retrieval.vectors import Array
    from clara_core.store import MemoryStore, Record

VECTORS: Final = "vectors"  # what a store says instead of a fingerprint if it holds vectors

SUFFIX: Final = ".clara"
"""Behind the name that LlamaIndex gives: under that name itself its own store would read an empty store."""
_MAGIC: Final = b"clara-store-2\n"
_POINTER: Final = b"clara-store-at-1\n"


def write_pointer(path: str, fs: fsspec.AbstractFileSystem | None, uri: str, made_by: dict[str, Any]) -> None:
    """Write where a store with a uri of its own is.

    Raises:
        ValueError: It ends with this process.
    """
    if uri.startswith("memory://"):
        raise ValueError("a store at memory:// ends with its process; give uri= a folder, which needs no persist()")
    place = uri if "://" in uri else os.path.abspath(uri)  # noqa: PTH100 - as text
    data = _POINTER + json.dumps({"uri": place, "made_by": made_by}).encode()
    _replace(path, fs, lambda file: file.write(data))


def read_pointer(path: str, fs: fsspec.AbstractFileSystem | None) -> dict[str, Any] | None:
    """What `write_pointer` wrote; None where there is something else, or nothing.

    Raises:
        CheckpointError: It is damaged.
    """
    fs = fs or fsspec.filesystem("file")
    if not fs.exists(path):
        return None
    with fs.open(path, "rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return None
        try:
            found: dict[str, Any] = json.loads(file.read())
        except ValueError as exc:
            raise CheckpointError(f"{path} is damaged: it should say where a ClaraVectorStore is") from exc
    return found


def write_file(path: str, fs: fsspec.AbstractFileSystem | None, header: dict[str, Any], store: MemoryStore) -> None:
    """Write all that a store in memory holds.

    Args:
        path: Where to.
        fs: Of which file system; None is the local one.
        header: What else is to be known of it.
        store: Its documents.
    """
    from clara_core.store.records import metadata_json

    records = list(store)
    told = [
        {"id": record.id, "text": record.text, "metadata": metadata_json(record.metadata, "metadata"),
         "spans": record.spans, "source_tokens": record.source_tokens, "rows": len(record.spans)}
        for record in records
    ]  # fmt: skip
    rows = (store.memories([record.id])[0].vectors() for record in records)
    whole = {**header, "fingerprint": store.fingerprint, "shape": _shape(store, records), "nodes": told}
    _replace(path, fs, lambda file: _write(file, whole, rows))


def _shape(store: MemoryStore, records: Sequence[Record]) -> list[int]:
    """``[n_mem, hidden]`` of a window; empty where there is none."""
    return list(store.memories([records[0].id])[0].tokens.shape[1:]) if records else []


def _replace(path: str, fs: fsspec.AbstractFileSystem | None, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all."""
    fs = fs or fsspec.filesystem("file")
    folder = os.path.dirname(path)  # noqa: PTH120 - paths of any file system
    if folder:
        fs.makedirs(folder, exist_ok=True)
    beside = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with fs.open(beside, "wb") as file:
            write(file)
        if isinstance(fs, LocalFileSystem):
            os.replace(fs._strip_protocol(beside), fs._strip_protocol(path))  # noqa: PTH105, SLF001
        else:
            fs.mv(beside, path)
    except BaseException:
        with suppress(OSError):
            fs.rm_file(beside)
        raise


def _write(file: IO[bytes], header: dict[str, Any], rows: Iterable[Array]) -> None:
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    text = json.dumps(header).encode()
    put(_MAGIC + len(text).to_bytes(8, "little") + text)
    for matrix in rows:
        put(matrix.astype("<f4", copy=False).tobytes())
    file.write(digest.digest())
    file.flush()
    with suppress(AttributeError, OSError, ValueError):  # not every file system has a disk below
        os.fsync(file.fileno())


def read_file(
    path: str, fs: fsspec.AbstractFileSystem | None
) -> tuple[dict[str, Any], Iterator[tuple[Record, Memory]]]:
    """Read a store: its header now, one document after the other when asked for.

    Raises:
        CheckpointError: There is no such file, it is none of these, or it is damaged.
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
        raise CheckpointError(f"{path} is no ClaraVectorStore, or its beginning is damaged") from exc
    return header, _documents(header, _rows(path, file, header, hashlib.sha256(head + text)))


def _documents(header: dict[str, Any], rows: Iterator[Array]) -> Iterator[tuple[Record, Memory]]:
    from clara_core.data.memory import Memory
    from clara_core.store.records import Record, metadata_from_json

    for told, matrix in zip(header["nodes"], rows, strict=True):
        spans = tuple((start, end) for start, end in told["spans"])
        record = Record(told["id"], told["text"], metadata_from_json(told["metadata"]), spans, told["source_tokens"])
        yield (
            record,
            Memory.from_vectors(
                matrix, header["shape"][0], record.text, spans, record.source_tokens, header["fingerprint"]
            ),
        )


def _rows(path: str, file: IO[bytes], header: dict[str, Any], digest: Any) -> Iterator[Array]:
    length = math.prod(header["shape"])
    with file:
        for node in header["nodes"]:
            size = 4 * length * node["rows"]
            data = file.read(size)
            if len(data) < size:
                raise CheckpointError(f"{path} is damaged: it ends too early")
            digest.update(data)
            yield np.frombuffer(data, "<f4").reshape(node["rows"], length)
        if file.read() != digest.digest():
            raise CheckpointError(f"{path} is damaged: its content does not match its hash")
