"""A vector store of memories: in this process, or in a folder that any process can open again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from clara_core.suggest import parameters, refuse_unknown
from langchain_clara._durable import DurableRows
from langchain_clara._entries import Filter, checked, listed, several, with_texts
from langchain_clara._rows import Rows, vector_of
from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from clara_core import Memory
    from clara_core.store import MemoryStore


class ClaraVectorStore(VectorStore):
    """Documents with their memories: compressed once, searched, and read by `ChatClara` without compressing again.

    A document's score is the cosine of the question and its best window, in [-1, 1]; a document longer than the
    compressor's window has several. With `uri` the documents are in a `clara_core.store.MemoryStore` and outlast the
    process; without it they are in memory, and the store takes any other `Embeddings` as well and keeps their vectors.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'  # with uri=: 'clara-rag[langchain,store]'
        ```

    Key init args, indexing params:
        embedding: Embeddings | None
            `ClaraEmbeddings`, or any other; made from the client params where it is not given.
        uri: str | None
            A folder or an address of object storage; None keeps the documents in memory.

    Key init args, client params:
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        from langchain_clara import ClaraVectorStore

        store = ClaraVectorStore(model="pocket")
        store = ClaraVectorStore.from_documents(documents, ClaraEmbeddings(model="pocket"))
        store = ClaraVectorStore(uri="memories", model="pocket")  # opened, or made by the first document
        ```

    Add Documents:
        ```python
        store.add_documents(documents, ids=["a", "b"])  # an id that is known: the document is replaced
        store.add_memories(engine.compress(texts))  # what was compressed before
        ```

    Delete Documents:
        ```python
        store.delete(ids=["b"])
        store.delete(filter={"year": {"$lt": 1900}})
        ```

    Search:
        ```python
        store.similarity_search("When was the bridge opened?", k=4)
        store.max_marginal_relevance_search("When was the bridge opened?", k=4, fetch_k=20)
        ```

    Search with filter:
        ```python
        store.similarity_search(question, filter={"$or": [{"town": {"$in": ["Aln", "Wye"]}}, {"year": {"$gte": 1900}}]})
        store.similarity_search(question, filter=lambda document: document.id.startswith("a"))
        ```

    Search by words, with `uri`:
        ```python
        store.similarity_search(question, mode="hybrid")
        ```

    Search with score:
        ```python
        store.similarity_search_with_score(question)  # cosine, higher is better
        store.similarity_search_with_relevance_scores(question)  # (cosine + 1) / 2
        ```

    Async:
        ```python
        await store.aadd_documents(documents)
        await store.asimilarity_search(question)
        ```

    Use as Retriever:
        ```python
        store.as_retriever(search_type="mmr", search_kwargs={"k": 4})
        ```

    Args:
        embedding: What makes vectors; with `uri`, `ClaraEmbeddings` of full length.
        uri: Where documents are kept; None is in memory.
        store: An opened `MemoryStore` with an engine, instead of `uri` and the model.
        show_progress: Draw a progress bar while documents are compressed.
        **options: Of `EngineFields`, where `embedding` is not given.

    Raises:
        UnknownOption: An option that nobody reads.
        TypeError: What is given as an embedding is none; with `uri`, an embedding that makes no memories.
        ValueError: Things that exclude each other.
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        *,
        uri: str | PathLike[str] | None = None,
        store: MemoryStore | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, options, {*ClaraEmbeddings.model_fields, *parameters(type(self))})
        _check_embedding(embedding)
        given = {"embedding": embedding, "store": store}
        owners = [name for name, value in given.items() if value is not None]
        if owners and (options or len(owners) > 1):
            name = [*owners[1:], *options][0]
            raise ValueError(f"give {owners[0]}= or {name}=, not both: it has its own model and options")
        if store is not None and uri is not None:
            raise ValueError("give store= or uri=, not both: a store knows where it is")
        if store is None and embedding is None:
            embedding = ClaraEmbeddings(**options)
        self._rows: Rows | DurableRows
        if embedding is not None and uri is None:
            self._rows = Rows(embedding, show_progress=show_progress)
        else:
            place = None if uri is None else fspath(uri)
            self._rows = DurableRows(embedding, uri=place, store=store, show_progress=show_progress)

    @property
    def embeddings(self) -> Embeddings:
        """What makes vectors."""
        return self._rows.embedding

    @property
    def store(self) -> MemoryStore | None:
        """Where documents that last are kept, with `optimize`, `compact` and `stats`; None for those in memory."""
        return self._rows.store if isinstance(self._rows, DurableRows) else None

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Document]:
        """Copies of all documents, in the order in which they came."""
        return iter(self._rows)

    # --- adding ----------------------------------------------------------------------------------

    def add_documents(
        self, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Compress and keep documents; one whose id is known replaces the other.

        Args:
            documents: They are copied.
            ids: One a document; else the documents' own, else ids made from the text.
            **kwargs: Taken for the interface's sake (`index` says ``batch_size``), and without meaning here.

        Returns:
            list: The ids, in order.
        """
        return self._rows.add(*listed(documents, ids))

    async def aadd_documents(
        self, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """`add_documents`, awaitable."""
        return await self._rows.aadd(*listed(documents, ids))

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_documents` for texts; `texts` may be a generator."""
        return self.add_documents(with_texts(texts, metadatas), ids=ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_texts`, awaitable."""
        return await self.aadd_documents(with_texts(texts, metadatas), ids=ids)

    def add_memories(
        self,
        memories: Sequence[Memory],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Keep documents that were compressed before: nothing is computed.

        Args:
            memories: Of the same model.
            metadatas: One a memory.
            ids: One a memory; else made from the text.

        Raises:
            FingerprintMismatch: A memory was made by another model.
        """
        from clara_core.prepare import checked_memories

        engine = self._rows.engine("add_memories")
        ready = checked_memories(memories, lambda: engine.fingerprint)
        return self._rows.add(*listed(with_texts([memory.text for memory in ready], metadatas), ids), ready)

    # --- deleting, looking up --------------------------------------------------------------------

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:  # noqa: A002
        """Delete documents by id, by filter (both: what is in both), or all of them.

        Returns:
            bool: True; ids that are not here are passed over.
        """
        self._rows.delete(None if ids is None else several(ids, "ids", "strings"), checked(filter))
        return True

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:  # noqa: A002
        """`delete`, awaitable."""
        return await asyncio.to_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Copies of documents in the order of their ids; ids that are not here are passed over."""
        return self._rows.get(several(ids, "ids", "strings"))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """`get_by_ids`, awaitable."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def get_memories(self, ids: Sequence[str]) -> list[Memory]:
        """Memories of documents, in the order of their ids.

        Raises:
            KeyError: An id is not here.
            TypeError: The store keeps vectors of another embedding.
        """
        return self._rows.memories(several(ids, "ids", "strings"))

    # --- searching -------------------------------------------------------------------------------

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str = "memory",
        **kwargs: Any,
    ) -> list[Document]:
        """The documents that answer a question best.

        Args:
            query: The question.
            k: Most documents to return.
            filter: A dict as in `clara_core.filters`, or a function of the document. With `uri` the store searches only
                what passes a dict; a function is asked about what was found, over and over until `k` passed.
            mode: ``memory`` by cosine; with `uri` also ``text`` by words, and ``hybrid`` by both.
            **kwargs: There are no others; one more is an error.
        """
        return _documents(self.similarity_search_with_score(query, k, filter, mode, **kwargs))

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str = "memory",
        **kwargs: Any,
    ) -> list[Document]:
        """`similarity_search`, awaitable."""
        return _documents(await self.asimilarity_search_with_score(query, k, filter, mode, **kwargs))

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str = "memory",
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Like `similarity_search`, each document with its cosine: a Python float in [-1, 1], higher is better.

        In other modes scores are BM25 (``text``) or sums of reciprocal ranks (``hybrid``).
        """
        _no_more("similarity_search", kwargs)
        condition = _searched(k, filter)
        if mode != "memory":
            return self._rows.search_words(query, k, condition, mode)
        return [] if self._rows.is_empty() else self._rows.search(self._rows.question(query), k, condition)

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        mode: str = "memory",
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score`, awaitable."""
        _no_more("similarity_search", kwargs)
        condition = _searched(k, filter)
        if mode != "memory":
            return await asyncio.to_thread(self._rows.search_words, query, k, condition, mode)
        if await asyncio.to_thread(self._rows.is_empty):
            return []
        question = await self._rows.aquestion(query)
        return await asyncio.to_thread(self._rows.search, question, k, condition)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """The documents most like a vector of this store's embedding.

        Raises:
            ValueError: The vector has another length.
        """
        _no_more("similarity_search_by_vector", kwargs)
        return _documents(self._rows.search(vector_of(embedding), k, _searched(k, filter)))

    async def asimilarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """`similarity_search_by_vector`, awaitable."""
        return await asyncio.to_thread(self.similarity_search_by_vector, embedding, k, filter, **kwargs)

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
            k: Most documents to return.
            fetch_k: How many of the best ones are chosen from.
            lambda_mult: 1 is relevance alone, 0 is diversity alone.
            filter: As in `similarity_search`.
            **kwargs: There are no others; one more is an error.
        """
        _no_more("max_marginal_relevance_search", kwargs)
        condition = _diversified(k, fetch_k, lambda_mult, filter)
        if self._rows.is_empty():
            return []
        return _documents(self._rows.diverse(self._rows.question(query), k, fetch_k, lambda_mult, condition))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search`, awaitable."""
        _no_more("max_marginal_relevance_search", kwargs)
        condition = _diversified(k, fetch_k, lambda_mult, filter)
        if await asyncio.to_thread(self._rows.is_empty):
            return []
        question = await self._rows.aquestion(query)
        return _documents(await asyncio.to_thread(self._rows.diverse, question, k, fetch_k, lambda_mult, condition))

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
        return _documents(
            self._rows.diverse(
                vector_of(embedding), k, fetch_k, lambda_mult, _diversified(k, fetch_k, lambda_mult, filter)
            )
        )

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search_by_vector`, awaitable."""
        search = self.max_marginal_relevance_search_by_vector
        return await asyncio.to_thread(search, embedding, k, fetch_k, lambda_mult, filter, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: (cosine + 1) / 2

    # --- making one ------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store of texts, which are compressed now; ``**kwargs`` are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """`from_texts`, awaitable."""
        store = cls(embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store of documents, which are compressed now; ``**kwargs`` are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_documents(documents, ids=ids)
        return store

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """`from_documents`, awaitable."""
        store = cls(embedding, **kwargs)
        await store.aadd_documents(documents, ids=ids)
        return store


def _documents(pairs: list[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in pairs]


def _check_embedding(embedding: object) -> None:
    """Refuse what cannot make vectors, before anything is kept."""
    if embedding is None or (isinstance(embedding, Embeddings) and not isinstance(embedding, type)):
        return
    if isinstance(embedding, str | PathLike):
        raise TypeError(f"embedding must be an Embeddings object, got the name {embedding!r}; a model's name is model=")
    got = embedding.__name__ if isinstance(embedding, type) else type(embedding).__name__
    hint = f": {got}()" if isinstance(embedding, type) else ", such as ClaraEmbeddings(); an engine is engine="
    raise TypeError(f"embedding must be an Embeddings object, got {got}; make one{hint}")


def _searched(k: int, condition: Filter | None) -> Filter | None:
    """The filter, once the number of documents and it are known to make sense."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return checked(condition)


def _diversified(k: int, fetch_k: int, lambda_mult: float, condition: Filter | None) -> Filter | None:
    """The same for a search by maximal marginal relevance."""
    if fetch_k < 1:
        raise ValueError(f"fetch_k must be at least 1, got {fetch_k}")
    if not 0 <= lambda_mult <= 1:
        raise ValueError(f"lambda_mult must lie in [0, 1], got {lambda_mult}")
    return _searched(k, condition)


def _no_more(method: str, kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"ClaraVectorStore.{method} has no option {next(iter(kwargs))!r}")
