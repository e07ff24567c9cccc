"""The backend in the memory of this process: a matrix of windows and an index of words. Does not need Lance.

Readers use the current state and never wait; a writer replaces it. All states share the lists of documents, which only
grow: documents added later are beyond a state's size, and a deleted document records the version that deleted it. The
lists are copied without the deleted documents once most of them are deleted.

Dimensions: Q questions, W windows, D numbers of a window.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.common.errors import StoreError
from clara_core.data.memory import Memory
from clara_core.retrieval.bm25 import WordIndex
from clara_core.retrieval.filters import matches
from clara_core.retrieval.ranking import unit_rows
from clara_core.retrieval.words import words_of
from clara_core.store.backend import Candidate, Entry, Matches, Report, Rows, Space
from clara_core.store.codec import MemoryCodec, MemoryType
from clara_core.store.records import Broken, Record, StoreStats, metadata_from_json
from clara_core.store.windows import WindowMatrix, Windows, ranking

_KEPT_DEAD: Final = 64  # deleted documents that are always allowed in the lists
_RESTORED: Final = 256  # documents that a copy adds at a time


@dataclass(slots=True)
class _Document:
    """A stored document. Only `parsed` and `end` change, each once."""

    id: str
    text: str
    metadata: str  # and `content` as in `Entry`
    content: str
    spans: tuple[tuple[int, int], ...]
    source_tokens: int
    dtype: torch.dtype  # in which the memory was given
    row: int
    start: int  # index of its first window in the matrix
    earlier: _Document | None = None  # the previous document with the same id
    end: int | None = None  # the version that deleted the document
    parsed: dict[str, Any] | None = None  # metadata, once a filter has used it

    def facts(self) -> dict[str, Any]:
        """The parsed metadata; do not change it."""
        if self.parsed is None:
            self.parsed = metadata_from_json(self.metadata)
        return self.parsed

    def record(self) -> Record:
        """A copy for the caller."""
        return Record(self.id, self.text, metadata_from_json(self.metadata), self.spans, self.source_tokens)


@dataclass(frozen=True, slots=True)
class _State:
    """One version of the documents; see `clara_core.store.backend.Snapshot`."""

    space: Space
    matrix: Windows
    documents: list[_Document]  # by row; also those that were added later
    newest: dict[str, _Document]  # the last document of an id
    contents: dict[str, _Document]  # the last document of a content
    words: WordIndex
    size: int = 0  # number of documents, including deleted ones
    live: int = 0
    version: int = 0
    filtered: dict[str, Rows] = field(default_factory=dict)  # cached results of filters

    def has(self, document: _Document) -> bool:
        """Whether a document of this version is not deleted."""
        return document.end is None or document.end > self.version

    def there(self) -> Iterator[_Document]:
        """All documents that are not deleted, in order."""
        return (document for document in self.documents[: self.size] if self.has(document))

    def count(self) -> int:
        return self.live

    def __iter__(self) -> Iterator[Record]:
        return (document.record() for document in self.there())

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        try:
            cache_key = json.dumps(condition)
        except (TypeError, ValueError):
            cache_key = None
        if cache_key in self.filtered:
            return self.filtered[cache_key]
        found = [document.row for document in self.there() if matches(condition, document.facts())]
        rows = np.array(found, np.uint64)
        if cache_key is not None:
            self.filtered[cache_key] = rows
        return rows

    def known(self, ids: Sequence[str]) -> dict[str, _Document]:
        """Documents by id."""
        last = self.documents[self.size - 1].row if self.size else -1
        found: dict[str, _Document] = {}
        for id_ in ids:
            document = self.newest.get(id_)
            while document is not None and document.row > last:
                document = document.earlier
            if document is not None and self.has(document):
                found[id_] = document
        return found

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        return {id_: document.record() for id_, document in self.known(ids).items()}

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        found = list(map(self._at, rows.tolist()))
        return {each.row: (each.record(), self.memory(each) if with_memories else None) for each in found}

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        return {id_: (document.content, document.metadata) for id_, document in self.known(ids).items()}

    def memories(self, ids: Sequence[str]) -> dict[str, Memory]:
        return {id_: self.memory(document) for id_, document in self.known(ids).items()}

    def with_contents(self, contents: Sequence[str]) -> dict[str, str]:
        found = {content: self.contents[content] for content in contents if content in self.contents}
        known = self.known([document.id for document in found.values()])
        return {content: each.id for content, each in found.items() if known.get(each.id) is each}

    def memory(self, document: _Document) -> Memory:
        """The memory of a document, in the type in which it was given."""
        shape = (len(document.spans), self.space.n_mem, self.space.hidden)
        windows = self.matrix.at(document.start, document.start + shape[0]) if shape[0] else np.empty(0, np.float32)
        tokens = torch.from_numpy(windows).view(shape).to(document.dtype)
        return Memory(tokens, document.text, document.spans, document.source_tokens, self.space.fingerprint)

    def _at(self, row: int) -> _Document:
        place = bisect_left(self.documents, row, hi=self.size, key=lambda document: document.row)
        return self.documents[place]

    # --- finding -----------------------------------------------------------------------------------------

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:
        units = unit_rows(questions)

        def products(block: NDArray[np.float32]) -> NDArray[np.float32]:
            windows = torch.from_numpy(block)
            found = torch.mv(windows, units[0])[None] if len(units) == 1 else units @ windows.T
            return found.numpy()

        return [ranking(own, k) for own in self.matrix.best(len(units), k, allowed, products)]

    def windows(self, candidates: Sequence[Candidate]) -> Tensor:
        starts = [self._at(each.row).start + each.window for each in candidates]
        return torch.from_numpy(np.concatenate([self.matrix.at(start, start + 1) for start in starts]))

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        found, unit = self.words.search(words_of(question), k, allowed)
        return Matches([Candidate(row, score, 0, row) for row, score in found], unit)

    def stats(self) -> StoreStats:
        size = len(self.matrix.rows) * self.space.n_mem * self.space.hidden * 4
        each = size / self.live if self.live else 0.0
        return StoreStats(
            documents=self.live, bytes=size, bytes_per_document=each, fragments=len(self.matrix.blocks),
            version=self.version, fingerprint=self.space.fingerprint, memory_type=self.space.memory_type,
        )  # fmt: skip


class InMemory:
    """The backend in the memory of this process; see `clara_core.store.backend.Backend`.

    Args:
        memory_type: ``float32`` keeps memories exactly. The other types round the numbers as in a folder, but take
            as much room as float32.
    """

    uri: Final = "memory://"

    def __init__(self, memory_type: MemoryType = "float32") -> None:
        self._memory_type = memory_type
        self._state: _State | None = None
        self._next = 0  # row number of the next document
        self._writing = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        if (state := self._state) is None:
            return InMemory, (self._memory_type,)
        entries = [Entry(each.id, each.text, each.metadata, each.content, state.memory(each)) for each in state.there()]
        return InMemory, (self._memory_type,), (state.space, entries)

    def __setstate__(self, kept: tuple[Space, list[Entry]]) -> None:
        space, entries = kept
        self._state = self._empty(space)
        for start in range(0, len(entries), _RESTORED):
            self.put(entries[start : start + _RESTORED])

    def latest(self) -> _State | None:
        return self._state

    def put(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        memories = [entry.memory for entry in entries]
        texts = [words_of(entry.text) for entry in entries]
        windows = self._windows(memories)
        with self._writing:
            state = self._state or self._empty(Space.of(memories[0], self._memory_type))
            state.space.check(entries, self.uri)
            replaced = list(state.known([entry.id for entry in entries]).values())
            rows = np.arange(self._next, self._next + len(entries), dtype=np.uint64)
            counts = np.array([memory.n_windows for memory in memories])
            starts = self._matrix.used + counts.cumsum() - counts
            self._matrix.add(windows, rows, counts, 1 / np.linalg.norm(windows, axis=1).clip(1e-12))
            self._words.add(rows, texts)
            for entry, row, start in zip(entries, rows.tolist(), starts.tolist(), strict=True):
                memory = entry.memory
                document = _Document(
                    entry.id, entry.text, entry.metadata, entry.content, memory.spans, memory.source_tokens,
                    memory.tokens.dtype, row, start, state.newest.get(entry.id),
                )  # fmt: skip
                state.documents.append(document)
                state.newest[entry.id] = state.contents[entry.content] = document
            state = self._without(state, replaced)
            self._next += len(entries)
            self._show(replace(state, size=len(state.documents), live=state.live + len(entries)))

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        with self._writing:
            if (state := self._state) is None:
                return 0
            gone = list(state.there() if ids is None else state.known(ids).values())
            gone = [document for document in gone if not condition or matches(condition, document.facts())]
            if gone:
                self._show(self._without(state, gone))
            return len(gone)

    def compact(self, older_than: timedelta) -> None:
        with self._writing:
            if (state := self._state) is not None and state.live < state.size:
                self._state = self._dense(state)

    def optimize(self, report: Report) -> None:
        """Does nothing: there are no keys and no indexes to update."""

    def check(self, report: Report) -> list[Broken]:
        return []

    def salvage(self, report: Report) -> list[Broken]:
        return []

    def explain(self, error: BaseException) -> StoreError | None:
        return None

    def close(self) -> None:
        """Does nothing: there are no caches."""

    def _empty(self, space: Space) -> _State:
        self._words = WordIndex()
        self._matrix = WindowMatrix(space.n_mem * space.hidden, np.float32, scaled=True)
        return _State(space, self._matrix.at(0), [], {}, {}, self._words.snapshot())

    def _windows(self, memories: Sequence[Memory]) -> NDArray[np.float32]:
        """Windows ``[W, D]``, rounded to the memory type."""
        tokens = torch.cat([memory.tokens.detach().cpu().float() for memory in memories])
        if self._memory_type != "float32" and len(tokens):
            codec = MemoryCodec(self._memory_type, *tokens.shape[1:])
            tokens = codec.decode(codec.encode(tokens))
        windows: NDArray[np.float32] = tokens.flatten(1).numpy()
        return windows

    def _without(self, state: _State, gone: Sequence[_Document]) -> _State:
        """The state of the next version, without the documents in `gone`. It is not visible to readers yet."""
        if not gone:
            return state
        rows = np.sort(np.array([document.row for document in gone], np.uint64))
        for document in gone:
            document.end = state.version + 1
        self._matrix.end(rows, state.version + 1)
        self._words.remove(rows)
        return replace(state, live=state.live - len(gone))

    def _show(self, state: _State) -> None:
        """Make the next version visible to readers."""
        version = state.version + 1
        state = replace(
            state, matrix=self._matrix.at(version), words=self._words.snapshot(), version=version, filtered={}
        )
        self._state = self._dense(state) if state.size - state.live > max(state.live, _KEPT_DEAD) else state

    def _dense(self, state: _State) -> _State:
        """The same version with new lists that do not contain the deleted documents."""
        self._matrix = WindowMatrix(state.space.n_mem * state.space.hidden, np.float32, scaled=True)
        documents = []
        for old in state.there():
            windows = slice(old.start, old.start + len(old.spans))
            documents.append(replace(old, start=self._matrix.used, earlier=None))
            if old.spans:
                numbers, scales = state.matrix.at(windows.start, windows.stop), state.matrix.scales
                self._matrix.add(numbers, np.array([old.row], np.uint64), np.array([len(numbers)]),
                                 None if scales is None else scales[windows])  # fmt: skip
        newest = {document.id: document for document in documents}
        contents = {document.content: document for document in documents}
        return replace(
            state, matrix=self._matrix.at(state.version), documents=documents, newest=newest, contents=contents,
            size=len(documents),
        )  # fmt: skip
