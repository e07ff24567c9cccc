"""A store in the memory of this process: one matrix of windows, and an index of words. Needs no Lance.

Readers take the state that they find and never wait; a writer replaces it. Rows that are added lie beyond what an older
state looks at; a document that is taken out is dead in the newer state, and its room is given back once most are.

Letters of shapes: Q questions, D numbers of a window, W windows, N documents.
"""

from __future__ import annotations

import json
import threading
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
from clara_core.retrieval.bm25 import WordIndex, members
from clara_core.retrieval.filters import matches
from clara_core.retrieval.ranking import unit_rows
from clara_core.retrieval.words import words_of
from clara_core.store.backend import Candidate, Entry, Matches, Report, Rows, Space
from clara_core.store.codec import MemoryCodec, MemoryType
from clara_core.store.records import Broken, Record, StoreStats, metadata_from_json

_BLOCK_BYTES: Final = 1 << 24  # of windows that lie in one piece, and are never moved
_DIGITS: Final = 6  # of a cosine in float32, as in a folder
_ROUNDED: Final = 1e-6
_FEW: Final = 8  # times as many documents as may be found: then those alone are compared


@dataclass(slots=True)
class _Document:
    """A document that is kept. Only `parsed` ever changes, once.

    Attributes:
        id, text, metadata, content: As in `Entry`.
        spans, source_tokens: Of its memory.
        dtype: Of the memory's numbers, as they were given.
        replaces: Where the document of the same id lies that came before.
        parsed: The metadata, once a filter asked for it.
    """

    id: str
    text: str
    metadata: str
    content: str
    spans: tuple[tuple[int, int], ...]
    source_tokens: int
    dtype: torch.dtype
    replaces: int | None = None
    parsed: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """The metadata, to be read only."""
        if self.parsed is None:
            self.parsed = metadata_from_json(self.metadata)
        return self.parsed

    def record(self) -> Record:
        """For a caller to do with as he likes."""
        return Record(self.id, self.text, metadata_from_json(self.metadata), self.spans, self.source_tokens)


