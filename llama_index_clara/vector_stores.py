"""Memories of nodes, searched by the query reasoner, by words, or both: in this process, or in a folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

import fsspec
import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import Field, PrivateAttr

from clara_core.errors import FingerprintMismatch
from llama_index_clara._durable import DurableNodes
from llama_index_clara._engine import EngineFields
from llama_index_clara._files import SUFFIX, from_json, read_file, read_pointer, to_json, write_file, write_pointer
from llama_index_clara._nodes import checked, copy_of, text_of
from llama_index_clara._queries import (
    allowed_ids,
    checked_mode,
    filterable,
    fused,
    mmr_balance,
    passing,
    vector_of,
    words_of,
)
from llama_index_clara._table import BadVector, Entry, Table
from llama_index_clara._vectors import Array, VectorSpace

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Memory
    from clara_core.store import MemoryStore

_SAME: Final = 0.999  # cosine of two vectors of the same text, whatever the batch and the dtype they came from
_BATCH: Final = 64  # nodes that are looked at together; vectors as lists take eight times their room
_IDENTITY: Final = ("model", "compression", "base_model", "revision", "quantization", "reasoner")


class ClaraVectorStore(EngineFields, BasePydanticVectorStore):
    """Holds nodes with their memories: with `uri` in a `clara_core.store.MemoryStore`, which outlasts the process;
    without it in memory, from where `persist` writes them to a file.

    Nodes come with embeddings of `ClaraEmbedding` of the same model (a `VectorStoreIndex` sees to that), or without:
    then they are compressed here, and no list of numbers is ever made. What a query finds comes back as copies without
    embeddings, and their memories are in the engine's cache for the reranker and the synthesizer.

    Query modes are ``default`` (cosine), ``mmr``, ``text_search`` (BM25) and ``hybrid`` (both by their ranks;
    ``alpha`` is the share of the cosine, and scores are shares of the best possible one).

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
    dimensions: int | None = Field(default=None, ge=1, description="Numbers of a vector, as in ClaraEmbedding.")
    uri: str | None = Field(default=None, description="Folder or address of object storage; None is in memory.")

    _table: Table = PrivateAttr()
    _durable: DurableNodes | None = PrivateAttr(default=None)

    def __init__(self, engine: Any = None, *, store: MemoryStore | None = None, **options: Any) -> None:
        """See `EngineFields`.

        Args:
            engine: Instead of a model.
            store: An opened store with an engine, instead of `uri` and the model.
            **options: The fields.

        Raises:
            ValueError: Things that exclude each other.
        """
        if store is not None:
            if engine is not None or options.keys() & {"model", "uri"}:
                raise ValueError("give store= alone: it knows its engine and where it is")
            if store.engine is None:
                raise ValueError("store= has no engine: MemoryStore.open(uri, model=...) gives it one")
            engine, options = store.engine, {**options, "uri": store.uri}
        if isinstance(options.get("uri"), os.PathLike):
            options["uri"] = os.fspath(options["uri"])
        super().__init__(engine=engine, **options)
        self._table = Table(lambda: self.space.length)
        if self.uri is not None:
            if self.dimensions is not None:
                raise ValueError("leave dimensions= out: a store with uri= keeps whole memories and its own short keys")
            self._durable = DurableNodes(self.uri, lambda: self.engine, store)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized components and traces."""
        return "ClaraVectorStore"

    @property
    def client(self) -> Any:
        """What the nodes are in: a `MemoryStore` with `uri`, else an implementation detail."""
        return self._table if self._durable is None else self._durable.store

    @property
    def space(self) -> VectorSpace:
        """The vectors that are stored."""
        return VectorSpace(self.engine, self.dimensions)

    @property
    def count(self) -> int:
        """Nodes in the store. (It has no ``len``, by which an empty one would count as false.)"""
        return len(self._table if self._durable is None else self._durable)

    def __getstate__(self) -> dict[str, Any]:
        if self.uri is not None and not self.uri.startswith("memory://"):
            return super().__getstate__()
        raise TypeError("a ClaraVectorStore lives in its process and is not pickled; use persist and from_persist_dir")

    # --- writing -----------------------------------------------------------------------------------------

    def add(self, nodes: Iterable[BaseNode], *, memories: Iterable[Memory] | None = None, **kwargs: Any) -> list[str]:
        """Keep copies of nodes; one whose id is here already is replaced. All of them or none; with `uri` each node.

        Args:
            nodes: Any number, from a generator too.
            memories: One a node, where the caller has them.
            **kwargs: Taken for the interface's sake.

        Returns:
            list: The ids, in order.

        Raises:
            ValueError: A vector is of another length, not finite, or zero; with `uri`, not that of the node's text.
            FingerprintMismatch: A memory is another model's.
        """
        if self._durable is not None:
            listed = [self._without_file(node) for node in checked(nodes, BaseNode, "nodes")]
            return self._add_durably(self._durable, listed, memories)
        table = self._table
        added: list[tuple[str, Entry]] = []
        given = None if memories is None else iter(memories)
        stream = checked(nodes, BaseNode, "nodes")
        try:
            while batch := [self._without_file(node) for node in islice(stream, _BATCH)]:
                found = self._memories(batch, given)
                for index, node in enumerate(batch):
                    added.append((node.node_id, self._staged(node, found.get(index))))
        except BaseException:
            table.release(row for _, entry in added for row in entry.rows)
            raise
        table.commit(added)
        return [id_ for id_, _ in added]

    def _add_durably(
        self, durable: DurableNodes, nodes: list[BaseNode], memories: Iterable[Memory] | None
    ) -> list[str]:
        if memories is not None:
            durable.put(nodes, list(self._memories(nodes, iter(memories)).values()))
            return [node.node_id for node in nodes]
        bare = [node for node in nodes if node.embedding is None]
        embedded = [node for node in nodes if node.embedding is not None]
        found: list[Memory] = []
        for start in range(0, len(embedded), _BATCH):
            batch = embedded[start : start + _BATCH]
            found += self.engine.remember([text_of(node) for node in batch])
            for node, memory in zip(batch, found[start:], strict=True):
                self._check_vector(node, memory)
        durable.put(embedded, found)
        durable.put(bare, None)
        return [node.node_id for node in nodes]

    def _without_file(self, node: BaseNode) -> BaseNode:
        """A node without its vector, where that is also of what a loader noted of the file; else as it is.

        An index embeds the text together with those notes if neither the parser nor the node keeps them apart.
        """
        whole = node.get_content(metadata_mode=MetadataMode.EMBED)
        if node.embedding is None or whole == text_of(node):
            return node
        vector = vector_of(node.embedding, self.space.length, f"node {node.node_id!r}", self.model)
        return copy_of(node) if _same(self.space, self.engine.remember([whole])[0], vector) else node

    def _check_vector(self, node: BaseNode, memory: Memory) -> None:
        """Refuse a vector that is not kept, and would not be found again."""
        vector = vector_of(node.embedding or [], self.space.length, f"node {node.node_id!r}", self.model)
        if not _same(self.space, memory, vector):
            raise ValueError(
                f"the vector of node {node.node_id!r} is not the memory of its text, and a store with uri= keeps "
                "nothing but memories: leave the vector out, or embed with ClaraEmbedding"
            )

    def _memories(self, batch: list[BaseNode], given: Any) -> dict[int, Memory]:
        """Memories by the position of their nodes: given, known to the engine, or made now for lack of a vector."""
        engine = self.engine
        if given is not None:
            from clara_core.prepare import checked_memories

            memories = checked_memories(islice(given, len(batch)), lambda: engine.fingerprint)
            if len(memories) < len(batch):
                raise ValueError("one memory a node is needed: there are more nodes than memories")
            for node, memory in zip(batch, memories, strict=True):
                if memory.text != text_of(node):
                    raise ValueError(f"the memory given for node {node.node_id!r} is that of another text")
            return dict(enumerate(memories))
        found: dict[int, Memory] = {}
        bare = [index for index, node in enumerate(batch) if node.embedding is None]
        found.update(zip(bare, engine.compress([text_of(batch[index]) for index in bare]), strict=True))
        if len(bare) < len(batch) and len(engine.cache):
            for index, node in enumerate(batch):
                if node.embedding is not None:
                    known = engine.cache.get(text_of(node), engine.fingerprint)
                    if known is not None:
                        found[index] = known
        return found

    def _staged(self, node: BaseNode, memory: Memory | None) -> Entry:
        """What will be stored of a node, its rows in place."""
        kept = copy_of(node)
        entry = Entry(kept, text_of(kept), filterable(kept))
        try:
            if node.embedding is None:
                vectors = self.space.windows(_needed(memory))
            else:
                vector = vector_of(node.embedding, self._table.length, f"node {node.node_id!r}", self.model)
                # A vector that is its text's memory is kept as that memory, with all windows; any other as it is.
                if memory is not None and not _same(self.space, memory, vector):
                    memory = None
                vectors = vector[None] if memory is None else self.space.windows(memory)
            entry.rows = self._table.stage(vectors)
        except BadVector as exc:
            raise ValueError(f"node {node.node_id!r} cannot be stored: {exc}") from exc
        if memory is not None:
            entry.spans, entry.source_tokens = memory.spans, memory.source_tokens
        return entry

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Forget all nodes of a source document; an unknown one is nothing to do."""
        if self._durable is not None:
            self._durable.delete_source(ref_doc_id)
            return
        with self._table.entries() as entries:
            self._table.remove([id_ for id_, entry in entries.items() if entry.node.ref_doc_id == ref_doc_id])

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Forget nodes that are named, pass the filters, or both where both are given.

        Raises:
            ValueError: Neither is given; `clear` empties the store.
        """
        if node_ids is None and filters is None:
            raise ValueError("give node_ids= or filters=; clear() empties the store")
        if self._durable is not None:
            self._durable.delete_nodes(node_ids, filters)
            return
        with self._table.entries() as entries:
            ids = entries if node_ids is None else set(node_ids) & set(entries)
            passes = passing(entries, filters)
            self._table.remove([id_ for id_ in ids if passes(id_)])

    def clear(self) -> None:
        """Forget everything."""
        self._table.clear()
        if self._durable is not None:
            self._durable.delete_nodes(None, None)

    # --- reading -----------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Copies of nodes, in the order in which they are asked for; unknown ids are left out."""
        if self._durable is not None:
            return self._durable.get_nodes(node_ids, filters)
        with self._table.entries() as entries:
            ids = list(entries) if node_ids is None else [id_ for id_ in node_ids if id_ in entries]
            passes = passing(entries, filters)
            return [copy_of(entries[id_].node) for id_ in ids if passes(id_)]

    def memories(self, node_ids: Sequence[str]) -> list[Memory]:
        """Memories of stored nodes, in order; what the store does not hold is compressed.

        Raises:
            KeyError: There is no such node.
        """
        if self._durable is not None:
            return self._durable.memories(node_ids)
        with self._table.entries() as entries:
            missing = [id_ for id_ in node_ids if id_ not in entries]
            if missing:
                raise KeyError(f"the store has no node {missing[0]!r}")
            chosen = [entries[id_] for id_ in node_ids]
            held = [self._memory(entry) for entry in chosen]
        unknown = [entry.text for entry, memory in zip(chosen, held, strict=True) if memory is None]
        made = {memory.text: memory for memory in self.engine.remember(unknown)} if unknown else {}
        return [memory or made[entry.text] for entry, memory in zip(chosen, held, strict=True)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes.

        Args:
            query: What for. `node_ids` and `doc_ids` that are None or empty filter nothing.
            **kwargs: ``mmr_threshold``, as in LlamaIndex's own store.

        Returns:
            VectorStoreQueryResult: Copies of nodes, their scores and ids, best first.

        Raises:
            ValueError: A mode that is not offered, or a vector of another length.
        """
        table = self._table
        mode = checked_mode(query)
        question = None if mode is VectorStoreQueryMode.TEXT_SEARCH else self._question(query)
        if self._durable is not None:
            return self._durable.query(query, mode, question, kwargs)
        with table.entries() as entries:
            allowed = allowed_ids(entries, query)
            if question is None:
                hits = table.matching(words_of(query), allowed, query.similarity_top_k)
            elif mode is VectorStoreQueryMode.HYBRID:
                hits = fused(
                    lambda k: table.nearest(question, allowed, k),
                    lambda words, k: table.matching(words, allowed, k),
                    query,
                )
            elif mode is VectorStoreQueryMode.MMR:
                hits = table.diverse(question, allowed, query.similarity_top_k, mmr_balance(query, kwargs))
            else:
                hits = table.nearest(question, allowed, query.similarity_top_k)
            found = [entries[id_] for id_, _ in hits]
            memories = [self._memory(entry) for entry in found]
            nodes = [copy_of(entry.node) for entry in found]
        for memory in memories:
            if memory is not None:  # what is read next is looked up by its text
                self.engine.cache.put(memory)
        return VectorStoreQueryResult(nodes, [score for _, score in hits], [id_ for id_, _ in hits])

    def _question(self, query: VectorStoreQuery) -> Array:
        if query.query_embedding is None:
            vector: Array = self.space.questions(self.engine.reason([words_of(query)]))[0]
            return vector
        vector = vector_of(query.query_embedding, self._table.length, "the question", self.model)
        if not np.isfinite(vector).all() or not vector.any():
            raise ValueError("the question's vector is zero, or holds NaN or infinity")
        return vector

    def _memory(self, entry: Entry) -> Memory | None:
        """The memory that the rows of an entry are, if they are one."""
        if entry.spans is None or self.dimensions is not None:
            return None
        import torch

        from clara_core.memory import Memory

        engine: ClaraEngine = self.engine
        rows = torch.from_numpy(self._table.vectors(entry)).to(engine.dtype)
        tokens = rows.view(len(rows), engine.n_mem, engine.hidden)
        return Memory(tokens, entry.text, entry.spans, entry.source_tokens, engine.fingerprint)

    # --- off the event loop ------------------------------------------------------------------------------

    async def async_add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """`add`, awaitable; cancelling it while nodes are being compressed stops that."""
        engine = await self.aengine()
        listed = list(checked(nodes, BaseNode, "nodes"))
        if (
            self._durable is None
            and kwargs.get("memories") is None
            and listed
            and all(node.embedding is None for node in listed)
        ):
            kwargs["memories"] = await engine.acompress([text_of(node) for node in listed])
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
        """Write everything to ``<persist_path>.clara``, whole or not at all; with `uri`, where the nodes are."""
        engine, table = self.engine, self._table
        if self.uri is not None:
            write_pointer(f"{persist_path}{SUFFIX}", fs, self.uri, self._made_by())
            return
        with table.entries() as entries:
            header = {
                "fingerprint": engine.fingerprint if entries else None,
                "made_by": self._made_by(),
                "length": table.length,
                "dimensions": self.dimensions,
                "nodes": [to_json(entry) for entry in entries.values()],
            }
            vectors = (table.vectors(entry) for entry in entries.values())
            write_file(f"{persist_path}{SUFFIX}", fs, header, vectors)

    def _made_by(self) -> dict[str, Any]:
        return {name: getattr(self.engine.arguments, name) for name in _IDENTITY}

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: fsspec.AbstractFileSystem | None = None, **options: Any) -> Self:
        """Read what `persist` wrote under the same path.

        Args:
            persist_path: As given to `persist`.
            fs: As given to `persist`.
            **options: ``engine=``, or ``model=`` and its options; without any, the model that made the store.

        Raises:
            CheckpointError: There is no store, or it is damaged.
            FingerprintMismatch: It was made by another model; its memories cannot be read by this one.
        """
        if (pointer := read_pointer(f"{persist_path}{SUFFIX}", fs)) is not None:
            made_by = {} if {"engine", "model"} & set(options) else pointer["made_by"]
            return cls(**{"uri": pointer["uri"], **made_by, **options})
        header, rows = read_file(f"{persist_path}{SUFFIX}", fs)
        if not {"engine", "model"} & set(options):
            options = {**header["made_by"], **options}
        store = cls(**{"dimensions": header["dimensions"], **options})
        own = store.engine.fingerprint if header["nodes"] else None
        if own != header["fingerprint"] or store.space.length != header["length"]:
            raise FingerprintMismatch(
                f"{persist_path}{SUFFIX} holds vectors of {header['length']} numbers by the model "
                f"{str(header['fingerprint'])[:12]} ({header['made_by']['model']}); {store.model} is "
                f"{str(own)[:12]} and makes {store.space.length}: open it with the model that made it, or add the "
                "documents again"
            )
        table: Table = store.client
        staged = [from_json(saved, table.stage(matrix)) for saved, matrix in zip(header["nodes"], rows, strict=True)]
        table.commit(staged)
        return store

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: fsspec.AbstractFileSystem | None = None,
        **options: Any,
    ) -> Self:
        """Read what ``storage_context.persist(persist_dir)`` wrote; see `from_persist_path`."""
        path = f"{persist_dir.rstrip('/')}/{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(path, fs, **options)


def _same(space: VectorSpace, memory: Memory, vector: Array) -> bool:
    """Whether a vector is the one of this memory (a zero or NaN is not)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(space.documents([memory])[0] @ (vector / np.linalg.norm(vector)))
    return cosine > _SAME


def _needed(memory: Memory | None) -> Memory:
    if memory is None:
        raise RuntimeError("a node without embedding has a memory by now")
    return memory
