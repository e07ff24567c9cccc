"""What a bulk job has done so far: a folder beside the table, from which the job goes on after any end.

Each finished shard is one file there, which names the files of rows that were written for it. They belong to no version
of the table until the job commits all of them at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from clara_core.common.errors import StoreError
from clara_core.store.bulk.fragments import WRITTEN

FOLDER: Final = "bulk"


class Progress:
    """The finished shards of one job.

    Args:
        uri: Of the store.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith("memory://"):
            raise ValueError("a bulk job needs a store that other processes can reach: a folder or an object store")
        address = uri if "://" in uri else Path(uri).resolve().as_uri()
        self._filesystem, path = pafs.FileSystem.from_uri(address)
        self._folder = f"{path.rstrip('/')}/{FOLDER}"

    def begin(self, plan: dict[str, Any]) -> bool:
        """Begin a job, or go on with it (then True).

        Raises:
            StoreError: Another job was begun here and not finished.
        """
        begun = self._read("plan.json")
        if begun is None:
            self._write("plan.json", json.dumps(plan, sort_keys=True).encode())
            return False
        found = json.loads(begun)
        if other := sorted(name for name in plan.keys() | found.keys() if plan.get(name) != found.get(name)):
            raise StoreError(
                f"{self._folder} holds what another bulk job has done, with other {', '.join(other)}: finish that one "
                "by the same command, or delete that folder to begin anew"
            )
        return True

    def written(self, shard: str) -> pa.RecordBatch | None:
        """What was written for a shard; None while it is not finished."""
        content = self._read(f"{shard}.arrow")
        return None if content is None else _batch(content)

    def finish(self, shard: str, written: pa.RecordBatch) -> None:
        """Note that a shard is finished."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, WRITTEN) as writer:
            writer.write_batch(written)
        self._write(f"{shard}.arrow", sink.getvalue().to_pybytes())

    def tried(self, shard: str, run: str) -> int:
        """How often a shard was tried before in a call of the job; counts this time."""
        name = f"{shard}.{run}.tries"
        tries = len(self._read(name) or b"")
        self._write(name, b"." * (tries + 1))
        return tries

    def end(self) -> None:
        """Forget the job."""
        self._filesystem.delete_dir(self._folder)

    def _read(self, name: str) -> bytes | None:
        try:
            with self._filesystem.open_input_file(f"{self._folder}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        path = f"{self._folder}/{name}"
        self._filesystem.create_dir(self._folder)
        unfinished = f"{self._folder}/.{uuid4().hex}"
        with self._filesystem.open_output_stream(unfinished) as file:
            file.write(content)
        self._filesystem.move(unfinished, path)


def _batch(content: bytes) -> pa.RecordBatch | None:
    """The one batch of a file; None where it is not whole (the machine stopped before it was on the disk)."""
    try:
        with pa.ipc.open_stream(content) as reader:
            batches: Iterator[pa.RecordBatch] = iter(reader)
            return next(batches, None)
    except pa.ArrowInvalid:
        return None