@dataclass(frozen=True, slots=True)
class _State:
    """The documents of one moment; see `clara_core.store.backend.Snapshot`.

    What the lists and arrays hold beyond the numbers here was added later. `places` leads to the last document of an
    id, and from there to those that it replaced.
    """

    space: Space
    blocks: list[Tensor]  # [_per_block, D] each, float32
    scales: NDArray[np.float32]  # 1 / length of each window
    starts: NDArray[np.int64]  # first window of each document, and the end of the last one
    documents: list[_Document]
    numbers: NDArray[np.uint64]  # row of each document, ascending
    alive: NDArray[np.bool_]
    places: dict[str, int]
    contents: dict[str, int]  # the last document of a content
    words: WordIndex
    size: int = 0  # documents, dead ones too
    live: int = 0
    version: int = 0
    asked: dict[str, Rows] = field(default_factory=dict)  # what filters let pass

    # --- documents ---------------------------------------------------------------------------------------

    def count(self) -> int:
        return self.live

    def __iter__(self) -> Iterator[Record]:
        for place in np.flatnonzero(self.alive[: self.size]).tolist():
            yield self.documents[place].record()

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        try:
            question = json.dumps(condition)
        except (TypeError, ValueError):
            question = None
        if question is not None and question in self.asked:
            return self.asked[question]
        places = [
            place
            for place in np.flatnonzero(self.alive[: self.size]).tolist()
            if matches(condition, self.documents[place].facts())
        ]
        rows = self.numbers[places] if places else np.zeros(0, np.uint64)
        if question is not None:
            self.asked[question] = rows
        return rows

    def known(self, ids: Sequence[str]) -> dict[str, int]:
        """Places of documents by id."""
        found: dict[str, int] = {}
        for id_ in ids:
            place = self.places.get(id_)
            while place is not None and place >= self.size:
                place = self.documents[place].replaces
            if place is not None and self.alive[place]:
                found[id_] = place
        return found

    def places_of(self, rows: Sequence[int] | Rows) -> list[int]:
        """Places of documents by row."""
        places: list[int] = np.searchsorted(self.numbers[: self.size], np.asarray(rows, np.uint64)).tolist()
        return places

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        return {id_: self.documents[place].record() for id_, place in self.known(ids).items()}

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        found = zip(rows.tolist(), self.places_of(rows), strict=True)
        return {
            row: (self.documents[place].record(), self._memory(place) if with_memories else None)
            for row, place in found
        }

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        found = {id_: self.documents[place] for id_, place in self.known(ids).items()}
        return {id_: (document.content, document.metadata) for id_, document in found.items()}

    def memories(self, ids: Sequence[str]) -> dict[str, Memory]:
        return {id_: self._memory(place) for id_, place in self.known(ids).items()}

    def with_contents(self, contents: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for content in contents:
            place = self.contents.get(content, self.size)
            if place < self.size and self.alive[place]:
                found[content] = self.documents[place].id
        return found

    def _memory(self, place: int) -> Memory:
        document = self.documents[place]
        windows = [self.window(at) for at in range(self.starts[place], self.starts[place + 1])]
        shape = (len(windows), self.space.n_mem, self.space.hidden)
        tokens = torch.stack(windows).view(shape).to(document.dtype) if windows else torch.empty(shape)
        return Memory(tokens, document.text, document.spans, document.source_tokens, self.space.fingerprint)

    def window(self, at: int) -> Tensor:
        """A window ``[D]``; a view."""
        return self.blocks[at // _per_block(self.space)][at % _per_block(self.space)]

    # --- finding -----------------------------------------------------------------------------------------

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:
        units = unit_rows(questions)
        if allowed is not None and _FEW * len(allowed) < self.size:
            return self._nearest_of(units, k, [place for place in self.places_of(allowed) if self._is_found(place)])
        starts = self.starts[: self.size + 1]
        scores = self._cosines(units, int(starts[-1]))  # [Q, W]
        usable = self.alive[: self.size] & (np.diff(starts) > 0)
        if allowed is not None:
            usable &= members(self.numbers[: self.size], allowed)
        places = np.flatnonzero(usable)
        if len(places) == int(starts[-1]) == self.size:  # all alive, each of one window
            return [self._best(own, own, places, starts, k) for own in scores]
        filled = np.flatnonzero(np.diff(starts))
        whole = np.full(self.size, -np.inf, np.float32)
        found = []
        for own in scores:
            if len(filled):
                whole[filled] = np.maximum.reduceat(own, starts[filled])
            found.append(self._best(own, whole[places], places, starts[places], k))
        return found

    def _is_found(self, place: int) -> bool:
        return bool(self.alive[place]) and self.starts[place] < self.starts[place + 1]

    def _nearest_of(self, units: Tensor, k: int, places: list[int]) -> list[list[Candidate]]:
        """`nearest` for a few documents, without a look at the others."""
        if not places:
            return [[] for _ in units]
        counts = self.starts[np.array(places) + 1] - self.starts[places]
        starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])[:-1]
        own = [at for place in places for at in range(self.starts[place], self.starts[place + 1])]
        scores = (units @ torch.stack([self.window(at) for at in own]).T).numpy() * self.scales[own]
        scores = scores.clip(-1.0, 1.0)
        return [self._best(each, np.maximum.reduceat(each, starts), np.array(places), starts, k) for each in scores]

    def _cosines(self, units: Tensor, used: int) -> NDArray[np.float32]:
        """Cosine of unit vectors ``[Q, D]`` with every window, ``[Q, W]``."""
        step = _per_block(self.space)
        scores = torch.empty(len(units), used)
        for block, part in zip(self.blocks, scores.split(step, dim=1) if used else (), strict=False):
            rows = block[: part.shape[1]]
            if len(units) == 1:
                torch.mv(rows, units[0], out=part[0])
            else:
                part.copy_(units @ rows.T)
        found: NDArray[np.float32] = scores.numpy()
        found *= self.scales[:used]
        # Rounding can push the product of two equal unit vectors past one.
        return found.clip(-1.0, 1.0, out=found)

    def _best(
        self,
        scores: NDArray[np.float32],
        best: NDArray[np.float32],
        places: NDArray[np.int64],
        starts: NDArray[np.int64],
        k: int,
    ) -> list[Candidate]:
        """The k best documents.

        Args:
            scores: Of windows.
            best: Of the best window of each document that may be found, ``[n]``.
            places: Of these documents, ``[n]``, ascending.
            starts: Where in `scores` their windows begin, ``[n]``.
            k: Most documents.
        """
        chosen = np.arange(len(places))
        if k < len(places):
            chosen = np.flatnonzero(best >= np.partition(best, len(best) - k)[len(best) - k] - _ROUNDED)
        found = sorted((-round(float(best[at]), _DIGITS), at) for at in chosen.tolist())[:k]
        candidates = []
        for score, at in found:
            place = int(places[at])
            end = starts[at] + self.starts[place + 1] - self.starts[place]
            window = int(scores[starts[at] : end].argmax())
            candidates.append(Candidate(int(self.numbers[place]), -score, window))
        return candidates

    def windows(self, candidates: Sequence[Candidate]) -> Tensor:
        places = self.places_of([each.row for each in candidates])
        pairs = zip(places, candidates, strict=True)
        return torch.stack([self.window(int(self.starts[place]) + each.window) for place, each in pairs])

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        found, unit = self.words.search(words_of(question), k, allowed)
        return Matches([Candidate(row, score) for row, score in found], unit)

    def stats(self) -> StoreStats:
        size = int(self.starts[self.size]) * self.space.n_mem * self.space.hidden * 4
        each = size / self.live if self.live else 0.0
        return StoreStats(
            documents=self.live, bytes=size, bytes_per_document=each, fragments=len(self.blocks), version=self.version,
            fingerprint=self.space.fingerprint, memory_type=self.space.memory_type,
        )  # fmt: skip


