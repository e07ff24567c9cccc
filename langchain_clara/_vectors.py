"""Converts texts and questions to what the store compares: memories, or vectors of another embedding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.embeddings import Embeddings

from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from clara_core import Engine, Memory
    from clara_core.retrieval.vectors import Array


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


def vector_of(vector: Sequence[float]) -> Array:
    """A LangChain vector as an array."""
    return np.asarray(vector, np.float32)


def _rows(vectors: Sequence[Sequence[float]]) -> list[Array]:
    return [vector_of(vector)[None] for vector in vectors]


def _in_place(texts: Sequence[str], rows: Sequence[Array]) -> list[Array]:
    """An array for each text, including the blank ones, which have no vectors."""
    left: Any = iter(rows)
    return [next(left) if text.strip() else rows[0][:0] for text in texts]
