"""Documents into the table: checked, compressed where nobody did, written while the next ones are compressed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import torch

from clara_core.errors import FingerprintMismatch
from clara_core.memory import Memory, content_key
from clara_core.store.damage import explained
from clara_core.store.reading import memories_of, rows_with
from clara_core.store.records import made_id, metadata_json, unguarded
from clara_core.store.schema import FIT_ROWS, Entry, Layout, memory_shape
from clara_core.store.table import Change, Table
from clara_core.store.upkeep import refit

if TYPE_CHECKING:
    from lance import LanceDataset

BATCH: Final = 256  # texts of a commit
_BATCH_BYTES: Final = 1 << 26  # of ready memories in a commit
_BATCH_MOST: Final = 1 << 14  # ready memories of a commit
_AHEAD: Final = 2  # batches that are compressed while one is written

_MISSING: Final = object()

Compress = Callable[[list[str]], Sequence[Memory]]


@dataclass(frozen=True, slots=True)
class Document:
    """What `add` was given, checked; `metadata` is JSON."""

    id: str
    text: str
    metadata: str
    memory: Memory | None = None


@dataclass(slots=True)
class Prepared:
    """A batch on its way: what has to be written of it, as documents and then as rows."""

    size: int
    entries: list[Entry]
    memories: list[Memory]
    rows: pa.RecordBatch | None = None

    def encoded(self, layout: Layout) -> pa.RecordBatch:
        """The rows of the batch; lets go of the memories."""
        if self.rows is None:
            self.rows, self.memories = layout.rows(self.entries, self.memories), []
        return self.rows


# --- checking --------------------------------------------------------------------------------------------


def checked_documents(
    texts: Iterable[object] | None,
    metadatas: Iterable[object] | None,
    ids: Iterable[object] | None,
    memories: Iterable[object] | None,
) -> Iterator[Document]:
    """The documents one by one, each checked when it is reached.

    Raises:
        TypeError: Something is not what it should be; names it.
        ValueError: Lengths differ, an id comes twice, a text is empty, or a memory is not finite.
        FingerprintMismatch: Memories are of several models.
    """
    if texts is None and memories is None:
        raise TypeError("add takes texts, or memories, which carry their texts; got neither")
    given = {"texts": texts, "metadatas": metadatas, "ids": ids, "memories": memories}
    columns = {name: values for name, values in given.items() if values is not None}
    for name, several in columns.items():
        if isinstance(several, str | bytes | dict | Memory) or not isinstance(several, Iterable):
            raise TypeError(f"{name} must be several values, got one {type(several).__name__}; put it into a list")
        sizes = {other: len(found) for other, found in columns.items() if isinstance(found, Sequence)}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{size} {other}" for other, size in sizes.items())
            raise ValueError(f"one of each a document is needed, got {listed}")
    used: set[str] = set()
    seen: dict[str, int] = {}
    model: Memory | None = None
    for index, row in enumerate(zip_longest(*columns.values(), fillvalue=_MISSING)):
        values: dict[str, Any] = dict(zip(columns, row, strict=True))
        if short := [name for name, value in values.items() if value is _MISSING]:
            raise ValueError(f"{short[0]} ended after {index} documents, the others go on: one a document is needed")
        document = _checked(index, values, seen)
        model = model or document.memory
        if document.memory is not None and model is not None:
            _check_alike(index, document.memory, model)
        if document.id in used:
            raise ValueError(f"ids[{index}] comes twice in one call: {document.id!r:.80}; give each document its own")
        used.add(document.id)
        yield document


def _checked(index: int, values: dict[str, Any], seen: dict[str, int]) -> Document:
    memory = values.get("memories")
    if memory is not None:
        _check_memory(index, memory)
    elif "memories" in values:
        raise TypeError(f"memories[{index}] must be a Memory, got None")
    text = values.get("texts", None if memory is None else memory.text)
    if not isinstance(text, str):
        raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}: {text!r:.60}")
    if not text:
        raise ValueError(f"texts[{index}] is empty: there is nothing in it to find or to read; leave it out")
    if memory is not None and memory.text != text:
        raise ValueError(f"memories[{index}] is of another text than texts[{index}]: {memory.text!r:.60} "
                         f"and {text!r:.60}")  # fmt: skip
    id_ = values.get("ids")
    if id_ is None:
        base = made_id(text, 0)
        count = seen.get(base, 0)
        seen[base] = count + 1
        id_ = base if count == 0 else made_id(text, count)
    if not isinstance(id_, str):
        raise TypeError(f"ids[{index}] must be a string or None, got {type(id_).__name__}: {id_!r:.60}")
    return Document(id_, text, metadata_json(values.get("metadatas"), f"metadatas[{index}]"), memory)


def _check_memory(index: int, memory: object) -> None:
    if not isinstance(memory, Memory):
        raise TypeError(f"memories[{index}] must be a Memory, got {type(memory).__name__}; make one with "
                        "engine.compress")  # fmt: skip
    memory_shape(memory)
    # The sum is finite only if every number is, unless it is too large itself; it is quicker than asking each.
    if not bool(memory.tokens.sum(dtype=torch.float32).isfinite()) and not bool(memory.tokens.isfinite().all()):
        raise ValueError(f"memories[{index}] holds NaN or infinity; compress its text again: {memory.text!r:.60}")


def _check_alike(index: int, memory: Memory, first: Memory) -> None:
    if memory.fingerprint != first.fingerprint:
        raise FingerprintMismatch(
            f"memories[{index}] was made by the model {memory.fingerprint[:12]}, the first one by "
            f"{first.fingerprint[:12]}: a store holds memories of one model; compress its text again"
        )
    if memory.tokens.shape[1:] != first.tokens.shape[1:]:
        raise ValueError(f"memories[{index}] has windows of {list(memory.tokens.shape[1:])} numbers, the first one of "
                         f"{list(first.tokens.shape[1:])}")  # fmt: skip


# --- writing ---------------------------------------------------------------------------------------------


class Writer:
    """Writes documents of one fingerprint.

    Args:
        table: Where to.
        fingerprint: Of the memories.
        compress: Makes memories of texts; None where every document brings its own.
        new_layout: The layout of a table that does not exist yet, from its first memories.
    """

    def __init__(
        self,
        table: Table,
        fingerprint: str,
        compress: Compress | None,
        new_layout: Callable[[Sequence[Memory]], Layout],
    ) -> None:
        self._table = table
        self._fingerprint = fingerprint
        self._compress = compress
        self._new_layout = new_layout
        self._layout: Layout | None = None

    def write(self, documents: Iterable[Document]) -> Iterator[int]:
        """Write documents; yields how many of them are safe, each time that a batch is.

        Raises:
            FingerprintMismatch: The table holds memories of another model.
        """
        if (dataset := self._table.latest()) is not None:
            self._layout = checked_layout(dataset, self._table.uri, self._fingerprint)
        waiting: deque[Future[Prepared]] = deque()
        with ThreadPoolExecutor(_AHEAD, "clara-store") as pool:
            try:
                for batch in _batches(documents):
                    waiting.append(pool.submit(self._prepare, batch))
                    if len(waiting) > _AHEAD:
                        yield self._commit(waiting.popleft().result())
                while waiting:
                    yield self._commit(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, batch: list[Document]) -> Prepared:
        """Find out what has to be written, and have it compressed."""
        dataset = self._table.latest()
        entries = [
            Entry(document.id, document.text, document.metadata, content_key(document.text, self._fingerprint))
            for document in batch
        ]
        with explained(self._table):
            known = _known(dataset, entries)
        pairs = zip(batch, entries, strict=True)
        changed = [pair for pair in pairs if known.get(pair[1].id) != (pair[1].content, pair[1].metadata)]
        prepared = Prepared(len(batch), [entry for _, entry in changed], self._memories(changed, dataset))
        if self._layout is not None and changed:
            prepared.encoded(self._layout)
        return prepared

    def _memories(self, changed: Sequence[tuple[Document, Entry]], dataset: LanceDataset | None) -> list[Memory]:
        """A memory for each document: its own, one of the table with the same text, or a new one."""
        wanted = {entry.content: entry.text for document, entry in changed if document.memory is None}
        with explained(self._table):
            there = stored_memories(dataset, self._table.uri, list(wanted)) if dataset is not None and wanted else {}
        missing = [text for content, text in wanted.items() if content not in there]
        if missing:
            if self._compress is None:
                raise ValueError(f"{len(missing)} texts have no memory and there is no engine to compress them: open "
                                 "the store with engine= or model=")  # fmt: skip
            made = self._compress(missing)
            there.update({content_key(memory.text, self._fingerprint): memory for memory in made})
        return [there[entry.content] if document.memory is None else document.memory for document, entry in changed]

    def _commit(self, prepared: Prepared) -> int:
        if prepared.entries:
            with explained(self._table):
                self._put(prepared)
        return prepared.size

    def _put(self, prepared: Prepared) -> None:
        if (dataset := self._table.latest()) is None:
            dataset = self._table.create(self._new_layout(prepared.memories).schema)
        if self._layout is None:
            self._layout = checked_layout(dataset, self._table.uri, self._fingerprint)
        added = self._table.write(prepared.encoded(self._layout))
        ids = [entry.id for entry in prepared.entries]
        seen = 0

        def change(latest: LanceDataset) -> Change:
            nonlocal seen
            seen = latest.version
            return Change(rows_with(latest, "id", ids, ["window"])["_rowid"].to_pylist(), added)

        done = self._table.commit(change)
        if done.version != seen + 1:
            drop_doubles(self._table, ids)
        if self._layout.fitted_to < FIT_ROWS <= done.count_rows():
            refit(self._table)
            self._layout = None


def drop_doubles(table: Table, ids: Sequence[str]) -> None:
    """Of documents that two writers put in at the same moment, leave the later version.

    Where a lock keeps writers apart this finds nothing. Whoever comes second finds the other's rows, and all that look
    choose the same ones.
    """

    def change(latest: LanceDataset) -> Change:
        rows = rows_with(latest, "id", ids, ["id"])
        files: dict[str, dict[int, list[int]]] = {}  # rows of a document, by file
        for id_, row in zip(rows["id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True):
            files.setdefault(id_, {}).setdefault(row >> 32, []).append(row)
        return Change([row for own in files.values() for file in sorted(own)[:-1] for row in own[file]])

    table.commit(change)


def checked_layout(dataset: LanceDataset, uri: str, fingerprint: str) -> Layout:
    """The layout of a table that is to hold memories of this fingerprint.

    Raises:
        FingerprintMismatch: It holds others.
    """
    layout = Layout.of(dataset.schema, uri)
    if layout.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"the store at {uri} holds memories of the model {layout.fingerprint[:12]}, this one is "
            f"{fingerprint[:12]}: open it with the model that wrote it, keep the memories of this one in another "
            "folder (add the texts of the store to it), or open it without an engine and with read_only=True for its "
            "texts"
        )
    return layout


def stored_memories(dataset: LanceDataset, uri: str, contents: Sequence[str]) -> dict[str, Memory]:
    """Memories that the table holds, by the content of their document."""
    heads = rows_with(dataset, "content", contents, ["id", "content"])
    ids = dict(zip(heads["content"].to_pylist(), map(unguarded, heads["id"].to_pylist()), strict=True))
    found = memories_of(dataset, Layout.of(dataset.schema, uri), list(ids.values()))
    return {content: found[id_] for content, id_ in ids.items()}


def _known(dataset: LanceDataset | None, entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """Content and metadata of the documents that are there, by id."""
    if dataset is None:
        return {}
    found = rows_with(dataset, "id", [entry.id for entry in entries], ["id", "content", "metadata"])
    heads = found.filter(pc.is_valid(found["content"]))
    return {
        unguarded(id_): (content, metadata)
        for id_, content, metadata in zip(
            heads["id"].to_pylist(), heads["content"].to_pylist(), heads["metadata"].to_pylist(), strict=True
        )
    }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """What is committed together: so many texts, or so many bytes of ready memories."""
    batch: list[Document] = []
    texts = size = 0
    for document in documents:
        batch.append(document)
        texts += document.memory is None
        size += 0 if document.memory is None else document.memory.nbytes
        if texts >= BATCH or size >= _BATCH_BYTES or len(batch) >= _BATCH_MOST:
            yield batch
            batch, texts, size = [], 0, 0
    if batch:
        yield batch
