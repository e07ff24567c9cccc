"""Vectors of documents in one float32 matrix: a search is one product. Knows nothing of texts and models.

Letters of shapes: W rows in use, D length of a vector.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Found(Generic[Key, Value]):
    """An entry that a search found.

    Attributes:
        key: Of the entry.
        value: What was kept with it.
        score: Cosine of the question and the entry's best row, in [-1, 1].
        vector: That row, ``[D]``; a view, not to be changed.
    """

    key: Key
    value: Value
    score: float
    vector: Tensor


@dataclass(frozen=True, slots=True)
class _State(Generic[Key, Value]):
    """What a reader sees: never changed, only replaced.

    Rows of `rows` and entries of `entries` beyond the numbers here may be written meanwhile; a reader does not look
    there. An entry that was taken out is None here, and its rows stay until the next compaction.
    """

    rows: Tensor  # [capacity, D], as they were given
    norms: Tensor  # [capacity]
    owners: Tensor  # [capacity]: which entry a row belongs to
    entries: list[tuple[Key, Value, int, int] | None]  # key, value, first row, last row + 1
    used: int = 0
    count: int = 0


class VectorMatrix(Generic[Key, Value]):
    """Entries by key, each with one or more vectors. Safe under threads; a search sees a whole state.

    Adding copies no more than what is added (on average); replacing and deleting copy the list of entries.
    """

    def __init__(self) -> None:
        self._state: _State[Key, Value] | None = None
        self._places: dict[Key, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {"_state": self._state, "_places": dict(self._places)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[tuple[Key, Value]]:
        """All entries in the order in which they came."""
        state = self._state
        if state is not None:
            yield from ((entry[0], entry[1]) for entry in state.entries[: state.count] if entry is not None)

    @property
    def length(self) -> int | None:
        """Length of the vectors; None while there never was one."""
        return None if self._state is None else self._state.rows.shape[1]

    def put(self, items: Sequence[tuple[Key, Value, Tensor]]) -> None:
        """Keep entries with their vectors ``[rows, D]``; one whose key is known takes the other's place.

        Raises:
            ValueError: The vectors have another length than those that are here.
        """
        items = list({item[0]: item for item in items}.values())  # of equal keys the last
        if not items:
            return
        vectors = torch.cat([item[2] for item in items]).float()
        with self._lock:
            if self._state is not None and self._state.rows.shape[1] != vectors.shape[1]:
                here, given = self._state.rows.shape[1], vectors.shape[1]
                msg = f"vectors of {given} numbers do not belong beside vectors of {here}: another model or setting?"
                raise ValueError(msg)
            state = self._without(self._roomy(vectors), [item[0] for item in items])
            first, place = state.used, state.count
            for key, value, rows in items:
                last = first + len(rows)
                state.owners[first:last] = place
                state.entries.append((key, value, first, last))
                self._places[key] = place
                first, place = last, place + 1
            state.rows[state.used : first] = vectors
            state.norms[state.used : first] = vectors.norm(dim=1).clamp_min(1e-12)
            self._state = _State(state.rows, state.norms, state.owners, state.entries, first, place)

    def delete(self, keys: Iterable[Key]) -> int:
        """Take entries out; keys that are not here are passed over. Returns how many there were."""
        with self._lock:
            known = [key for key in dict.fromkeys(keys) if key in self._places]
            if self._state is None or not known:
                return 0
            self._state = self._without(self._state, known)
            for key in known:
                del self._places[key]
            if len(self._places) < self._state.count // 2:
                self._compact()
            return len(known)

    def clear(self) -> None:
        """Take everything out."""
        with self._lock:
            self._state, self._places = None, {}

    def get(self, key: Key) -> tuple[Value, Tensor] | None:
        """An entry and a copy of its vectors ``[rows, D]``, if it is here."""
        with self._lock:
            place, state = self._places.get(key), self._state
        entry = None if place is None or state is None else state.entries[place]
        if entry is None or state is None:
            return None
        return entry[1], state.rows[entry[2] : entry[3]].clone()

    def value(self, key: Key) -> Value | None:
        """What was kept with an entry, if it is here."""
        with self._lock:
            place, state = self._places.get(key), self._state
        entry = None if place is None or state is None else state.entries[place]
        return None if entry is None else entry[1]

    def search(
        self, question: Tensor, k: int, accept: Callable[[Value], bool] | None = None
    ) -> list[Found[Key, Value]]:
        """The entries most like a question, best first; equal scores keep the order in which entries came.

        Args:
            question: ``[D]``.
            k: Most entries to find.
            accept: Asked about entries, best first, until enough are accepted.

        Raises:
            ValueError: The question has another length than the vectors.
        """
        state = self._state
        if state is None or not state.used or k < 1:
            return []
        if question.shape != state.rows.shape[1:]:
            msg = f"a question of {len(question)} numbers cannot be compared with vectors of {state.rows.shape[1]}"
            raise ValueError(msg)
        unit = torch.nn.functional.normalize(question.float(), dim=0)
        # Rounding can push the product of two equal unit vectors past one.
        scores = ((state.rows[: state.used] @ unit) / state.norms[: state.used]).clamp(-1.0, 1.0)  # [W]
        best = torch.full((state.count,), -torch.inf)
        best.scatter_reduce_(0, state.owners[: state.used], scores, "amax")
        found: list[Found[Key, Value]] = []
        for place in best.argsort(descending=True, stable=True).tolist():
            entry = state.entries[place]
            if entry is None or (accept is not None and not accept(entry[1])):
                continue
            row = entry[2] + int(scores[entry[2] : entry[3]].argmax())
            found.append(Found(entry[0], entry[1], float(scores[row]), state.rows[row]))
            if len(found) == k:
                break
        return found

    def _roomy(self, vectors: Tensor) -> _State[Key, Value]:
        """The state with room for more rows."""
        state = self._state
        if state is None:
            capacity = len(vectors)
            return _State(torch.empty(capacity, vectors.shape[1]), torch.empty(capacity), _places(capacity), [])
        needed = state.used + len(vectors)
        if needed <= len(state.rows):
            return state
        return _grown(state, max(needed, 2 * len(state.rows)))

    def _without(self, state: _State[Key, Value], keys: Iterable[Key]) -> _State[Key, Value]:
        """The state without some entries; readers keep the list that they have."""
        gone = [self._places[key] for key in keys if key in self._places]
        if not gone:
            return state
        entries = state.entries[: state.count]
        for place in gone:
            entries[place] = None
        return _State(state.rows, state.norms, state.owners, entries, state.used, state.count)

    def _compact(self) -> None:
        """Give back the rows of entries that are gone."""
        state = self._state
        if state is None:
            return
        kept = [entry for entry in state.entries[: state.count] if entry is not None]
        chosen = torch.tensor([row for entry in kept for row in range(entry[2], entry[3])], dtype=torch.int64)
        owners = torch.tensor([place for place, e in enumerate(kept) for _ in range(e[2], e[3])], dtype=torch.int64)
        entries: list[tuple[Key, Value, int, int] | None] = []
        first = 0
        for key, value, start, end in kept:
            entries.append((key, value, first, first + end - start))
            first += end - start
        self._state = _State(state.rows[chosen], state.norms[chosen], owners, entries, first, len(entries))
        self._places = {entry[0]: place for place, entry in enumerate(kept)}


def _grown(state: _State[Key, Value], capacity: int) -> _State[Key, Value]:
    rows, norms, owners = torch.empty(capacity, state.rows.shape[1]), torch.empty(capacity), _places(capacity)
    rows[: state.used], norms[: state.used] = state.rows[: state.used], state.norms[: state.used]
    owners[: state.used] = state.owners[: state.used]
    return _State(rows, norms, owners, state.entries, state.used, state.count)


def _places(capacity: int) -> Tensor:
    return torch.zeros(capacity, dtype=torch.int64)
