"""Checks documents, compresses texts without a memory, and writes batches while the next ones are compressed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, TypeVar

import torch

from clara_core.common.errors import FingerprintMismatch
from clara_core.common.threads import one_thread
from clara_core.data.memory import Memory, content_key
from clara_core.engine.protocol import Engine
from clara_core.store.backend import Backend, Entry, Space, explained, retry_read
from clara_core.store.records import made_id, metadata_json

_log = logging.getLogger(__name__)

BATCH: Final = 256  # texts written together
_BATCH_BYTES: Final = 1 << 26  # bytes of given memories written together
_BATCH_MOST: Final = 1 << 13  # given memories written together; Lance keeps the order of so many
_AHEAD: Final = 2  # batches that are compressed while one is written
VECTORS: Final = "vectors"  # fingerprint of vectors that are not memories
FIDELITY: Final = "fidelity"  # metadata field: how much of its text a memory has kept

_MISSING: Final = object()

Measure = Callable[[list[Memory]], Sequence[float]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A checked document for `add`; `metadata` is JSON."""

    id: str
    text: str
    metadata: str
    memory: Memory | None = None


# --- checking --------------------------------------------------------------------------------------------


def checked_documents(
    texts: Iterable[object] | None,
    metadatas: Iterable[object] | None,
    ids: Iterable[object] | None,
    memories: Iterable[object] | None,
    vectors: Iterable[object] | None,
) -> Iterator[Document]:
    """The documents one by one, each checked when it is reached.

    Raises:
        TypeError: A value has the wrong type; the message names it.
        ValueError: Lengths differ, an id occurs twice, or a memory is not finite.
        FingerprintMismatch: The memories are of several models.
    """
    if texts is None and memories is None:
        raise TypeError("add takes texts, or memories, which carry their texts; got neither")
    if memories is not None and vectors is not None:
        raise ValueError("add takes memories= or vectors=, not both")
    given = {"texts": texts, "metadatas": metadatas, "ids": ids, "memories": memories, "vectors": vectors}
    columns = {name: values for name, values in given.items() if values is not None}
    for name, several in columns.items():
        if isinstance(several, str | bytes | dict | Memory) or not isinstance(several, Iterable):
            raise TypeError(f"{name} must be several values, got one {type(several).__name__}; put it into a list")
        sizes = {other: len(found) for other, found in columns.items() if isinstance(found, Sequence)}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{size} {other}" for other, size in sizes.items())
            raise ValueError(f"each document needs one of each, got {listed}")
    used: set[str] = set()
    seen: dict[str, int] = {}
    model: Memory | None = None
    for index, row in enumerate(zip_longest(*columns.values(), fillvalue=_MISSING)):
        values: dict[str, Any] = dict(zip(columns, row, strict=True))
        if short := [name for name, value in values.items() if value is _MISSING]:
            raise ValueError(f"{short[0]} ended after {index} documents, before the others: each document needs one")
        document = _checked(index, values, seen)
        model = model or document.memory
        if document.memory is not None and model is not None:
            _check_alike(index, document.memory, model)
        if document.id in used:
            raise ValueError(f"ids[{index}] occurs twice in one call: {document.id!r:.80}; use different ids")
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
    if memory is not None and memory.text != text:
        raise ValueError(f"memories[{index}] has another text than texts[{index}]: {memory.text!r:.60} "
                         f"and {text!r:.60}")  # fmt: skip
    if "vectors" in values:
        memory = _memory_of(index, values["vectors"], text)
    id_ = values.get("ids")
    if id_ is None:
        base = made_id(text, 0)
        count = seen.get(base, 0)
        seen[base] = count + 1
        id_ = base if count == 0 else made_id(text, count)
    if not isinstance(id_, str):
        raise TypeError(f"ids[{index}] must be a string or None, got {type(id_).__name__}: {id_!r:.60}")
    name = f"metadatas[{index}]" if values.get("ids") is None else f"metadatas[{index}] (of the document {id_!r:.80})"
    return Document(id_, text, metadata_json(values.get("metadatas"), name), memory)


