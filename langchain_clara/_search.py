"""What `ClaraVectorStore` compares, memories or vectors of another embedding, and its searches."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_clara._entries import Filter, document_of, stored_filter
from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from clara_core import Engine, Memory
    from clara_core.retrieval.vectors import Array
    from clara_core.store import Hit, MemoryStore
    from clara_core.store.search import Mode


class Vectors:
    """The vectors that an embedding makes for a store.

    Args:
        embedding: Any embedding. With `ClaraEmbeddings` the store keeps the memories themselves, every window of
            them, or with ``dimensions=`` the projection of every window; with another one it keeps the vectors.
        show_progress: Draw a progress bar while documents are compressed.
    """

    def __init__(self, embedding: Embeddings, *, show_progress: bool) -> None:
        self.embedding = embedding
        self._show_progress = show_progress

    @property
    def are_memories(self) -> bool:
        """Whether the store keeps memories, which it compresses itself."""
        return isinstance(self.embedding, ClaraEmbeddings) and self.embedding.dimensions is None

    def engine(self, name: str) -> Engine:
        """The engine of the embedding, for the method `name`.

        Raises:
            TypeError: The embedding is not CLaRa's.
        """
        if not isinstance(self.embedding, ClaraEmbeddings):
            got = type(self.embedding).__name__
            raise TypeError(f"{name} needs a store of memories, but this store keeps vectors of {got}")
        return self.embedding.shared_engine

    def of_texts(self, texts: list[str]) -> list[Array]:
        """Vectors of the windows of each text, ``[W, D]``; a blank text has none."""
        filled = [text for text in texts if text.strip()] or ["-"]  # one text gives the length of vectors
        if isinstance(self.embedding, ClaraEmbeddings):
            rows = self.of_memories(self.embedding.shared_engine.remember(filled, show_progress=self._show_progress))
        else:
            rows = _rows(self.embedding.embed_documents(filled))
        return _in_place(texts, rows)

    async def aof_texts(self, texts: list[str]) -> list[Array]:
        """`of_texts`, awaitable."""
        if isinstance(self.embedding, ClaraEmbeddings):
            return await asyncio.to_thread(self.of_texts, texts)
        vectors = await self.embedding.aembed_documents([text for text in texts if text.strip()] or ["-"])
        return await asyncio.to_thread(lambda: _in_place(texts, _rows(vectors)))

    def of_memories(self, memories: Sequence[Memory]) -> list[Array]:
        """Projections of the windows of each memory."""
        if not isinstance(self.embedding, ClaraEmbeddings) or self.are_memories:
            raise TypeError("only ClaraEmbeddings with dimensions= makes projections of memories")
        return [self.embedding.space.windows(memory) for memory in memories]

    def of_question(self, query: str) -> Array:
        """Vector ``[D]`` of a question."""
        if isinstance(self.embedding, ClaraEmbeddings):
            return self._question(self.embedding, self.embedding.shared_engine.reason([query]))
        return vector_of(self.embedding.embed_query(query))

    async def aof_question(self, query: str) -> Array:
        """`of_question`, awaitable."""
        if isinstance(self.embedding, ClaraEmbeddings):
            engine = await self.embedding.ashared_engine()
            return self._question(self.embedding, await engine.areason([query]))
        return vector_of(await self.embedding.aembed_query(query))

    @staticmethod
    def _question(embedding: ClaraEmbeddings, tokens: Any) -> Array:
        vector: Array = embedding.space.questions(tokens)[0]
        return vector


class StoreSearch(VectorStore):
    """Searches of a `MemoryStore` with the vectors of an embedding."""

    _vectors: Vectors

    @property
    @abstractmethod
    def store(self) -> MemoryStore:
        """The store that is searched."""

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str | None = None,
        rerank: int = 0,
        **kwargs: Any,
    ) -> list[Document]:
        """The documents that answer a question best.

        Args:
            query: The question.
            k: Maximum number of documents.
            filter: A dict as in `clara_core.retrieval.filters`, or a function of the document. A dict is applied
                before the search. A function is applied to the results, best first, until `k` have passed.
            mode: ``memory`` by cosine, ``text`` by words, ``hybrid`` by both; None is ``hybrid``.
            rerank: How many of the best documents of ``hybrid`` are ranked again by whether they hold an answer; see
                `clara_core.store.MemoryStore.search`.
            **kwargs: None exist; any name is an error.
        """
        return _documents(self._search(query, k, filter=filter, mode=mode, rerank=rerank, **kwargs))

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """`similarity_search`, awaitable."""
        return _documents(await self._asearch(query, k, **kwargs))

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str | None = None,
        rerank: int = 0,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Like `similarity_search`; each document has its score, a Python float, higher is better.

        The score is a cosine in [-1, 1] (``memory``), BM25 (``text``), or both fused, in [0, 1] (``hybrid``).
        """
        found = self._search(query, k, filter=filter, mode=mode, rerank=rerank, **kwargs)
        return [(document_of(hit), hit.score) for hit in found]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score`, awaitable."""
        return [(document_of(hit), hit.score) for hit in await self._asearch(query, k, **kwargs)]

    # Used by `similarity_search_with_relevance_scores`, and by retrievers with ``similarity_score_threshold``.
    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return [(document_of(hit), hit.relevance) for hit in self._search(query, k, **kwargs)]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return [(document_of(hit), hit.relevance) for hit in await self._asearch(query, k, **kwargs)]

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """The documents most similar to a vector of this store's embedding.

        Raises:
            ValueError: The vector has another length.
        """
        _no_more("similarity_search_by_vector", kwargs)
        return _documents(self._read(self.store.search(vector_of(embedding), **self._options(k, filter, "memory"))))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that answer a question and do not repeat each other, by their memories.

        Args:
            query: The question.
            k: Maximum number of documents.
            fetch_k: Number of the best documents to choose from.
            lambda_mult: 1 is relevance only, 0 is diversity only.
            filter: As in `similarity_search`.
            **kwargs: None exist; any name is an error.
        """
        how = _mmr_options(k, fetch_k, lambda_mult, filter, **kwargs)
        return [] if self._is_empty() else self._diverse(self._vectors.of_question(query), how)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search`, awaitable."""
        how = _mmr_options(k, fetch_k, lambda_mult, **kwargs)
        if await asyncio.to_thread(self._is_empty):
            return []
        return await asyncio.to_thread(self._diverse, await self._vectors.aof_question(query), how)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search` for a vector of this store's embedding."""
        _no_more("max_marginal_relevance_search_by_vector", kwargs)
        return self._diverse(vector_of(embedding), _mmr_options(k, fetch_k, lambda_mult, filter))

    def _is_empty(self) -> bool:
        """Whether nothing was ever stored, so that no model is needed."""
        return self.store.fingerprint is None

    def _search(self, query: str, k: int, **options: Any) -> list[Hit]:
        how = self._options(k, **options)
        if self._is_empty():
            return []
        vector = None if how["mode"] == "text" else self._vectors.of_question(query)
        return self._read(self.store.search(query, vectors=vector, **how))

    async def _asearch(self, query: str, k: int, **options: Any) -> list[Hit]:
        how = self._options(k, **options)
        if await asyncio.to_thread(self._is_empty):
            return []
        vector = None if how["mode"] == "text" else await self._vectors.aof_question(query)
        return await asyncio.to_thread(lambda: self._read(self.store.search(query, vectors=vector, **how)))

    def _options(
        self, k: int, filter: Filter | None = None, mode: Mode | None = None, rerank: int = 0, **more: Any  # noqa: A002
    ) -> dict[str, Any]:  # fmt: skip
        """Options of a search, checked before a question is read."""
        _no_more("similarity_search", more)
        from clara_core.store.search import DEFAULT_MODE, Search

        Search(k, mode or DEFAULT_MODE, rerank=rerank)
        found = {"k": k, "filter": stored_filter(filter), "mode": mode, "rerank": rerank}
        return {**found, "with_memories": self._vectors.are_memories}

    def _diverse(self, question: Array, how: Mapping[str, Any]) -> list[Document]:
        hits = self.store.search_mmr(question, **how, with_memories=self._vectors.are_memories)
        return _documents(self._read(hits))

    def _read(self, hits: Any) -> list[Hit]:
        """Add memories of the results to the engine's cache, where the generator finds them by text."""
        found: list[Hit] = hits
        for hit in found:
            if hit.memory is not None:
                self._vectors.engine("search").cache.put(hit.memory, replace=False)
        return found