class InMemory:
    """Documents in the memory of this process; see `clara_core.store.backend.Backend`.

    Args:
        memory_type: ``float32`` keeps memories as they are. Numbers of the other types are rounded as in a folder, and
            take the room of float32 all the same.
    """

    uri: Final = "memory://"

    def __init__(self, memory_type: MemoryType = "float32") -> None:
        self._memory_type = memory_type
        self._state: _State | None = None
        self._words = WordIndex()
        self._next = 0  # number of the next row
        self._writing = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        with self._writing:
            self._compact()
            kept = {name: value for name, value in self.__dict__.items() if name != "_writing"}
            if (state := self._state) is not None:
                used, step = int(state.starts[state.size]), _per_block(state.space)
                blocks = [
                    block[: used - at * step].clone() for at, block in enumerate(state.blocks) if at * step < used
                ]
                kept["_state"] = replace(state, blocks=blocks, documents=[*state.documents], places={**state.places},
                                         contents={**state.contents}, asked={})  # fmt: skip
            return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._writing = threading.RLock()

    def latest(self) -> _State | None:
        return self._state

    # --- writing -----------------------------------------------------------------------------------------

    def put(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        texts = [words_of(entry.text) for entry in entries]
        windows = self._windows(entries)
        with self._writing:
            state = self._state or self._new(entries[0].memory)
            state.space.check(entries, self.uri)
            known = state.known([entry.id for entry in entries])
            state = self._roomy(self._without(state, list(known.values())), len(entries), len(windows))
            at = int(state.starts[state.size])
            self._write(state, at, windows)
            first = self._next
            for place, entry in enumerate(entries, state.size):
                memory = entry.memory
                state.documents.append(
                    _Document(entry.id, entry.text, entry.metadata, entry.content, memory.spans, memory.source_tokens,
                              memory.tokens.dtype, state.places.get(entry.id))
                )  # fmt: skip
                at += len(memory.tokens)
                state.starts[place + 1] = at
                state.numbers[place] = first + place - state.size
                state.alive[place] = True
                state.places[entry.id] = state.contents[entry.content] = place
            new = slice(state.size, state.size + len(entries))
            self._words.add(state.numbers[new].copy(), texts)
            self._next = first + len(entries)
            self._show(replace(state, size=new.stop, live=state.live + len(entries)))

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        with self._writing:
            if (state := self._state) is None:
                return 0
            places = np.flatnonzero(state.alive[: state.size]).tolist() if ids is None else [*state.known(ids).values()]
            if condition:
                passed = set(state.places_of(state.passing(condition)))
                places = [place for place in places if place in passed]
            if not places:
                return 0
            self._show(self._without(state, places))
            return len(places)

    def compact(self, older_than: timedelta) -> None:
        with self._writing:
            self._compact()

    def optimize(self, report: Report) -> None:
        """Nothing to do: there are no keys and no indexes that could be behind."""

    def check(self, report: Report) -> list[Broken]:
        return []

    def salvage(self, report: Report) -> list[Broken]:
        return []

    def explain(self, error: BaseException) -> StoreError | None:
        return None

    def close(self) -> None:
        """Nothing is held that could be made again."""

    def _show(self, state: _State) -> None:
        """Let readers see a state."""
        if state.size - state.live > max(state.live, 64):
            state = self._dense(state)
        self._state = replace(state, words=self._words.snapshot(), version=state.version + 1, asked={})

    def _windows(self, entries: Sequence[Entry]) -> Tensor:
        """``[W, D]`` in float32, rounded as the memory type says."""
        tokens = torch.cat([entry.memory.tokens.detach().cpu().float() for entry in entries])
        if self._memory_type != "float32" and len(tokens):
            codec = MemoryCodec(self._memory_type, *tokens.shape[1:])
            tokens = codec.decode(codec.encode(tokens))
        return tokens.flatten(1)

    def _new(self, memory: Memory) -> _State:
        space = Space(memory.fingerprint, self._memory_type, *map(int, memory.tokens.shape[1:]))
        none = np.zeros(0, np.float32)
        return _State(space, [], none, np.zeros(1, np.int64), [], np.zeros(0, np.uint64), np.zeros(0, np.bool_), {},
                      {}, self._words)  # fmt: skip

    def _roomy(self, state: _State, documents: int, windows: int) -> _State:
        """The state with room for more; what it holds stays where it is, or is copied while readers keep the old."""
        used = int(state.starts[state.size])
        step = _per_block(state.space)
        missing = used + windows - sum(map(len, state.blocks))
        if missing > 0 and state.blocks and (last := state.blocks[-1]).shape[0] < step:
            grown = torch.empty(min(step, max(2 * len(last), len(last) + missing)), last.shape[1])
            grown[: len(last)] = last
            state.blocks[-1] = grown  # readers of the old one find the same rows in it
            missing -= len(grown) - len(last)
        while missing > 0:
            rows = step if state.blocks else min(step, missing)
            state.blocks.append(torch.empty(rows, state.space.n_mem * state.space.hidden))
            missing -= rows
        return replace(
            state, scales=_grown(state.scales, used + windows), starts=_grown(state.starts, state.size + documents + 1),
            numbers=_grown(state.numbers, state.size + documents), alive=_grown(state.alive, state.size + documents),
        )  # fmt: skip

    @staticmethod
    def _write(state: _State, at: int, windows: Tensor) -> None:
        lengths = torch.linalg.vector_norm(windows, dim=1).clamp_min(1e-12)
        state.scales[at : at + len(windows)] = (1 / lengths).numpy()
        step = _per_block(state.space)
        done = 0
        while done < len(windows):
            block, offset = divmod(at + done, step)
            some = windows[done : done + step - offset]
            state.blocks[block][offset : offset + len(some)] = some
            done += len(some)

    def _without(self, state: _State, places: Sequence[int]) -> _State:
        """The state when documents are dead."""
        if not places:
            return state
        alive = state.alive.copy()
        alive[list(places)] = False
        self._words.remove(np.sort(state.numbers[list(places)]))
        return replace(state, alive=alive, live=state.live - len(places))

    def _compact(self) -> None:
        if (state := self._state) is not None and state.live < state.size:
            self._state = self._dense(state)

    def _dense(self, state: _State) -> _State:
        """The state without dead documents, in new places."""
        places = np.flatnonzero(state.alive[: state.size]).tolist()
        documents = [replace(state.documents[place], replaces=None) for place in places]
        counts = np.diff(state.starts[: state.size + 1])[places]
        dense = replace(
            state, blocks=[], scales=np.zeros(0, np.float32),
            starts=np.concatenate([np.zeros(1, np.int64), counts.cumsum()]),
            documents=documents, numbers=state.numbers[places], alive=np.ones(len(places), np.bool_), size=len(places),
            live=len(places), places={document.id: place for place, document in enumerate(documents)},
            contents={document.content: place for place, document in enumerate(documents)}, asked={},
        )  # fmt: skip
        total = int(counts.sum())
        dense = self._roomy(replace(dense, size=0), len(places), total)
        at = 0
        for place in places:
            own = range(state.starts[place], state.starts[place + 1])
            if own:
                self._write(dense, at, torch.stack([state.window(window) for window in own]))
                at += len(own)
        return replace(dense, size=len(places))


def _grown(values: NDArray[Any], needed: int) -> NDArray[Any]:
    """An array with room for so many values; the same one where it has it."""
    if needed <= len(values):
        return values
    grown = np.zeros(max(needed, 2 * len(values), 16), values.dtype)
    grown[: len(values)] = values
    return grown


def _per_block(space: Space) -> int:
    """Windows of a block."""
    return max(1, _BLOCK_BYTES // (4 * space.n_mem * space.hidden))
