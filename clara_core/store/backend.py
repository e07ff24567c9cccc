"""The seam between a `MemoryStore` and the place that keeps its documents: a Lance table, or this process's memory.

`MemoryStore` is the same for both places: it checks and compresses what it is given, reads and refuses filters, fuses
rankings, chooses by maximal marginal relevance and makes scores. A place keeps rows, finds them, and knows nothing of
engines. A row is a document; rows have an order, in which documents came, and one that is
replaced comes last.

Letters of shapes: Q questions, D = n_mem * hidden numbers of a window, W windows of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clara_core.common.errors import FingerprintMismatch, StoreError
from clara_core.data.memory import Memory
from clara_core.store.codec import MemoryType
from clara_core.store.records import Broken, Record, StoreStats

Rows: TypeAlias = NDArray[np.uint64]
"""Numbers of rows, ascending."""

Report: TypeAlias = Callable[[str, int, int], None]
"""Told which step is under way, how much of it is done and how much there is; 0 where that is not known."""


@dataclass(frozen=True, slots=True)
class Space:
    """What kind of memories a store holds; fixed by the first ones.

    Attributes:
        fingerprint: Of the model that made them.
        memory_type: How they are kept.
        n_mem: Memory tokens of a window.
        hidden: Numbers of a memory token.
    """

    fingerprint: str
    memory_type: MemoryType
    n_mem: int
    hidden: int

    def check_model(self, fingerprint: str, uri: str) -> None:
        """Refuse another model than the one whose memories a store holds.

        Raises:
            FingerprintMismatch: Says both and what to do.
        """
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"the store at {uri} holds memories of the model {self.fingerprint[:12]}, this one is "
                f"{fingerprint[:12]}: open it with the model that wrote it, or add its texts to a store in another "
                "place with this one; get, iteration and mode='text' work as it is, without an engine"
            )

    def check(self, entries: Sequence[Entry], uri: str) -> None:
        """Refuse documents with memories of another kind.

        Raises:
            FingerprintMismatch: They are of another model.
            ValueError: They have another shape; says both.
        """
        for entry in entries:
            self.check_model(entry.memory.fingerprint, uri)
            if tuple(entry.memory.tokens.shape[1:]) != (self.n_mem, self.hidden):
                raise ValueError(f"memories of this store have windows of {self.n_mem} x {self.hidden} numbers, the "
                                 f"document {entry.id!r:.80} has {list(entry.memory.tokens.shape)}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A document on its way into a store: checked, and compressed.

    Attributes:
        id: Of the document.
        text: Exactly as it was given.
        metadata: As JSON, from `clara_core.store.records.metadata_json`.
        content: `clara_core.data.memory.content_key` of text and fingerprint.
        memory: Of the text.
    """

    id: str
    text: str
    metadata: str
    content: str
    memory: Memory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that a place found.

    Attributes:
        row: Of the document.
        score: Cosine of the question and the best window, or BM25.
        window: Which window of the document scored best; 0 in a search by words.
        order: When the document came, where its row does not tell.
    """

    row: int
    score: float
    window: int = 0
    order: int = 0


@dataclass(frozen=True, slots=True)
class Matches:
    """What a search by words found.

    Attributes:
        candidates: Best first; of equal scores the lower row first.
        unit: The BM25 of a text of mean length that has each word of the question once: what scores are measured by.
    """

    candidates: list[Candidate]
    unit: float


class Snapshot(Protocol):
    """The documents of one moment. Never changes, whoever writes meanwhile; safe under threads."""

    @property
    def space(self) -> Space:
        """Of its memories."""

    def count(self) -> int:
        """How many documents there are."""

    def passing(self, condition: Mapping[str, Any]) -> Rows:
        """Rows of the documents whose metadata passes a filter that `check_filter` accepted, as `matches` says."""

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        """Documents by id; unknown ids are left out. Metadata is the caller's own copy."""

    def at_rows(self, rows: Rows, *, with_memories: bool) -> dict[int, tuple[Record, Memory | None]]:
        """Documents by the numbers of their rows, and their memories if they are wanted."""

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """`Entry.content` and `Entry.metadata` of documents, by id; unknown ids are left out."""

    def memories(self, ids: Sequence[str]) -> dict[str, Memory]:
        """Memories by id; unknown ids are left out."""

    def with_contents(self, contents: Sequence[str]) -> dict[str, str]:
        """The id of a document that has an `Entry.content`, by content; unknown ones are left out."""

    def __iter__(self) -> Iterator[Record]:
        """All documents in the order of their rows, in bounded memory."""

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:
        """The k documents of which a window is most like a question, for each question.

        Args:
            questions: ``[Q, n_mem, hidden]``, finite, of this space.
            k: Most documents of a question, at least 1.
            allowed: Rows that may be found; None means all.
            exact: Compare with all memories; a place that always does so may overlook it.
            oversample: Candidates for one document, where the place looks for candidates first.

        Returns:
            list: Best first, of equal scores the lower row first. A score is the cosine in float32, rounded to six
            digits and in [-1, 1].
        """

    def windows(self, candidates: Sequence[Candidate]) -> Tensor:
        """The best window of each candidate as a vector, ``[n, D]``."""

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        """The k documents that share words with a question, by BM25 over all documents of the snapshot.

        Words are those of `retrieval.words`, scores those of `retrieval.bm25`: the same in every place.
        """

    def stats(self) -> StoreStats:
        """Size and state."""


class Backend(Protocol):
    """A place for documents. Safe under threads; may be pickled, and deep copies of a place in memory are their own."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def latest(self) -> Snapshot | None:
        """The documents of now; None while there never was one.

        Raises:
            StoreError: The place cannot be read, or was written by another version; says what to do.
        """

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep documents, all of them or none; one whose id is there is replaced. The first ones fix the space.

        Args:
            entries: Of one space, each under an id of its own.

        Raises:
            FingerprintMismatch: Memories of another model are there.
            ValueError: The memories have another shape than those that are there.
            StoreError: Others wrote all the time, or the place cannot be written.
        """

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        """Take out the documents that have one of the ids and pass the filter; None means all. Returns how many."""

    def compact(self, older_than: timedelta) -> None:
        """Give back the room of what was replaced or taken out, and versions of the place that are older."""

    def optimize(self, report: Report) -> None:
        """Bring keys and indexes up to date; changes nothing that is found."""

    def check(self, report: Report) -> list[Broken]:
        """Read all that is kept, and say which files cannot be read."""

    def salvage(self, report: Report) -> list[Broken]:
        """The same, and take the documents of those files out."""

    def explain(self, error: BaseException) -> StoreError | None:
        """What an error of a call means for the store and what to do; None for one that is not of the place."""

    def close(self) -> None:
        """Let go of what is only held to be quick; the place may be used again."""