def _documents(hits: Iterable[Hit]) -> list[Document]:
    return list(map(document_of, hits))


def _mmr_options(
    k: int, fetch_k: int, lambda_mult: float, filter: Filter | None = None, **more: Any  # noqa: A002
) -> dict[str, Any]:  # fmt: skip
    """Options of a search by maximal marginal relevance, checked before a question is read."""
    _no_more("max_marginal_relevance_search", more)
    from clara_core.store.search import Search

    Search(k, "memory", fetch_k=fetch_k, lambda_mult=lambda_mult)
    return {"k": k, "fetch_k": fetch_k, "lambda_mult": lambda_mult, "filter": stored_filter(filter)}


def _no_more(method: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"ClaraVectorStore.{method} has no option {next(iter(kwargs))!r}")


def vector_of(vector: Sequence[float]) -> Array:
    """A LangChain vector as an array."""
    return np.asarray(vector, np.float32)


def _rows(vectors: Sequence[Sequence[float]]) -> list[Array]:
    return [vector_of(vector)[None] for vector in vectors]


def _in_place(texts: Sequence[str], rows: Sequence[Array]) -> list[Array]:
    """An array for each text, including the blank ones, which have no vectors."""
    left: Any = iter(rows)
    return [next(left) if text.strip() else rows[0][:0] for text in texts]
