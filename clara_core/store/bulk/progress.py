"""The progress of a bulk job: a folder beside the table, from which an interrupted job continues.

For each finished shard, the folder has one file with the names of the row files written for it. The row files belong to
no version of the table until the job commits all of them at once.
"""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from clara_core.common.errors import StoreError
from clara_core.common.place import IN_MEMORY, absolute
from clara_core.store.bulk.fragments import WRITTEN

FOLDER: Final = "bulk"


class Progress:
    """The finished shards of the job at a store."""

    def __init__(self, uri: str) -> None:
        if uri.startswith(IN_MEMORY):
            raise ValueError("a bulk job needs a store that other processes can reach: a folder or an object store")
        self._filesystem, path = pafs.FileSystem.from_uri(absolute(uri))
        self._folder = f"{path.rstrip('/')}/{FOLDER}"

    def begin(self, plan: dict[str, Any]) -> None:
        """Begin a job, or continue it; `StoreError` if another one was begun here and not finished."""
        begun = self._read("plan.json")
        if begun is None:
            self._write("plan.json", json.dumps(plan, sort_keys=True).encode())
            return
        found = json.loads(begun)
        if other := sorted(name for name in plan.keys() | found.keys() if plan.get(name) != found.get(name)):
            raise StoreError(
                f"{self._folder} belongs to another unfinished bulk job with other {', '.join(other)}: finish that one "
                "with the same command, or delete that folder to start over"
            )

    def written(self, shard: str) -> pa.RecordBatch | None:
        """The files written for a shard; None if it is not finished, or the machine stopped before that was on disk."""
        if (content := self._read(f"{shard}.arrow")) is None:
            return None
        try:
            return pa.ipc.read_record_batch(pa.py_buffer(content), WRITTEN)
        except (pa.ArrowInvalid, OSError, EOFError):
            return None

    def finish(self, shard: str, written: pa.RecordBatch) -> None:
        """Record that a shard is finished."""
        self._write(f"{shard}.arrow", written.serialize().to_pybytes())

    def tried(self, shard: str, run: str) -> int:
        """The number of earlier attempts at a shard in one call of the job; counts this attempt."""
        name = f"{shard}.{run}.tries"
        tries = len(self._read(name) or b"")
        self._write(name, b"." * (tries + 1))
        return tries

    def end(self) -> None:
        """Delete the record of the job."""
        self._filesystem.delete_dir(self._folder)

    def _read(self, name: str) -> bytes | None:
        try:
            with self._filesystem.open_input_file(f"{self._folder}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        path = f"{self._folder}/{name}"
        self._filesystem.create_dir(self._folder)
        unfinished = f"{self._folder}/.{uuid4().hex}"
        with self._filesystem.open_output_stream(unfinished) as file:
            file.write(content)
        self._filesystem.move(unfinished, path)
