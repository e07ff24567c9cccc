"""A LangChain vector store of memories, in this process or in a folder that any process can open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from clara_core.common.place import IN_MEMORY, absolute
from clara_core.common.suggest import parameters, refuse_unknown
from langchain_clara._entries import (
    Filter,
    complete_ids,
    document_of,
    listed,
    stored_filter,
    with_texts,
)
from langchain_clara._search import StoreSearch, Vectors
from langchain_clara.embeddings import ClaraEmbeddings

if TYPE_CHECKING:
    from clara_core import Memory
    from clara_core.store import MemoryStore


class ClaraVectorStore(StoreSearch):
    """Documents with their memories: compressed once, searched, and read by `ChatClara` without compressing again.

    The documents are in a `clara_core.store.MemoryStore`: with `uri` in a folder, else in the memory of this process.
    Both accept, find and refuse the same. A document longer than the compressor's window has a memory of several
    windows; the best one is its score. With other `Embeddings` the store keeps their vectors instead of memories.

    Pickles and deep copies of a store with `uri` open the same folder; those of one in memory contain its documents.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'  # with uri=: 'clara-rag[langchain,store]'
        ```

    Key init args, indexing params:
        embedding: Embeddings | None
            `ClaraEmbeddings` or any other; by default `ClaraEmbeddings` with the client params.
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
        store.add_documents(documents, ids=["a", "b"])  # documents with known ids are replaced
        store.add_memories(engine.compress(texts))  # compressed before
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

    Search by memory or words alone; the default is ``hybrid``, by both:
        ```python
        store.similarity_search(question, mode="memory")
        store.similarity_search("AB-1234", mode="text")
        ```

    Search with score:
        ```python
        store.similarity_search_with_score(question)  # depends on the mode; higher is better
        store.similarity_search_with_relevance_scores(question, score_threshold=0.6)  # in [0, 1] in every mode
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
        embedding: Makes vectors or, if it is `ClaraEmbeddings` of full length, memories.
        uri: Folder or address of object storage; None keeps documents in memory.
        store: An opened `MemoryStore` with an engine, instead of `uri` and the model.
        show_progress: Draw a progress bar while documents are compressed.
        **options: Options of `EngineFields`, if `embedding` is not given.

    Raises:
        UnknownOption: The option does not exist.
        TypeError: `embedding` is not an embedding.
        ValueError: Arguments exclude each other.
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
        if store is not None:
            if uri is not None:
                raise ValueError("give store= or uri=, not both: a store has its own address")
            if store.engine is None:
                raise ValueError("store= has no engine: open it with MemoryStore.open(uri, model=...)")
            embedding = ClaraEmbeddings(engine=store.engine)
        self._uri = IN_MEMORY if uri is None else absolute(uri)
        self._store = store
        self._show_progress = show_progress
        self._vectors = Vectors(embedding or ClaraEmbeddings(**options), show_progress=show_progress)
        self._reserved: set[str] = set()  # generated ids of documents that are being written
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_reserved")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _reserved=set(), _lock=threading.RLock())

    @property
    def embeddings(self) -> Embeddings:
        """The embedding that makes vectors."""
        return self._vectors.embedding

    @property
    def store(self) -> MemoryStore:
        """The store of the documents, with `optimize`, `compact` and `stats`. Opened at first use."""
        with self._lock:
            if self._store is None:
                from clara_core.store import MemoryStore

                if self._vectors.are_memories:
                    self._store = MemoryStore.open(self._uri, self._vectors.engine("store"))
                else:
                    self._store = MemoryStore.open(self._uri, memory_type="float32")
            return self._store

    def __len__(self) -> int:
        return self.store.count()

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Document]:
        """Copies of all documents, in the order of adding."""
        return map(document_of, self.store)

    # --- adding ----------------------------------------------------------------------------------

    def add_documents(
        self, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Compress and add documents; a document with a known id replaces the stored one.

        A blank document is stored, but not found.

        Args:
            documents: The documents; they are copied.
            ids: An id for each document; by default the documents' own, else ids made from the text. Of several
                documents with the same id the last one is kept.
            **kwargs: Ignored; LangChain passes ``batch_size`` in `index`.

        Returns:
            list: The ids, in order.
        """
        given, own = listed(documents, ids)
        if self._vectors.are_memories:
            return self._keep(given, own)
        return self._keep(given, own, vectors=self._vectors.of_texts([each.page_content for each in given]))

    async def aadd_documents(
        self, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """`add_documents`, awaitable."""
        given, own = listed(documents, ids)
        if self._vectors.are_memories:
            return await asyncio.to_thread(self._keep, given, own)
        vectors = await self._vectors.aof_texts([each.page_content for each in given])
        return await asyncio.to_thread(self._keep, given, own, vectors=vectors)

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
        """Add documents that are already compressed; nothing is computed.

        Args:
            memories: Memories of the same model.
            metadatas: A metadata dict for each memory.
            ids: An id for each memory; by default made from the text.

        Raises:
            FingerprintMismatch: A memory was made by another model.
        """
        from clara_core.engine.checks import checked_memories

        engine = self._vectors.engine("add_memories")
        ready = checked_memories(memories, lambda: engine.fingerprint)
        given = listed(with_texts([memory.text for memory in ready], metadatas), ids)
        if self._vectors.are_memories:
            return self._keep(*given, memories=ready)
        return self._keep(*given, vectors=self._vectors.of_memories(ready))

    def _keep(self, documents: Sequence[Document], ids: Sequence[str | None], **ready: Sequence[Any]) -> list[str]:
        """Add documents with the given parts of each; returns their ids."""
        if not documents:
            return []
        with self._complete(documents, ids) as keys:
            chosen = sorted({key: index for index, key in enumerate(keys)}.values())
            own: dict[str, Any] = {name: [values[index] for index in chosen] for name, values in ready.items()}
            self.store.add(
                [documents[index].page_content for index in chosen],
                [documents[index].metadata for index in chosen],
                [keys[index] for index in chosen],
                show_progress=self._show_progress,
                **own,
            )
            return keys

    @contextmanager
    def _complete(self, documents: Sequence[Document], ids: Sequence[str | None]) -> Iterator[list[str]]:
        """An id for each document; during the writing, other threads of this process do not generate the same ids."""
        with self._lock:
            keys = complete_ids(documents, ids, lambda id_: id_ in self._reserved or id_ in self.store)
            made = {key for key, given in zip(keys, ids, strict=True) if given is None}
            self._reserved |= made
        try:
            yield keys
        finally:
            with self._lock:
                self._reserved -= made

    # --- deleting, looking up --------------------------------------------------------------------

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:  # noqa: A002
        """Delete documents by id, by filter (with both, those that meet both), or all of them.

        Returns:
            bool: True; unknown ids are ignored.
        """
        condition = stored_filter(filter)
        if ids is None and condition is None:
            condition = {}
        self.store.delete(ids, condition)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Copies of documents in the order of their ids; unknown ids are ignored."""
        return [document_of(record) for record in self.store.get(ids)]

    def get_memories(self, ids: Sequence[str]) -> list[Memory]:
        """Memories of documents, in the order of their ids; with shortened vectors they are compressed again.

        Raises:
            KeyError: The store has no document with an id.
            TypeError: The store keeps vectors of another embedding.
        """
        from clara_core.store.records import checked_ids, in_order

        engine = self._vectors.engine("get_memories")
        if self._vectors.are_memories:
            return self.store.memories(ids)
        wanted = checked_ids(ids)
        return engine.remember(in_order(wanted, {record.id: record.text for record in self.store.get(wanted)}))

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
        """Create a store of texts, which are compressed now; ``**kwargs`` are those of the class."""
        return cls.from_documents(with_texts(texts, metadatas), embedding, ids=ids, **kwargs)

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
        return await cls.afrom_documents(with_texts(texts, metadatas), embedding, ids=ids, **kwargs)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | None = None,
        *,
        ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a store of documents, which are compressed now; ``**kwargs`` are those of the class."""
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


def _check_embedding(embedding: object) -> None:
    """Refuse an object that is not an embedding, before anything is stored."""
    if embedding is None or (isinstance(embedding, Embeddings) and not isinstance(embedding, type)):
        return
    if isinstance(embedding, str | PathLike):
        raise TypeError(f"embedding must be an Embeddings object, got the name {embedding!r}; a model's name is model=")
    got = embedding.__name__ if isinstance(embedding, type) else type(embedding).__name__
    hint = f": {got}()" if isinstance(embedding, type) else ", such as ClaraEmbeddings(); an engine is engine="
    raise TypeError(f"embedding must be an Embeddings object, got {got}; make one{hint}")
