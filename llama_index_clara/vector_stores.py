"""A LlamaIndex vector store of memories, in this process or in a folder, searched by memory, by words, or by both."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

import fsspec
import numpy as np
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from pydantic import Field, PrivateAttr

from clara_core.common.errors import FingerprintMismatch
from clara_core.common.place import IN_MEMORY, absolute
from clara_core.retrieval.filters import matches
from llama_index_clara._engine import EngineFields
from llama_index_clara._files import SUFFIX, VECTORS, read_file, write_file
from llama_index_clara._filters import core_filter
from llama_index_clara._nodes import checked, copy_of, text_of
from llama_index_clara._queries import Plan, vector_of, words_of
from llama_index_clara._stored import SOURCE, allowed, metadata_of, node_of, stored_node

if TYPE_CHECKING:
    from clara_core import Memory
    from clara_core.retrieval.vectors import Array, VectorSpace
    from clara_core.store import Hit, MemoryStore

_SAME: Final = 0.999  # lowest cosine of two vectors of the same text, computed in other batches or dtypes
_BATCH: Final = 64  # nodes processed at a time; as lists, vectors take eight times the room of arrays
_IDENTITY: Final = ("model", "compression", "base_model", "revision", "quantization", "reasoner")
_OPENING: Final = threading.Lock()


class ClaraVectorStore(EngineFields, BasePydanticVectorStore):
    """Nodes with their memories in a `clara_core.store.MemoryStore`, in a folder with `uri`, else in this process.

    `persist` writes a store in memory to a file. Stores in folders and in memory accept, find and refuse the same.

    Nodes may have embeddings of `ClaraEmbedding` of the same model (a `VectorStoreIndex` adds them), or none: then the
    store compresses them without making lists of numbers. Query results are copies without embeddings; their memories
    are in the engine's cache for the reranker and the synthesizer. With ``dimensions=`` the store keeps vectors of that
    length instead of memories: shortened memories, or vectors of any other embedding model.

    Query modes are ``default`` (``hybrid`` if the query has words, else by cosine), ``mmr``, ``text_search`` (BM25)
    and ``hybrid`` (cosine and BM25 fused into a score in [0, 1]; ``alpha`` is the weight of the cosine).

    Pickles and deep copies of a store with `uri` open the same folder; those of a store in memory contain its nodes.

    Example:
        ```python
        store = ClaraVectorStore(model="pocket")
        storage_context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex.from_documents(documents, storage_context=storage_context)

        store = ClaraVectorStore(model="pocket", uri="memories")  # opened, or made by the first node
        ```
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    dimensions: int | None = Field(
        default=None, ge=1, description="Length of the vectors to keep; None keeps whole memories."
    )
    uri: str | None = Field(
        default=None, description="Folder or address of object storage; None keeps nodes in memory."
    )

    _store: Any = PrivateAttr(default=None)

    def __init__(self, engine: Any = None, *, store: MemoryStore | None = None, **options: Any) -> None:
        """See `EngineFields`.

        Args:
            engine: An engine, instead of a model.
            store: An opened store with an engine, instead of `uri` and the model.
            **options: The fields.

        Raises:
            ValueError: Arguments exclude each other.
        """
        if store is not None:
            if engine is not None or options.keys() & {"model", "uri"}:
                raise ValueError("give store= alone: a store has its own engine and address")
            if store.engine is None:
                raise ValueError("store= has no engine: open it with MemoryStore.open(uri, model=...)")
            engine, options = store.engine, {**options, "uri": store.uri}
        if isinstance(options.get("uri"), str | os.PathLike):
            options["uri"] = absolute(options["uri"])
        super().__init__(engine=engine, **options)
        self._store = store

    @property
    def client(self) -> MemoryStore:
        """The store of the nodes, with `optimize`, `compact` and `stats`. Opened at first use."""
        with _OPENING:
            if self._store is None:
                from clara_core.store import MemoryStore

                place = self.uri or IN_MEMORY
                if self.dimensions is None:
                    self._store = MemoryStore.open(place, self.engine)
                else:
                    self._store = MemoryStore.open(place, memory_type="float32")
            found: MemoryStore = self._store
            return found

    @property
    def space(self) -> VectorSpace:
        """The vectors that the store keeps."""
        from clara_core.retrieval.vectors import VectorSpace

        return VectorSpace(self.engine, self.dimensions)

    @property
    def count(self) -> int:
        """Number of nodes in the store. (There is no ``len``, because an empty store would be false.)"""
        return self.client.count()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "store": self._store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._store = state["store"]

    # --- writing -----------------------------------------------------------------------------------------

    def add(self, nodes: Iterable[BaseNode], *, memories: Iterable[Memory] | None = None, **kwargs: Any) -> list[str]:
        """Add copies of nodes; a node with a known id is replaced. All nodes are checked before any is stored.

        A node without text is stored, but not found.

        Args:
            nodes: Any number of nodes, also from a generator; of several with the same id the last one is kept.
            memories: A memory for each node, if they are computed already; an iterator is checked and stored 64 at
                a time.
            **kwargs: Ignored.

        Returns:
            list: The ids, in order.

        Raises:
            ValueError: A vector has another length, is not finite or zero, or is not that of the node's text.
            FingerprintMismatch: A memory was made by another model.
        """
        if memories is not None and not isinstance(memories, Sequence):
            stream, left, ids = checked(nodes, BaseNode, "nodes"), iter(memories), []
            while batch := list(islice(stream, _BATCH)):
                ids += self.add(batch, memories=list(islice(left, len(batch))))
            return ids
        given = [self._without_file(node) for node in checked(nodes, BaseNode, "nodes")]
        last = sorted({node.node_id: index for index, node in enumerate(given)}.values())
        kept = [stored_node(given[index]) for index in last]
        texts = [text_of(node) for node in kept]
        ready: dict[str, Any] = {}
        if memories is not None:
            known = self._given(given, list(memories))
            ready["memories"] = [known[index] for index in last]
        elif self.dimensions is None:
            self._check_vectors([given[index] for index in last], texts)
        if self.dimensions is not None:
            ready = {"vectors": self._vectors([given[index] for index in last], texts, ready.get("memories"))}
        self.client.add(texts, list(map(metadata_of, kept)), [node.node_id for node in kept], **ready)
        return [node.node_id for node in given]

    def _without_file(self, node: BaseNode) -> BaseNode:
        """A node without its vector, if the vector includes metadata about its file; else the node unchanged.

        An index embeds that metadata with the text if neither the parser nor the node excludes it.
        """
        whole = node.get_content(metadata_mode=MetadataMode.EMBED)
        if node.embedding is None or whole == text_of(node):
            return node
        vector = self._vector(node)
        return copy_of(node) if _same(self.space, self.engine.remember([whole])[0], vector) else node

    def _vector(self, node: BaseNode) -> Array:
        return vector_of(node.embedding or [], self.space.length, f"node {node.node_id!r}", self.model)

    def _given(self, nodes: Sequence[BaseNode], memories: Sequence[Memory]) -> list[Memory]:
        """Check the memories given for nodes."""
        from clara_core.engine.checks import checked_memories

        found = checked_memories(memories[: len(nodes)], lambda: self.engine.fingerprint)
        if len(found) < len(nodes):
            raise ValueError("each node needs one memory: there are more nodes than memories")
        for node, memory in zip(nodes, found, strict=True):
            if memory.text != text_of(node):
                raise ValueError(f"the memory given for node {node.node_id!r} is of another text")
        return found

    def _check_vectors(self, nodes: Sequence[BaseNode], texts: Sequence[str]) -> None:
        """Refuse vectors that are not the memory of their text, which a store of memories would not keep."""
        pairs = [(node, text) for node, text in zip(nodes, texts, strict=True) if node.embedding is not None]
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            vectors = [self._vector(node) for node, _ in batch]
            memories = self.engine.remember([text for _, text in batch])
            for (node, _), vector, memory in zip(batch, vectors, memories, strict=True):
                if not _same(self.space, memory, vector):
                    raise ValueError(
                        f"the vector of node {node.node_id!r} is not the memory of its text, and this store keeps "
                        "memories: leave the vector out, embed with ClaraEmbedding, or give the store "
                        f"dimensions={len(vector)} to keep vectors of another embedding"
                    )

    def _vectors(
        self, nodes: Sequence[BaseNode], texts: Sequence[str], memories: Sequence[Memory] | None
    ) -> list[Array]:
        """The vectors kept for each node in a store of vectors, ``[W, dimensions]``: given or computed."""
        bare = [text for node, text in zip(nodes, texts, strict=True) if node.embedding is None and text.strip()]
        if memories is None:
            made = dict(zip(bare, self.engine.remember(bare), strict=True)) if bare else {}
        else:
            made = {memory.text: memory for memory in memories}
        found = []
        for node, text in zip(nodes, texts, strict=True):
            memory = made.get(text)
            if node.embedding is not None:
                vector = self._vector(node)
                if memory is None and self._engine is not None and len(self.engine.cache):
                    memory = self.engine.cache.get(text, self.engine.fingerprint)
                if memory is None or not _same(self.space, memory, vector):
                    found.append(vector[None])
                    continue
            found.append(np.zeros((0, self.space.length), np.float32) if memory is None else self.space.windows(memory))
        return found

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document; an unknown document is ignored."""
        self.client.delete(filter={SOURCE: ref_doc_id})

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes with given ids, nodes that pass the filters, or, with both, nodes that meet both.

        Raises:
            ValueError: Neither is given; `clear` empties the store.
        """
        if node_ids is None and filters is None:
            raise ValueError("give node_ids= or filters=; clear() empties the store")
        condition = core_filter(filters)
        self.client.delete(node_ids, {} if node_ids is None and condition is None else condition)

    def clear(self) -> None:
        """Delete all nodes."""
        self.client.delete(filter={})

    # --- reading -----------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Copies of nodes, in the order of their ids; unknown ids are left out."""
        condition = core_filter(filters) or {}
        found = iter(self.client) if node_ids is None else self.client.get(node_ids)
        return [node_of(record) for record in found if matches(condition, record.metadata)]

    def memories(self, node_ids: Sequence[str]) -> list[Memory]:
        """Memories of stored nodes, in order; in a store of vectors they are compressed again.

        Raises:
            KeyError: The store has no node with an id.
        """
        if self.dimensions is None:
            return self.client.memories(node_ids)
        from clara_core.store.records import in_order

        texts = {record.id: record.text for record in self.client.get(node_ids)}
        return self.engine.remember(in_order(node_ids, texts))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes.

        Args:
            query: The query. `node_ids` and `doc_ids` that are None or empty do not filter.
            **kwargs: ``mmr_threshold``, as in LlamaIndex's own store, and ``rerank``: how many of the best nodes of a
                search by memory and words are ranked again by whether they hold an answer; see
                `clara_core.store.MemoryStore.search`.

        Returns:
            VectorStoreQueryResult: Copies of nodes, their scores and ids, best first.

        Raises:
            ValueError: The mode is not supported, or a vector has another length.
        """
        plan = Plan.of(query, kwargs)
        question = None if plan.mode == "text" else self._question(query)
        if plan.k < 1:
            return VectorStoreQueryResult([], [], [])
        ranked = self._ranked(query, plan, question)
        for hit, _ in ranked:  # the generator finds the memories by text
            if hit.memory is not None and self.dimensions is None:
                self.engine.cache.put(hit.memory, replace=False)
        return VectorStoreQueryResult(
            [node_of(hit) for hit, _ in ranked], [score for _, score in ranked], [hit.id for hit, _ in ranked]
        )

    def _ranked(self, query: VectorStoreQuery, plan: Plan, question: Array | None) -> list[tuple[Hit, float]]:
        store = self.client
        options: dict[str, Any] = {"filter": allowed(store, query), "mode": plan.mode, "rerank": plan.rerank}
        options["with_memories"] = self.dimensions is None or plan.mmr_threshold is not None
        if plan.text_weight is not None:
            options["text_weight"] = plan.text_weight
        if plan.mode == "memory" and question is not None:
            hits: Any = store.search(question, plan.k, **options)
        else:
            hits = store.search(words_of(query), plan.k, vectors=question, **options)
        if plan.mmr_threshold is None or question is None:
            return [(hit, hit.relevance if plan.fused else hit.score) for hit in hits]
        # LlamaIndex's own rule compares a candidate with the node chosen last, both by their nearest windows.
        windows = [hit.memory.vectors()[hit.window] for hit in hits]
        scores, places = get_top_k_mmr_embeddings(
            question, windows, similarity_top_k=query.similarity_top_k, mmr_threshold=plan.mmr_threshold  # type: ignore[arg-type]
        )  # fmt: skip
        return [(hits[place], float(score)) for place, score in zip(places, scores, strict=True)]

    def _question(self, query: VectorStoreQuery) -> Array:
        if query.query_embedding is None:
            vector: Array = self.space.questions(self.engine.reason([words_of(query)]))[0]
            return vector
        return vector_of(query.query_embedding, self.space.length, "the question", self.model)

    # --- off the event loop ------------------------------------------------------------------------------

    async def async_add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """`add`, awaitable; cancelling it during compression stops the work."""
        engine = await self.aengine()
        listed = list(checked(nodes, BaseNode, "nodes"))
        bare = [text for node in listed if node.embedding is None and (text := text_of(node)).strip()]
        if bare and kwargs.get("memories") is None:
            await engine.afetch(await engine.aremember(bare))
        return await asyncio.to_thread(self.add, listed, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete`, awaitable."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """`delete_nodes`, awaitable."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """`clear`, awaitable."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes`, awaitable."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query`, awaitable."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    # --- files -------------------------------------------------------------------------------------------

    def persist(
        self,
        persist_path: str = os.path.join(DEFAULT_PERSIST_DIR, DEFAULT_PERSIST_FNAME),  # noqa: PTH118
        fs: fsspec.AbstractFileSystem | None = None,
    ) -> None:
        """Write the store to ``<persist_path>.clara`` atomically; with `uri`, only the address of the nodes."""
        if self.uri is not None and self.uri.startswith(IN_MEMORY):
            raise ValueError("a store at memory:// ends with its process; give uri= a folder, which needs no persist()")
        made_by = {name: getattr(self.engine.arguments, name) for name in _IDENTITY}
        header = {"made_by": made_by, "uri": self.uri, "length": self.space.length,
                  "dimensions": self.dimensions, "fingerprint": self.client.fingerprint}  # fmt: skip
        write_file(f"{persist_path}{SUFFIX}", fs, header, self.client if self.uri is None else None)

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: fsspec.AbstractFileSystem | None = None, **options: Any) -> Self:
        """Read a store that `persist` wrote under the same path.

        Args:
            persist_path: The path given to `persist`.
            fs: The file system given to `persist`.
            **options: ``engine=``, or ``model=`` and its options; by default the model that made the store.

        Raises:
            CheckpointError: There is no store, or it is damaged.
            FingerprintMismatch: The store was made by another model.
        """
        header, entries = read_file(f"{persist_path}{SUFFIX}", fs)
        if not {"engine", "model"} & set(options):
            options = {**header["made_by"], **options}
        store = cls(**{"dimensions": header["dimensions"], "uri": header["uri"], **options})
        if header["uri"] is not None:
            list(entries)  # verifies the hash of an empty store
            return store
        own = header["fingerprint"] and (store.engine.fingerprint if store.dimensions is None else VECTORS)
        if own != header["fingerprint"] or store.space.length != header["length"]:
            raise FingerprintMismatch(
                f"{persist_path}{SUFFIX} holds vectors of {header['length']} numbers by the model "
                f"{str(header['fingerprint'])[:12]} ({header['made_by']['model']}); {store.model} is "
                f"{str(own)[:12]} and makes {store.space.length}: open it with the model that made it, or add the "
                "documents again"
            )
        while batch := list(islice(entries, _BATCH)):
            records, memories = [record for record, _ in batch], [memory for _, memory in batch]
            store.client.add(
                [record.text for record in records],
                [record.metadata for record in records],
                [record.id for record in records],
                memories if store.dimensions is None else None,
                vectors=None if store.dimensions is None else [memory.tokens.flatten(1) for memory in memories],
            )
        return store

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: fsspec.AbstractFileSystem | None = None,
        **options: Any,
    ) -> Self:
        """Read a store that ``storage_context.persist(persist_dir)`` wrote; see `from_persist_path`."""
        path = f"{persist_dir.rstrip('/')}/{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(path, fs, **options)


def _same(space: VectorSpace, memory: Memory, vector: Array) -> bool:
    """Whether a vector is that of this memory; False for zero and NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(space.documents([memory])[0] @ (vector / np.linalg.norm(vector)))
    return cosine > _SAME
