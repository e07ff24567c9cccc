"""The interface between a `MemoryStore` and its backend: a Lance table, or this process's memory.

`MemoryStore` is the same for both backends. It checks and compresses documents, checks filters, fuses rankings, applies
maximal marginal relevance and computes scores. A backend stores rows and finds them, and does not use an engine. Each
document is one row. Rows are ordered by when their documents were added; a replaced document comes last.

Dimensions: Q questions, D = n_mem * hidden numbers of a window, W windows of a document.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clara_core.common.errors import FingerprintMismatch, StoreError
from clara_core.common.threads import one_thread
from clara_core.data.memory import Memory
from clara_core.store.codec import MemoryType
from clara_core.store.records import Broken, Record, StoreStats

Rows: TypeAlias = NDArray[np.uint64]
"""Row numbers, ascending."""

Report: TypeAlias = Callable[[str, int, int], None]
"""Receives the name of the current step, how much of it is done, and how much there is; 0 for an unknown number."""

_TRIES: Final = 3  # attempts of a read whose files others delete meanwhile

Method = TypeVar("Method", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Space:
    """The kind of memories that a store holds; fixed by the first ones."""

    fingerprint: str  # of the model that made them
    memory_type: MemoryType  # in which they are stored
    n_mem: int  # memory tokens of a window
    hidden: int  # numbers of a memory token

    @classmethod
    def of(cls, memory: Memory, memory_type: MemoryType) -> Space:
        """The space of a memory."""
        n_mem, hidden = map(int, memory.tokens.shape[1:])
        return cls(memory.fingerprint, memory_type, n_mem, hidden)

    def check_model(self, fingerprint: str, uri: str) -> None:
        """Raise `FingerprintMismatch`, which names both, for a model other than that of the stored memories."""
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"the store at {uri} holds memories of the model {self.fingerprint[:12]}, this one is "
                f"{fingerprint[:12]}: open it with the model that wrote it, or add its texts to a store in another "
                "place with this one; get, iteration and mode='text' work without an engine"
            )

    def check(self, entries: Sequence[Entry], uri: str) -> None:
        """Refuse documents whose memories are of another model (`FingerprintMismatch`) or shape (ValueError)."""
        for entry in entries:
            self.check_model(entry.memory.fingerprint, uri)
            if tuple(entry.memory.tokens.shape[1:]) != (self.n_mem, self.hidden):
                raise ValueError(f"memories of this store have windows of {self.n_mem} x {self.hidden} numbers, the "
                                 f"document {entry.id!r:.80} has {list(entry.memory.tokens.shape)}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked and compressed document, ready to be stored."""

    id: str
    text: str  # exactly as it was given
    metadata: str  # JSON from `clara_core.store.records.metadata_json`
    content: str  # `clara_core.data.memory.content_key` of text and fingerprint
    memory: Memory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document found by a backend."""

    row: int
    score: float  # cosine between the question and the best window, or BM25
    window: int = 0  # index of the window with the best score; 0 in a search by words
    order: int = 0  # position by time of adding, for backends whose row numbers do not give it


@dataclass(frozen=True, slots=True)
class Matches:
    """Result of a search by words."""

    candidates: list[Candidate]  # best first; of equal scores the lower row first
    unit: float  # BM25 score of a text of mean length that has each word of the question once; measures the scores


class Snapshot(Protocol):
    """The documents of one version. It never changes, even while others write, and is safe under threads."""

    @property
    def space(self) -> Space:
        """Kind of the memories."""

    def count(self) -> int:
        """Number of documents."""

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        """Rows of the documents that pass a filter by the rules of `matches`; `check_filter` must accept the filter."""

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        """Documents by id; unknown ids are left out. The metadata is the caller's own copy."""

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        """Documents by row number, with their memories if `with_memories` is set."""

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """`Entry.content` and `Entry.metadata` of documents, by id; unknown ids are left out."""

    def memories(self, names: Sequence[str], by: Literal["id", "content"] = "id") -> dict[str, Memory]:
        """Memories by id, or by `Entry.content`; unknown ones are left out."""

    def __iter__(self) -> Iterator[Record]:
        """All documents in the order of their rows, in bounded memory."""

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:
        """For each question the k documents with the most similar window.

        Args:
            questions: ``[Q, n_mem, hidden]``, finite, of this space.
            k: Maximum number of documents for each question, at least 1.
            allowed: Rows that may be found; None allows all.
            exact: Compare with all memories; a backend that always does so may ignore it.
            oversample: Candidates for each document to find, if the backend first searches for candidates.

        Returns:
            list: Best first, of equal scores the lower row first. A score is the cosine in float32, rounded to six
                digits and in [-1, 1].
        """

    def windows(self, candidates: Sequence[Candidate]) -> Tensor:
        """The best window of each candidate as a vector, ``[n, D]``."""

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        """The k documents that share words with a question, by BM25 over all documents of the snapshot.

        Words are those of `retrieval.words` and scores those of `retrieval.bm25`, in every backend.
        """

    def stats(self) -> StoreStats:
        """Size and state."""


