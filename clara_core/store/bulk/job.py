"""Compresses a dataset into a store, in this process or with a Ray job that runs an engine on every device.

    compress_dataset("corpus.parquet", "store", columns=Columns(id="id"))
    compress_dataset("corpus.parquet", "store", columns=Columns(id="id"), workers=8)    # needs the extra `ray`
    clara bulk corpus.parquet store --id-column id --workers 8

Each worker reads, compresses and writes shards of the dataset; memories are not sent between processes. One commit at
the end adds all rows to the store. To continue an interrupted job, call it again.

`BatchCompressor` and `FragmentWriter` do the same inside other frameworks; `docs/bulk.md` shows Spark.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clara_core.common.errors import DataError, StoreError
from clara_core.common.place import absolute
from clara_core.engine.options import EngineArguments, option_values
from clara_core.store.bulk import ROWS_PER_SHARD
from clara_core.store.bulk.fragments import (
    DIGEST,
    BatchCompressor,
    FragmentWriter,
    commit_written,
    described_documents,
    digests,
    elsewhere,
    first_of_each,
    prepare_store,
)
from clara_core.store.bulk.progress import Progress
from clara_core.store.bulk.shards import Columns, Rows, Shard, plan_shards, read_shard
from clara_core.store.codec import MemoryType
from clara_core.store.keys import DEFAULT_LENGTH
from clara_core.store.records import unescape
from clara_core.store.schema import FIT_ROWS, Layout
from clara_core.store.table import Table, batches

_SAMPLE: Final = FIT_ROWS  # texts that keys are fitted to
_TRIES: Final = 5  # attempts for a shard whose worker dies; Ray alone would retry it for ever


@dataclass(frozen=True)
class Task:
    """A shard to compress, its first row in the dataset, and the positions of its rows to skip."""

    shard: Shard
    start: int
    left_out: Sequence[int]


@dataclass(frozen=True)
class ShardWorker:
    """Compresses shards and records the files that it wrote. Holds only plain values, to be sent to other processes."""

    source: str
    uri: str
    compress: BatchCompressor
    run: str  # identifies this call of the job
    serial: int  # of the first row of the dataset

    def __call__(self, task: Task) -> int:
        """Write a shard, unless it is written already; returns its number of documents."""
        progress = Progress(self.uri)
        written = progress.written(task.shard.name)
        if written is None:
            if progress.tried(task.shard.name, self.run) >= _TRIES:
                raise StoreError(
                    f"{_TRIES} workers died of {task.shard}; check its rows, or give the workers more memory"
                )
            parts = read_shard(self.source, task.shard, self.compress.columns)
            rows = self.compress.compress(_without(parts, set(task.left_out)), self.serial + task.start)
            [written] = FragmentWriter(self.uri)(rows)
            progress.finish(task.shard.name, written)
        documents: int = written["documents"][0].as_py()
        return documents


def compress_dataset(
    source: str,
    uri: str,
    engine: EngineArguments | None = None,
    columns: Columns | None = None,
    *,
    workers: int = 0,
    memory_type: MemoryType = "bfloat16",
    key_length: int = DEFAULT_LENGTH,
    rows_per_shard: int = ROWS_PER_SHARD,
    show_progress: bool = False,
) -> int:
    """Compress a dataset into a store. The documents become visible in the store together, at the end.

    Documents that the store holds unchanged are skipped; others with the same ids are replaced.

    Args:
        source: Parquet, JSON lines or Lance: a file, a folder, or an address of an object store.
        uri: Address of the store: a folder or an address of an object store.
        engine: Arguments of the engine.
        columns: Columns of the dataset with text, id and metadata. Without ids, equal texts are one document.
        workers: Processes of a Ray job, each with its own engine and, if Ray finds GPUs, its own GPU. 0 does
            everything in this process.
        memory_type: Number format of memories in a new store.
        key_length: Numbers of a key in a new store.
        rows_per_shard: Approximate documents of a shard: the work that is lost when a worker dies.
        show_progress: Draw a progress bar.

    Returns:
        Number of documents written.

    Raises:
        DataError: A value in the dataset is invalid, or an id occurs twice.
        FingerprintMismatch: The store is for another model.
        StoreError: Another job for this store is unfinished.
    """
    from tqdm.auto import tqdm

    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if engine is not None and engine.token is not None:
        # The token is not sent to the workers; in this process it is part of the engine's identity.
        from clara_core.engine.engine import ClaraEngine

        ClaraEngine.from_pretrained(**option_values(engine))
    # Workers may run in other folders, and on machines with other devices.
    source, uri, engine = absolute(source), absolute(uri), elsewhere(engine or EngineArguments())
    columns = columns or Columns()
    progress = Progress(uri)
    shards = plan_shards(source, rows_per_shard)
    pool = _Ray(workers) if workers else None
    texts = _sample(source, shards, columns)
    made = partial(prepare_store, uri, texts, engine, memory_type=memory_type, key_length=key_length)
    schema = pool.prepare(made) if pool else made()
    fingerprint = Layout.of(schema, uri).space.fingerprint
    tasks, documents = _plan(source, uri, shards, columns, fingerprint)
    progress.begin({"shards": [shard.name for shard in shards], "fingerprint": fingerprint, "columns": repr(columns)})

    worker = ShardWorker(source, uri, BatchCompressor(schema, engine, columns), uuid4().hex, time.time_ns())
    with tqdm(total=documents, desc="compressing", unit="doc", disable=not show_progress) as bar:
        for done in pool.run(worker, tasks) if pool else map(worker, tasks):
            bar.update(done)
    written = [progress.written(task.shard.name) for task in tasks]
    if lost := [task.shard for task, found in zip(tasks, written, strict=True) if found is None]:
        raise DataError(f"{len(lost)} shards were not written, the first one {lost[0]}; call again to go on")
    total = commit_written(uri, [found for found in written if found is not None])
    progress.end()
    return total


# --- what has to be done ---------------------------------------------------------------------------------


def _plan(source: str, uri: str, shards: Sequence[Shard], columns: Columns, fingerprint: str) -> tuple[list[Task], int]:
    """The shards to compress, and their number of documents. Reads the dataset once, and refuses ids that repeat."""
    found = [_digests_of(source, shard, columns, fingerprint) for shard in shards]
    ids = np.concatenate([ids for ids, _ in found] or [np.empty(0, DIGEST)])
    states = np.concatenate([states for _, states in found] or [np.empty(0, DIGEST)])
    first = first_of_each(ids)
    if columns.id is not None and not first.all():
        place = int(np.flatnonzero(~first)[0])
        raise DataError(_twice(source, shards, columns, place, [len(part) for part, _ in found]))
    wanted = first & ~np.isin(states, _states_in(uri))
    tasks, start = [], 0
    for shard, (part, _) in zip(shards, found, strict=True):
        keep = wanted[start : start + len(part)]
        start += len(part)
        # A shard that is already written belongs to the job, whatever the store holds by now.
        if keep.any() or Progress(uri).written(shard.name) is not None:
            tasks.append(Task(shard, start - len(part), tuple(np.flatnonzero(~keep).tolist())))
    return tasks, int(wanted.sum())


def _digests_of(source: str, shard: Shard, columns: Columns, fingerprint: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Digests of the ids of a shard, and of its whole documents."""
    found = [each for rows in read_shard(source, shard, columns) for each in described_documents(rows, fingerprint)]
    return digests(document.id for document, _ in found), digests(
        _state(document.id, content, document.metadata) for document, content in found
    )