def _check_memory(index: int, memory: object) -> None:
    if not isinstance(memory, Memory):
        raise TypeError(f"memories[{index}] must be a Memory, got {type(memory).__name__}; make one with "
                        "engine.compress")  # fmt: skip
    shape = memory.tokens.shape
    if len(shape) != 3 or len(memory.spans) != len(memory.tokens):
        raise ValueError(f"memories[{index}] needs tokens [windows, n_mem, hidden] and a span for each of its windows, "
                         f"got tokens {list(shape)} and {len(memory.spans)} spans")  # fmt: skip
    # The sum is finite only if every number is (unless the sum itself overflows), and is faster than checking each
    # number.
    if not bool(memory.tokens.sum(dtype=torch.float32).isfinite()) and not bool(memory.tokens.isfinite().all()):
        raise ValueError(f"memories[{index}] holds NaN or infinity; compress its text again: {memory.text!r:.60}")


def _memory_of(index: int, vector: object, text: str) -> Memory:
    """A vector ``[D]``, or vectors ``[W, D]`` of the windows of a text, as a memory of W windows of one token."""
    try:
        rows = torch.as_tensor(vector, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise TypeError(f"vectors[{index}] must be numbers, got {type(vector).__name__}: {exc}") from exc
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.shape[1] or (not len(rows) and not is_blank(text)):
        raise ValueError(f"vectors[{index}] must be a vector [D], or [W, D], got the shape {list(rows.shape)}")
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not bool(lengths.isfinite().all()):
        raise ValueError(f"vectors[{index}] holds NaN or infinity, or numbers too large for float32")
    if not bool(lengths.all()):
        raise ValueError(f"vectors[{index}] is a zero vector, which has no direction")
    return Memory(rows[:, None], text, ((0, len(text)),) * len(rows), 0, VECTORS)


def _check_alike(index: int, memory: Memory, first: Memory) -> None:
    if memory.fingerprint != first.fingerprint:
        raise FingerprintMismatch(
            f"memories[{index}] was made by the model {memory.fingerprint[:12]}, the first one by "
            f"{first.fingerprint[:12]}: a store holds memories of one model; compress its text again"
        )
    if memory.tokens.shape[1:] != first.tokens.shape[1:]:
        raise ValueError(f"memories[{index}] has windows of {list(memory.tokens.shape[1:])} numbers, the first one of "
                         f"{list(first.tokens.shape[1:])}")  # fmt: skip


def is_blank(text: str) -> bool:
    """Whether a text is blank: it is stored, but neither compressed nor found."""
    return not text.strip()


def written_fingerprint(engine: Engine | None, memory: Memory | None) -> str:
    """Fingerprint of the memories to write: that of the first document's memory, if it has one, else the engine's."""
    if memory is None:
        if engine is None:
            raise ValueError("the store has no engine for texts: open it with engine= or model=, or give memories")
        return engine.fingerprint
    if engine is not None and memory.fingerprint not in (engine.fingerprint, VECTORS):
        raise FingerprintMismatch(
            f"the memories are of the model {memory.fingerprint[:12]}, the engine of this store is "
            f"{engine.fingerprint[:12]}: give texts, or open the store with the model that made them"
        )
    return memory.fingerprint


def fidelity_measure(engine: Engine | None, vectors: object) -> Measure:
    """Measures how much of their texts memories have kept, with an engine in this process."""
    from clara_core.engine.engine import ClaraEngine

    if vectors is not None or not isinstance(engine, ClaraEngine):
        given = "vectors of other embeddings" if vectors is not None else f"the engine {engine!r}"
        raise ValueError(
            f"fidelity=True reads memories back with their model in this process, got {given}: open the store with "
            "model= or a ClaraEngine, and give texts or memories"
        )
    return lambda memories: [one.kept for one in engine.fidelity(memories)]


def blank_memory(text: str, of: Space | Engine, fingerprint: str) -> Memory:
    """The memory of a blank text: without windows, of the shape of other memories."""
    return Memory(torch.empty(0, of.n_mem, of.hidden), text, (), 0, fingerprint)


# --- writing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes documents of one fingerprint."""

    backend: Backend
    engine: Engine | None  # None if every document has its memory
    fingerprint: str
    measure: Measure | None  # of how much memories have kept

    def write(self, documents: Iterable[Document]) -> Iterator[list[str]]:
        """Write documents; yields after each batch the ids of its documents, which are now safe."""
        waiting: deque[tuple[list[str], Future[list[Entry]]]] = deque()
        with ThreadPoolExecutor(_AHEAD, "clara-store") as pool:
            try:
                for batch in batches_of(documents, _BATCH_MOST, _BATCH_BYTES, _size):
                    waiting.append(([document.id for document in batch], pool.submit(self._prepare, batch)))
                    if len(waiting) > _AHEAD:
                        yield self._put(*waiting.popleft())
                while waiting:
                    yield self._put(*waiting.popleft())
            finally:
                for _, future in waiting:
                    future.cancel()

    def _put(self, ids: list[str], prepared: Future[list[Entry]]) -> list[str]:
        if entries := prepared.result():
            with explained(self.backend), nullcontext() if self.engine is None else one_thread():
                self.backend.put(entries)
            if blank := [entry.id for entry in entries if is_blank(entry.text)]:
                _log.warning(
                    "%d of %d documents have no text, such as %.80r: they are stored, but no search finds them",
                    len(blank), len(entries), blank[0],
                )  # fmt: skip
        return ids

    def _prepare(self, batch: list[Document]) -> list[Entry]:
        """The documents of a batch that the store does not hold unchanged, with their memories."""
        contents = [self._content(document) for document in batch]
        known = retry_read(self.backend, lambda: self._states([document.id for document in batch]))
        changed = [
            (document, content)
            for document, content in zip(batch, contents, strict=True)
            if not self._is_there(known.get(document.id), content, document.metadata)
        ]
        memories = self._memories(changed)
        metadatas = self._measured([document.metadata for document, _ in changed], memories)
        return [
            Entry(document.id, document.text, metadata, content, memory)
            for (document, content), metadata, memory in zip(changed, metadatas, memories, strict=True)
        ]

    def _is_there(self, known: tuple[str, str] | None, content: str, metadata: str) -> bool:
        """Whether nothing has to be written; what was measured of the same text need not be measured again."""
        if known is None or self.measure is None:
            return known == (content, metadata)
        there = json.loads(known[1])
        return FIDELITY in there and (known[0], there) == (content, {**json.loads(metadata), FIDELITY: there[FIDELITY]})

    def _measured(self, metadatas: list[str], memories: Sequence[Memory]) -> list[str]:
        """The metadata with what is measured of the memories."""
        if self.measure is None:
            return metadatas
        kept = self.measure(list(memories))
        pairs = zip(metadatas, kept, strict=True)
        return [json.dumps({**json.loads(one), FIDELITY: value}, separators=(",", ":")) for one, value in pairs]

    def _content(self, document: Document) -> str:
        """Identifies what a document contains, to find unchanged ones; a vector does not follow from its text."""
        if document.memory is None or self.fingerprint != VECTORS:
            return content_key(document.text, self.fingerprint)
        return content_key(document.text, hashlib.sha256(document.memory.tokens.numpy().tobytes()).hexdigest())

    def _states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        snapshot = self.backend.latest()
        return {} if snapshot is None else snapshot.states(ids)

    def _stored(self, contents: Sequence[str]) -> dict[str, Memory]:
        """Stored memories by content."""
        snapshot = self.backend.latest()
        return {} if snapshot is None else snapshot.memories(contents, by="content")

    def _memories(self, changed: Sequence[tuple[Document, str]]) -> list[Memory]:
        """A memory for each document: its own, a stored one of the same text, or a new one."""
        wanted = {content: document.text for document, content in changed if document.memory is None}
        there = {content: self._blank(text) for content, text in wanted.items() if is_blank(text)}
        missing = [content for content in wanted if content not in there]
        if missing:
            there |= retry_read(self.backend, lambda: self._stored(missing))
            missing = [content for content in missing if content not in there]
        if missing:
            if self.engine is None:
                raise ValueError(f"{len(missing)} texts have no memory and there is no engine to compress them: open "
                                 "the store with engine= or model=")  # fmt: skip
            made = self.engine.remember([wanted[content] for content in missing])
            there |= {content_key(memory.text, self.fingerprint): memory for memory in made}
        return [there[content] if document.memory is None else document.memory for document, content in changed]

    def _blank(self, text: str) -> Memory:
        of: Space | Engine | None = self.engine if (snapshot := self.backend.latest()) is None else snapshot.space
        if of is None:
            raise ValueError("the first document of a store without an engine must not be blank; add another one first")
        return blank_memory(text, of, self.fingerprint)


def batches_of(items: Iterable[T], most: float, most_bytes: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in batches, each of which ends where it has `most` items or `most_bytes` bytes."""
    batch: list[T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += size(item)
        if len(batch) >= most or weight >= most_bytes:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _size(document: Document) -> int:
    """Bytes of the memory that was given, or the share of a batch that a text without one has."""
    return _BATCH_BYTES // BATCH if document.memory is None else document.memory.nbytes
