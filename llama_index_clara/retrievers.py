"""A LlamaIndex retriever over a store of memories."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, Document, IndexNode, NodeWithScore, QueryBundle, TransformComponent
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from clara_core.common.suggest import parameters, refuse_unknown
from clara_core.retrieval.ranking import RERANK
from llama_index_clara._nodes import checked
from llama_index_clara.embeddings import ClaraEmbedding
from llama_index_clara.node_parser import ClaraNodeParser
from llama_index_clara.vector_stores import ClaraVectorStore

if TYPE_CHECKING:
    from clara_core import Engine

_STORE_OPTIONS: Final = (*ClaraVectorStore.model_fields, *parameters(ClaraVectorStore))


class ClaraRetriever(BaseRetriever):
    """Finds the nodes that answer a question by comparing memories, without an index.

    Args:
        vector_store: A `ClaraVectorStore`; by default an empty one from ``engine=`` or ``model=`` and its options.
        similarity_top_k: Number of nodes to return.
        vector_store_query_mode: ``default``, ``mmr``, ``text_search`` or ``hybrid``.
        filters: Metadata filters.
        node_ids: Nodes to search among; None or empty is all.
        doc_ids: Source documents to search among; None or empty is all.
        alpha: Weight of the cosine in ``hybrid``.
        sparse_top_k: Candidates by words in ``hybrid``.
        hybrid_top_k: Number of nodes to return in ``hybrid``.
        mmr_threshold: Weight of relevance in ``mmr``.
        rerank: How many of the best nodes of a search by memory and words are ranked again by whether they hold an
            answer to the question; 0 keeps the order of the search. It costs about a millisecond a node.
        callback_manager: As in LlamaIndex.
        object_map: See `BaseRetriever`.
        objects: See `BaseRetriever`.
        verbose: See `BaseRetriever`.
        engine: See `ClaraVectorStore`.
        **options: See `ClaraVectorStore`, such as ``model=`` and ``dimensions=``.

    Example:
        ```python
        retriever = ClaraRetriever.from_documents(documents, model="pocket", similarity_top_k=5)
        retriever.retrieve("When was the bridge opened?")
        ```
    """

    def __init__(
        self,
        vector_store: ClaraVectorStore | None = None,
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        filters: MetadataFilters | None = None,
        node_ids: list[str] | None = None,
        doc_ids: list[str] | None = None,
        alpha: float | None = None,
        sparse_top_k: int | None = None,
        hybrid_top_k: int | None = None,
        mmr_threshold: float | None = None,
        rerank: int = RERANK,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        engine: Engine | None = None,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, options, [*parameters(ClaraRetriever), *_STORE_OPTIONS])
        if not isinstance(vector_store, ClaraVectorStore | None):
            raise TypeError(
                f"vector_store must be a ClaraVectorStore, got {type(vector_store).__name__}; a model's name goes to "
                "model=; for another store use index.as_retriever()"
            )
        if not isinstance(filters, MetadataFilters | None):
            raise TypeError(
                f"filters must be MetadataFilters, got {type(filters).__name__}; such as "
                "MetadataFilters(filters=[MetadataFilter(key='year', value=1931)])"
            )
        if vector_store is not None and (engine is not None or options):
            name = next(iter(options), "engine")
            raise ValueError(f"give vector_store= or {name}=, not both: a store has its own engine")
        if similarity_top_k < 1:
            raise ValueError(f"similarity_top_k must be at least 1, got {similarity_top_k}")
        if rerank < 0:
            raise ValueError(f"rerank must be at least 0, got {rerank}")
        self._store = ClaraVectorStore(engine=engine, **options) if vector_store is None else vector_store
        self._query = VectorStoreQuery(
            similarity_top_k=similarity_top_k,
            mode=VectorStoreQueryMode(vector_store_query_mode),
            filters=filters,
            node_ids=node_ids,
            doc_ids=doc_ids,
            alpha=alpha,
            sparse_top_k=sparse_top_k,
            hybrid_top_k=hybrid_top_k,
            mmr_threshold=mmr_threshold,
        )
        self._rerank = rerank
        self._embed_model: ClaraEmbedding | None = None
        super().__init__(callback_manager, object_map, objects, verbose)

    @property
    def vector_store(self) -> ClaraVectorStore:
        """The store of the nodes."""
        return self._store

    @property
    def engine(self) -> Engine:
        """The engine of the store."""
        return self._store.engine

    # --- nodes -------------------------------------------------------------------------------------------

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        transformations: Sequence[TransformComponent] | None = None,
        *,
        show_progress: bool = False,
        **options: Any,
    ) -> Self:
        """Create a retriever over documents, which are split and compressed now.

        Args:
            documents: The documents; they are not changed.
            transformations: How to make nodes from them; None is `ClaraNodeParser`.
            show_progress: Draw progress bars.
            **options: The arguments of this class.
        """
        given = list(checked(documents, BaseNode, "documents"))
        retriever = cls(**options)
        steps = retriever._steps(transformations)
        retriever.add_nodes(run_transformations(given, steps, show_progress=show_progress))
        return retriever

    @classmethod
    async def afrom_documents(
        cls,
        documents: Sequence[Document],
        transformations: Sequence[TransformComponent] | None = None,
        *,
        show_progress: bool = False,
        **options: Any,
    ) -> Self:
        """`from_documents`, awaitable."""
        given = list(checked(documents, BaseNode, "documents"))
        retriever = cls(**options)
        steps = await asyncio.to_thread(retriever._steps, transformations)
        await retriever.aadd_nodes(await arun_transformations(given, steps, show_progress=show_progress))
        return retriever

    def add_nodes(self, nodes: Iterable[BaseNode]) -> list[str]:
        """Compress and add nodes; a node with a known id replaces the stored one."""
        return self._store.add(nodes)

    async def aadd_nodes(self, nodes: Iterable[BaseNode]) -> list[str]:
        """`add_nodes`, awaitable."""
        return await self._store.async_add(nodes)

    def _steps(self, transformations: Sequence[TransformComponent] | None) -> list[TransformComponent]:
        return [ClaraNodeParser(engine=self.engine)] if transformations is None else list(transformations)

    # --- questions ---------------------------------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and self._needs_embedding(query_bundle):
            embedding = self._embedder().get_agg_embedding_from_queries(query_bundle.embedding_strs)
        return _scored(self._store.query(self._store_query(query_bundle, embedding), rerank=self._rerank))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and self._needs_embedding(query_bundle):
            embedder = await asyncio.to_thread(self._embedder)
            embedding = await embedder.aget_agg_embedding_from_queries(query_bundle.embedding_strs)
        query = self._store_query(query_bundle, embedding)
        return _scored(await self._store.aquery(query, rerank=self._rerank))

    def _needs_embedding(self, query_bundle: QueryBundle) -> bool:
        return self._query.mode is not VectorStoreQueryMode.TEXT_SEARCH and bool(query_bundle.embedding_strs)

    def _embedder(self) -> ClaraEmbedding:
        """The embedding model for questions, which also sends events."""
        if self._embed_model is None:
            self._embed_model = ClaraEmbedding(
                engine=self.engine, dimensions=self._store.dimensions, callback_manager=self.callback_manager
            )
        return self._embed_model

    def _store_query(self, query_bundle: QueryBundle, embedding: list[float] | None) -> VectorStoreQuery:
        return replace(self._query, query_str=query_bundle.query_str, query_embedding=embedding)


def _scored(result: VectorStoreQueryResult) -> list[NodeWithScore]:
    found = zip(result.nodes or [], result.similarities or [], strict=True)
    return [NodeWithScore(node=node, score=score) for node, score in found]
