"""What stands behind a `ClaraVectorStore` that lasts: a `MemoryStore`, in the words of `Rows`.

A dict filter goes to the store, which searches only what passes it. A function is asked about what a search found, and
the search is repeated further down until enough was accepted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from langchain_clara._entries import Filter, complete_ids, made_id
from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core import ClaraEngine, Memory
    from clara_core.store import Hit, MemoryStore, Record

_WIDER = 4  # times as many, when a function accepted too few
_NARROWEST = 16  # fewest documents that a function is asked about at a time


class DurableRows:
    """Documents by id with their memories, in a `MemoryStore`. Copies are the object itself.

    Args:
        embedding: Makes the memories.
        uri: Where they are.
        store: Instead of `uri`, with an engine.
        show_progress: Draw a progress bar while documents are compressed and written.

    Raises:
        TypeError: The embedding makes no memories.
    """

    def __init__(
        self, embedding: Embeddings | None, *, uri: str | None, store: MemoryStore | None, show_progress: bool
    ) -> None:
        if store is not None:
            if store.engine is None:
                raise ValueError("store= has no engine: MemoryStore.open(uri, model=...) gives it one")
            embedding = ClaraEmbeddings(engine=store.engine)
        if not isinstance(embedding, ClaraEmbeddings) or embedding.dimensions is not None:
            got = "shortened vectors" if isinstance(embedding, ClaraEmbeddings) else type(embedding).__name__
            raise TypeError(
                f"a store with uri= keeps memories, which ClaraEmbeddings without dimensions= makes; got {got}: put "
                "other vectors into a vector database, or leave uri= out"
            )
        self.embedding = embedding
        self._uri = uri
        self._store = store
        self._opening = threading.Lock()
        self._show_progress = show_progress
        self._reserved: set[str] = set()  # ids that were made and are not written yet
        self._adding = threading.Lock()

    @property
    def store(self) -> MemoryStore:
        """Opened at first use, since it imports torch."""
        with self._opening:
            if self._store is None:
                from clara_core.store import MemoryStore

                self._store = MemoryStore.open(str(self._uri), self.embedding.shared_engine)
            return self._store

    def __copy__(self) -> DurableRows:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DurableRows:
        return self

    def __len__(self) -> int:
        return self.store.count()

    def is_empty(self) -> bool:
        """Whether nothing was ever kept."""
        return self.store.fingerprint is None

    def __iter__(self) -> Iterator[Document]:
        return map(_document, self.store)

    def engine(self, name: str) -> ClaraEngine:
        """The engine behind the memories."""
        return self.embedding.shared_engine

    def question(self, query: str) -> Tensor:
        """Vector of a question."""
        return self.embedding.question_vector(self.embedding.shared_engine.reason([query]))

    async def aquestion(self, query: str) -> Tensor:
        """`question`, awaitable."""
        engine = await self.embedding.ashared_engine()
        return self.embedding.question_vector(await engine.areason([query]))

    # --- keeping ---------------------------------------------------------------------------------

    def add(
        self, documents: Sequence[Document], ids: Sequence[str | None], memories: Sequence[Memory] | None = None
    ) -> list[str]:
        """Keep documents; returns their ids, made where None. Of several under one id the last counts."""
        if not documents:
            return []
        with self._complete(documents, ids) as keys:
            last = {key: index for index, key in enumerate(keys)}
            chosen = sorted(last.values())
            self.store.add(
                [documents[index].page_content for index in chosen],
                [documents[index].metadata for index in chosen],
                [keys[index] for index in chosen],
                None if memories is None else [memories[index] for index in chosen],
                show_progress=self._show_progress,
            )
            return keys

    async def aadd(self, documents: Sequence[Document], ids: Sequence[str | None]) -> list[str]:
        """`add`, awaitable."""
        return await asyncio.to_thread(self.add, documents, ids)

    @contextmanager
    def _complete(self, documents: Sequence[Document], ids: Sequence[str | None]) -> Iterator[list[str]]:
        """An id for each document; while it is being written nobody else in this process makes the same one."""
        bare = {made_id(document.page_content, 0) for document, id_ in zip(documents, ids, strict=True) if id_ is None}
        with self._adding:
            known = {record.id for record in self.store.get(bare)}  # at once, since nearly all ids are of this kind

            def taken(id_: str) -> bool:
                return id_ in self._reserved or id_ in known or (id_ not in bare and id_ in self.store)

            keys = complete_ids(documents, ids, taken)
            made = {key for key, given in zip(keys, ids, strict=True) if given is None}
            self._reserved |= made
        try:
            yield keys
        finally:
            with self._adding:
                self._reserved -= made

    def delete(self, ids: Iterable[str] | None, condition: Filter | None) -> None:
        """Take out what has one of the ids and passes the filter; None means all."""
        if callable(condition):
            found = self.store if ids is None else self.store.get(ids)
            self.store.delete([record.id for record in found if condition(_document(record))])
        else:
            self.store.delete(ids, dict(condition) if condition is not None else None if ids is not None else {})

    # --- looking up ------------------------------------------------------------------------------

    def get(self, ids: Iterable[str]) -> list[Document]:
        """In the order of the ids; ids that are not here are passed over."""
        return [_document(record) for record in self.store.get(ids)]

    def memories(self, ids: Sequence[str]) -> list[Memory]:
        """Memories of documents, in the order of their ids.

        Raises:
            KeyError: An id is not here.
        """
        return self.store.memories(ids)

    # --- finding ---------------------------------------------------------------------------------

    def search(self, question: Tensor, k: int, condition: Filter | None) -> list[tuple[Document, float]]:
        """The documents most like a question, with their cosines, best first."""
        return self._pairs(self._hits(question, "memory", k, condition))

    def search_words(self, query: str, k: int, condition: Filter | None, mode: str) -> list[tuple[Document, float]]:
        """The best documents by words (``text``), or by words and memories (``hybrid``), with their scores."""
        return self._pairs(self._hits(query, mode, k, condition))

    def diverse(
        self, question: Tensor, k: int, fetch_k: int, balance: float, condition: Filter | None
    ) -> list[tuple[Document, float]]:
        """Of the `fetch_k` best documents `k` that do not repeat each other."""
        import torch

        from clara_core.ranking import diversify

        hits = self._hits(question, "memory", max(k, fetch_k), condition)
        memories = self._held(hits)
        hits = [hit for hit in hits if hit.id in memories]
        if not hits:
            return []
        windows = [memories[hit.id].tokens[hit.window].flatten() for hit in hits]
        return self._pairs([hits[index] for index in diversify(question, torch.stack(windows), k, balance)])

    def _hits(self, question: Tensor | str, mode: Any, k: int, condition: Filter | None) -> list[Hit]:
        if condition is None or not callable(condition):
            return self.store.search(question, k, filter=condition, mode=mode)  # type: ignore[return-value]
        wanted = max(_NARROWEST, _WIDER * k)
        while True:
            found: list[Hit] = self.store.search(question, wanted, mode=mode)  # type: ignore[assignment]
            accepted = [hit for hit in found if condition(_document(hit))]
            if len(accepted) >= k or len(found) < wanted:
                return accepted[:k]
            wanted *= _WIDER

    def _pairs(self, hits: Sequence[Hit]) -> list[tuple[Document, float]]:
        engine = self.embedding.shared_engine
        for memory in self._held(hits).values():  # what is read next is looked up by its text
            engine.cache.put(memory, replace=False)
        return [(_document(hit), hit.score) for hit in hits]

    def _held(self, hits: Sequence[Hit]) -> dict[str, Memory]:
        """Memories of hits by id, of those that nobody has taken out since."""
        ids = [hit.id for hit in hits]
        while ids:
            try:
                return dict(zip(ids, self.store.memories(ids), strict=True))
            except KeyError:
                ids = [record.id for record in self.store.get(ids)]
        return {}


def _document(found: Record | Hit) -> Document:
    return Document(found.text, id=found.id, metadata=found.metadata)