def _states_in(uri: str) -> NDArray[Any]:
    """The same digests for all documents of the store."""
    dataset = Table(uri).latest()
    if dataset is None:
        return np.empty(0, DIGEST)
    found = batches(dataset, ["id", "content", "metadata"], batch_size=1 << 14)
    rows = (row for batch in found for row in batch.to_pylist())
    return digests(_state(unescape(row["id"]), row["content"], row["metadata"]) for row in rows)


def _state(id_: str, content: str, metadata: str) -> str:
    return f"{content} {metadata} {id_}"


def _twice(source: str, shards: Sequence[Shard], columns: Columns, place: int, sizes: Sequence[int]) -> str:
    at = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
    ids = [id_ for rows in read_shard(source, shards[at], columns) for id_ in rows.ids or ()]
    id_ = ids[place - sum(sizes[:at])]
    return f"the id {id_!r:.80} occurs again in {shards[at].path}; give each document its own id"


def _sample(source: str, shards: Sequence[Shard], columns: Columns) -> list[str]:
    texts = (text for shard in shards for rows in read_shard(source, shard, columns) for text in rows.texts)
    return list(islice(texts, _SAMPLE))


def _without(parts: Iterable[Rows], left_out: set[int]) -> Iterator[Rows]:
    """Rows without those at some positions."""
    start = 0
    for rows in parts:
        kept = [index for index in range(len(rows.texts)) if start + index not in left_out]
        start += len(rows.texts)
        ids = None if rows.ids is None else [rows.ids[index] for index in kept]
        yield Rows([rows.texts[index] for index in kept], ids, [rows.metadatas[index] for index in kept])


# --- Ray -------------------------------------------------------------------------------------------------


class _Ray:
    """Runs tasks in Ray actors, each with one GPU if the cluster has any, else a processor core."""

    def __init__(self, workers: int) -> None:
        try:
            import ray.data
        except ImportError as exc:
            raise ImportError(f"workers={workers} needs Ray: pip install 'clara-rag[store,ray]'") from exc
        if not ray.is_initialized():
            ray.init()
        self.workers = workers
        self.gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self.cpus = 1 - self.gpus

    def prepare(self, work: Callable[[], pa.Schema]) -> pa.Schema:
        """Call a function that needs an engine, in a worker."""
        import ray

        there = ray.remote(num_gpus=self.gpus, num_cpus=self.cpus)(_done)
        return ray.get(there.remote(work))

    def run(self, worker: ShardWorker, tasks: Sequence[Task]) -> Iterator[int]:
        """Run the tasks; yields the number of documents of each, in any order. A dead worker is replaced."""
        import ray.data

        if not tasks:
            return
        items = [{"task": json.dumps(asdict(task))} for task in tasks]
        shards = ray.data.from_items(items, override_num_blocks=len(tasks))
        done = shards.map_batches(
            _Actor,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(tasks)), max_tasks_in_flight_per_actor=1),
            num_gpus=self.gpus,
            num_cpus=self.cpus,
        )
        try:
            for row in done.iter_rows():
                yield int(row["documents"])
        except ray.exceptions.RayError as exc:
            last = (str(exc).strip() or type(exc).__name__).splitlines()[-1]
            raise StoreError(f"a worker failed: {last}; finished shards are kept, call again to go on") from exc


def _done(work: Callable[[], pa.Schema]) -> pa.Schema:
    return work()


class _Actor:
    """A worker in the form that Ray expects: batches of columns in and out."""

    def __init__(self, worker: ShardWorker) -> None:
        self.worker = worker

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[int]]:
        tasks = map(json.loads, batch["task"])
        return {"documents": [self.worker(Task(**{**task, "shard": Shard(**task["shard"])})) for task in tasks]}
