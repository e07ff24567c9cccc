"""What stands behind `ClaraVectorStore`: documents, their vectors, and how a text becomes a vector.

The store speaks LangChain; this keeps and finds. In a store that lasts `DurableRows` takes its place.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from langchain_clara._entries import Entry, Filter, acceptor, complete_ids
from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core import ClaraEngine, Memory
    from clara_core.matrix import Found, VectorMatrix

    Hits: TypeAlias = list[Found[str, Entry]]

# One for all: ids are made and used under it, and rows without a lock can be copied.
_ADDING = threading.Lock()


class Rows:
    """Documents by id with the vectors of their windows, in this process's memory.

    Args:
        embedding: What makes vectors; of `ClaraEmbeddings` every window of a document is kept, not their mean.
        show_progress: Draw a progress bar while documents are compressed.
    """

    def __init__(self, embedding: Embeddings, *, show_progress: bool) -> None:
        self.embedding = embedding
        self._show_progress = show_progress
        self._matrix: VectorMatrix[str, Entry] | None = None  # made at first use, since it imports torch

    def __len__(self) -> int:
        return 0 if self._matrix is None else len(self._matrix)

    def is_empty(self) -> bool:
        """Whether there is nothing to be found."""
        return not len(self)

    def __iter__(self) -> Iterator[Document]:
        return iter([entry.copy() for _, entry in self._matrix or ()])

    # --- texts to vectors ------------------------------------------------------------------------

    def engine(self, name: str) -> ClaraEngine:
        """The engine behind the vectors, for the sake of the method `name`.

        Raises:
            TypeError: The vectors are another embedding's.
        """
        if not isinstance(self.embedding, ClaraEmbeddings):
            got = type(self.embedding).__name__
            raise TypeError(f"{name} needs a store of memories, and this one keeps vectors of {got}")
        return self.embedding.shared_engine

    @property
    def shortened(self) -> bool:
        """Whether vectors are projections, from which no memory can be made again."""
        return isinstance(self.embedding, ClaraEmbeddings) and self.embedding.projection is not None

    def windows(self, memories: Sequence[Memory]) -> list[Tensor]:
        """Vectors of the windows of each memory, ``[n_windows, length]``."""
        windows = [memory.tokens.flatten(1).float() for memory in memories]
        if not isinstance(self.embedding, ClaraEmbeddings) or self.embedding.projection is None:
            return windows
        return [self.embedding.projection.apply(rows) for rows in windows]

    def embed(self, texts: list[str]) -> tuple[Sequence[Tensor], Sequence[Memory | None]]:
        """Vectors of the windows of each text, and its memory where that is what the vectors come from."""
        if not texts:
            return [], []
        if isinstance(self.embedding, ClaraEmbeddings):
            engine = self.embedding.shared_engine
            memories = engine.remember(texts, show_progress=self._show_progress)
            return self.windows(memories), memories
        return rows_of(self.embedding.embed_documents(texts)), [None] * len(texts)

    async def aembed(self, texts: list[str]) -> tuple[Sequence[Tensor], Sequence[Memory | None]]:
        """`embed`, awaitable."""
        if not texts:
            return [], []
        if isinstance(self.embedding, ClaraEmbeddings):
            engine = await self.embedding.ashared_engine()
            memories = await engine.aremember(texts)
            return await asyncio.to_thread(self.windows, memories), memories
        vectors = await self.embedding.aembed_documents(texts)
        return await asyncio.to_thread(rows_of, vectors), [None] * len(texts)

    def question(self, query: str) -> Tensor:
        """Vector of a question."""
        if isinstance(self.embedding, ClaraEmbeddings):
            return self.embedding.question_vector(self.embedding.shared_engine.reason([query]))
        return vector_of(self.embedding.embed_query(query))

    async def aquestion(self, query: str) -> Tensor:
        """`question`, awaitable."""
        if isinstance(self.embedding, ClaraEmbeddings):
            engine = await self.embedding.ashared_engine()
            return self.embedding.question_vector(await engine.areason([query]))
        return vector_of(await self.embedding.aembed_query(query))

    # --- keeping ---------------------------------------------------------------------------------

    def add(
        self, documents: Sequence[Document], ids: Sequence[str | None], memories: Sequence[Memory] | None = None
    ) -> list[str]:
        """Keep copies of documents, compressed now where their memories are not given; returns their ids."""
        if memories is not None:
            return self._keep(documents, ids, self.windows(memories), memories)
        return self._keep(documents, ids, *self.embed([document.page_content for document in documents]))

    async def aadd(self, documents: Sequence[Document], ids: Sequence[str | None]) -> list[str]:
        """`add`, awaitable."""
        vectors, memories = await self.aembed([document.page_content for document in documents])
        return await asyncio.to_thread(self._keep, documents, ids, vectors, memories)

    def _keep(
        self,
        documents: Sequence[Document],
        ids: Sequence[str | None],
        vectors: Sequence[Tensor],
        memories: Sequence[Memory | None],
    ) -> list[str]:
        if not documents:
            return []
        from clara_core.matrix import VectorMatrix

        with _ADDING:
            matrix = self._matrix = VectorMatrix() if self._matrix is None else self._matrix
            keys = complete_ids(documents, ids, matrix.__contains__)
            entries = [Entry.of(*each) for each in zip(documents, keys, memories, strict=True)]
            matrix.put(list(zip(keys, entries, vectors, strict=True)))
        return keys

    def delete(self, ids: Iterable[str] | None, condition: Filter | None) -> None:
        """Take out what has one of the ids and passes the filter; None means all."""
        matrix, accept = self._matrix, acceptor(condition)
        if matrix is None:
            return
        if ids is None and accept is None:
            matrix.clear()
        elif accept is None:
            matrix.delete(ids or ())
        else:
            chosen = None if ids is None else set(ids)
            found = [id_ for id_, entry in matrix if chosen is None or id_ in chosen]
            matrix.delete([id_ for id_ in found if (entry := matrix.value(id_)) is not None and accept(entry.document)])

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Copies, in the order of the ids; ids that are not here are passed over."""
        found = [] if self._matrix is None else [self._matrix.value(id_) for id_ in ids]
        return [entry.copy() for entry in found if entry is not None]

    def memories(self, ids: Sequence[str]) -> list[Memory]:
        """Memories of documents, in the order of their ids.

        Raises:
            KeyError: An id is not here.
        """
        engine = self.engine("get_memories")
        pairs = []
        for id_ in ids:
            pair = None if self._matrix is None else self._matrix.get(id_)
            if pair is None:
                raise KeyError(f"there is no document with the id {id_!r}")
            pairs.append(pair)
        if self.shortened:
            return engine.remember([entry.document.page_content for entry, _ in pairs])
        return [_memory(entry, vectors, engine) for entry, vectors in pairs]

    # --- finding ---------------------------------------------------------------------------------

    def search(self, question: Tensor, k: int, condition: Filter | None) -> list[tuple[Document, float]]:
        """Copies of the documents most like a question, with their cosines, best first."""
        return self._copies(self._hits(question, k, condition))

    def search_words(self, query: str, k: int, condition: Filter | None, mode: str) -> NoReturn:
        """Refuse to: there is no index of words."""
        raise ValueError(f"mode={mode!r} needs a store that lasts, with uri=; in memory there is 'memory' alone")

    def diverse(
        self, question: Tensor, k: int, fetch_k: int, balance: float, condition: Filter | None
    ) -> list[tuple[Document, float]]:
        """Of the `fetch_k` best documents `k` that do not repeat each other."""
        import torch

        from clara_core.ranking import diversify

        hits = self._hits(question, max(k, fetch_k), condition)
        if not hits:
            return []
        chosen = diversify(question, torch.stack([hit.vector for hit in hits]), k, balance)
        return self._copies([hits[index] for index in chosen])

    def _hits(self, question: Tensor, k: int, condition: Filter | None) -> Hits:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        accept = acceptor(condition)
        return (
            []
            if self._matrix is None
            else self._matrix.search(question, k, None if accept is None else lambda entry: accept(entry.document))
        )

    def _copies(self, hits: Hits) -> list[tuple[Document, float]]:
        self._recall(hits)
        return [(hit.value.copy(), hit.score) for hit in hits]

    def _recall(self, hits: Hits) -> None:
        """What is read next is looked up by its text; in a large corpus it may have been forgotten there."""
        if self._matrix is None or not isinstance(self.embedding, ClaraEmbeddings) or self.shortened:
            return
        engine = self.embedding.shared_engine
        for hit in hits:
            if (pair := self._matrix.get(hit.key)) is not None and pair[0].fingerprint:
                engine.cache.put(_memory(*pair, engine))


def _memory(entry: Entry, vectors: Tensor, engine: ClaraEngine) -> Memory:
    """The memory of an entry, from its rows in the matrix."""
    from clara_core import Memory

    tokens = vectors.view(len(vectors), engine.n_mem, engine.hidden).to(engine.dtype)
    return Memory(tokens, entry.document.page_content, entry.spans, entry.source_tokens, entry.fingerprint)


def vector_of(vector: Sequence[float]) -> Tensor:
    """A vector of LangChain's as a tensor."""
    import torch

    return torch.as_tensor(vector, dtype=torch.float32)


def rows_of(vectors: Sequence[Sequence[float]]) -> list[Tensor]:
    """Vectors of another embedding, one row a document."""
    return [vector_of(vector)[None] for vector in vectors]