class Backend(Protocol):
    """A backend for documents. Safe under threads and picklable; deep copies of a backend in memory are independent."""

    @property
    def uri(self) -> str:
        """Address of the store."""

    def latest(self) -> Snapshot | None:
        """The latest version; None if nothing was ever stored.

        Raises:
            StoreError: The store cannot be read, or was written by another version; the message says what to do.
        """

    def put(self, entries: Sequence[Entry]) -> None:
        """Store documents of one space with different ids, all or none; known ids replace the stored documents.

        Raises:
            FingerprintMismatch, ValueError: The store holds memories of another model, or of another shape.
            StoreError: Other writers were faster every time, or the store cannot be written.
        """

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        """Delete the documents that have one of the ids and pass the filter (None means all); returns their number."""

    def compact(self, older_than: timedelta) -> None:
        """Free the space of replaced and deleted documents, and delete versions older than `older_than`."""

    def optimize(self, report: Report) -> None:
        """Update keys and indexes; the results of searches do not change."""

    def close(self) -> None:
        """Drop caches; the backend may be used again."""

    # A backend without files has none to check.

    def check(self, report: Report) -> list[Broken]:
        """Read everything in the store, and return the files that cannot be read."""
        return []

    def salvage(self, report: Report) -> list[Broken]:
        """Do the same, and delete the documents of those files."""
        return []

    def explain(self, error: BaseException) -> StoreError | None:
        """The meaning of an error for the store and what to do; None for an error that is not the backend's."""
        return None


# --- errors ----------------------------------------------------------------------------------------------


@contextmanager
def explained(backend: Backend) -> Iterator[None]:
    """Turn errors of the backend into `StoreError`: a file is broken, or could not be read or written."""
    try:
        yield
    except BaseException as exc:
        if (meant := backend.explain(exc)) is None:
            raise
        raise meant from exc


def retry_read(backend: Backend, work: Callable[[], T], tries: int = _TRIES) -> T:
    """Call a function that reads the latest version; repeat it if a file that it reads is deleted meanwhile."""
    for left in reversed(range(tries)):
        try:
            with explained(backend), one_thread():
                return work()
        except Exception as exc:
            if not left or "not found" not in str(exc.__cause__).lower():
                raise
    raise AssertionError


def writes(method: Method, tries: int = 1) -> Method:
    """Decorate a method of a class with a ``_backend`` so that it explains errors, also of an iterator it returns."""

    @functools.wraps(method)
    def explaining(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = retry_read(self._backend, lambda: method(self, *args, **kwargs), tries)
        return _each(self._backend, result) if isinstance(result, Iterator) else result

    return cast("Method", explaining)


def reads(method: Method) -> Method:
    """`writes` for a method that only reads: it is repeated if others delete the version that it reads."""
    return writes(method, _TRIES)


def _each(backend: Backend, values: Iterator[Any]) -> Iterator[Any]:
    advance, end = one_thread()(next), object()
    with explained(backend):
        while (value := advance(values, end)) is not end:
            yield value
