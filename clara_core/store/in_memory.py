"""The backend in the memory of this process: a matrix of windows and an index of words. Does not need Lance.

Readers use the current state and never wait; a writer replaces it. States share their dicts of documents, to which
additions only append: the rows of a later document are beyond those of a state. A deletion copies the dicts.

Dimensions: Q questions, W windows, D numbers of a window.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.retrieval.bm25 import WordIndex
from clara_core.retrieval.filters import matches
from clara_core.retrieval.ranking import unit_rows
from clara_core.retrieval.thesaurus import search_terms
from clara_core.retrieval.words import words_of
from clara_core.store.backend import Backend, Candidate, Entry, Matches, Report, Rows, Space
from clara_core.store.codec import MemoryCodec, MemoryType
from clara_core.store.records import Record, StoreStats, metadata_from_json
from clara_core.store.windows import WindowMatrix, Windows, ranking

_RESTORED: Final = 256  # documents that a copy adds at a time


@dataclass(slots=True)
class _Document:
    """A stored document. Only `parsed` changes, once."""

    id: str
    text: str
    metadata: str  # and `content` as in `Entry`
    content: str
    spans: tuple[tuple[int, int], ...]
    source_tokens: int
    dtype: torch.dtype  # in which the memory was given
    row: int
    parsed: dict[str, Any] | None = None  # metadata, once a filter has used it

    def passes(self, condition: Mapping[str, Any]) -> bool:
        """Whether its metadata passes a filter."""
        if self.parsed is None:
            self.parsed = metadata_from_json(self.metadata)
        return matches(condition, self.parsed)

    def record(self) -> Record:
        """A copy for the caller."""
        return Record(self.id, self.text, metadata_from_json(self.metadata), self.spans, self.source_tokens)


@dataclass(frozen=True, slots=True)
class _State:
    """One version of the documents; see `clara_core.store.backend.Snapshot`."""

    space: Space
    matrix: Windows
    words: WordIndex
    documents: dict[int, _Document]  # by row, ascending; this and the next two also have those that were added later
    by_id: dict[str, _Document]
    by_content: dict[str, _Document]  # the last document of a content
    size: int = 0  # number of documents
    next_row: int = 0  # above the rows of all documents
    version: int = 0
    filtered: dict[str, Rows] = field(default_factory=dict)  # cached results of filters

    def there(self) -> Iterator[_Document]:
        """All documents, in order."""
        return islice(self.documents.copy().values(), self.size)  # a copy, since others may add meanwhile

    def count(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Record]:
        return (document.record() for document in self.there())

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        try:
            cache_key = json.dumps(condition)
        except (TypeError, ValueError):
            cache_key = None
        if cache_key in self.filtered:
            return self.filtered[cache_key]
        rows = np.array([document.row for document in self.there() if document.passes(condition)], np.uint64)
        if cache_key is not None:
            self.filtered[cache_key] = rows
        return rows

    def known(self, names: Sequence[str], by: Literal["id", "content"] = "id") -> dict[str, _Document]:
        """Documents by id or by content."""
        among = self.by_id if by == "id" else self.by_content
        found = {name: among.get(name) for name in names}
        return {name: each for name, each in found.items() if each is not None and each.row < self.next_row}

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        return {id_: document.record() for id_, document in self.known(ids).items()}

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        found = [self.documents[row] for row in rows.tolist()]
        return {each.row: (each.record(), self.memory(each) if with_memories else None) for each in found}

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        return {id_: (document.content, document.metadata) for id_, document in self.known(ids).items()}

    def memories(self, names: Sequence[str], by: Literal["id", "content"] = "id") -> dict[str, Memory]:
        return {name: self.memory(document) for name, document in self.known(names, by).items()}

    def memory(self, document: _Document) -> Memory:
        """The memory of a document, in the type in which it was given."""
        count, start = len(document.spans), int(np.searchsorted(self.matrix.rows, np.uint64(document.row)))
        windows = self.matrix.at(range(start, start + count)) if count else np.empty(0, np.float32)
        tokens = torch.from_numpy(windows).view(count, self.space.n_mem, self.space.hidden).to(document.dtype)
        return Memory(tokens, document.text, document.spans, document.source_tokens, self.space.fingerprint)

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
        starts = np.searchsorted(self.matrix.rows, np.array([each.row for each in candidates], np.uint64))
        places = (start + each.window for start, each in zip(starts.tolist(), candidates, strict=True))
        return torch.from_numpy(self.matrix.at(places))

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        found, unit = self.words.search(search_terms(question), k, allowed)
        return Matches([Candidate(row, score, 0, row) for row, score in found], unit)

    def stats(self) -> StoreStats:
        size = len(self.matrix.rows) * self.space.n_mem * self.space.hidden * 4
        each = size / self.size if self.size else 0.0
        return StoreStats(
            documents=self.size, bytes=size, bytes_per_document=each, fragments=len(self.matrix.blocks),
            version=self.version, fingerprint=self.space.fingerprint, memory_type=self.space.memory_type,
        )  # fmt: skip


class InMemory(Backend):
    """The backend in the memory of this process; see `clara_core.store.backend.Backend`.

    Args:
        memory_type: ``float32`` keeps memories exactly. The other types round the numbers as in a folder, but take
            as much room as float32.
    """

    uri: Final = "memory://"

    def __init__(self, memory_type: MemoryType = "float32") -> None:
        self._memory_type = memory_type
        self._state: _State | None = None
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
            state = self._without(state, list(state.known([entry.id for entry in entries]).values()))
            rows = np.arange(state.next_row, state.next_row + len(entries), dtype=np.uint64)
            counts = np.array([memory.n_windows for memory in memories])
            self._matrix.add(windows, rows, counts, 1 / np.linalg.norm(windows, axis=1).clip(1e-12))
            self._words.add(rows, texts)
            for entry, row in zip(entries, rows.tolist(), strict=True):
                memory = entry.memory
                state.documents[row] = state.by_id[entry.id] = state.by_content[entry.content] = _Document(
                    entry.id, entry.text, entry.metadata, entry.content, memory.spans, memory.source_tokens,
                    memory.tokens.dtype, row,
                )  # fmt: skip
            self._show(state, len(entries))

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        with self._writing:
            if (state := self._state) is None:
                return 0
            gone = list(state.there() if ids is None else state.known(ids).values())
            gone = [document for document in gone if not condition or document.passes(condition)]
            if gone:
                self._show(self._without(state, gone))
            return len(gone)

    def compact(self, older_than: timedelta) -> None:
        with self._writing:
            if (state := self._state) is not None and not state.matrix.alive.all():
                self._matrix.compact()
                self._state = replace(state, matrix=self._matrix.snapshot())

    def optimize(self, report: Report) -> None:
        """Does nothing: there are no keys and no indexes to update."""

    def close(self) -> None:
        """Does nothing: there are no caches."""

    def _empty(self, space: Space) -> _State:
        self._words = WordIndex()
        self._matrix = WindowMatrix(space.n_mem * space.hidden, np.float32, scaled=True)
        return _State(space, self._matrix.snapshot(), self._words.snapshot(), {}, {}, {})

    def _windows(self, memories: Sequence[Memory]) -> NDArray[np.float32]:
        """Windows ``[W, D]``, rounded to the memory type."""
        tokens = torch.cat([memory.tokens.detach().cpu().float() for memory in memories])
        if self._memory_type != "float32" and len(tokens):
            codec = MemoryCodec(self._memory_type, *tokens.shape[1:])
            tokens = codec.decode(codec.encode(tokens))
        windows: NDArray[np.float32] = tokens.flatten(1).numpy()
        return windows

    def _without(self, state: _State, gone: Sequence[_Document]) -> _State:
        """The state without the documents in `gone`. It is not visible to readers yet."""
        if not gone:
            return state
        rows = np.sort(np.array([document.row for document in gone], np.uint64))
        self._matrix.remove(rows)
        self._words.remove(rows)
        documents, by_id, by_content = state.documents.copy(), state.by_id.copy(), state.by_content.copy()
        for document in gone:
            del documents[document.row], by_id[document.id]
            if by_content.get(document.content) is document:
                del by_content[document.content]
        size = state.size - len(gone)
        return replace(state, documents=documents, by_id=by_id, by_content=by_content, size=size)

    def _show(self, state: _State, added: int = 0) -> None:
        """Make the next version visible to readers."""
        self._state = replace(
            state, matrix=self._matrix.snapshot(), words=self._words.snapshot(), size=state.size + added,
            next_row=state.next_row + added, version=state.version + 1, filtered={},
        )  # fmt: skip
