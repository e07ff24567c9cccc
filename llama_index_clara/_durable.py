"""Nodes in a `MemoryStore`: what a `ClaraVectorStore` with ``uri=`` stands on.

A node is a document of the store: its text is what was compressed, its metadata is what LlamaIndex's filters see, and
beside that, under names that no filter of a user's means, the node itself and its ids.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.schema import BaseNode, ImageNode, IndexNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from llama_index_clara._filters import Filter, core_filter
from llama_index_clara._nodes import copy_of, text_of
from llama_index_clara._queries import filterable, fused, mmr_balance, without_object, words_of
from llama_index_clara._table import Entry, Table
from llama_index_clara._vectors import Array

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Memory
    from clara_core.store import Hit, MemoryStore, Record

_NODE: Final = "clara:node"
_ID: Final = "clara:id"
_SOURCE: Final = "clara:source"
_OWN_IDS: Final = "clara:index_or_image"  # an index remembers the ids of such nodes, see `_is_bookkeeping`
_POOL: Final = 20  # fewest nodes that MMR chooses from
_WIDER: Final = 4  # times as many as it is to choose


class DurableNodes:
    """Nodes by id in a `MemoryStore`. Safe under threads; copies are the object itself.

    Args:
        uri: Where they are.
        engine: Finds the engine of the memories, at first use.
        store: An opened store, instead of `uri`.
    """

    def __init__(self, uri: str, engine: Callable[[], ClaraEngine], store: MemoryStore | None = None) -> None:
        self.uri = uri
        self._engine = engine
        self._store = store
        self._opening = threading.Lock()

    @property
    def store(self) -> MemoryStore:
        """Opened at first use."""
        with self._opening:
            if self._store is None:
                from clara_core.store import MemoryStore

                self._store = MemoryStore.open(self.uri, self._engine())
            return self._store

    def __copy__(self) -> DurableNodes:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DurableNodes:
        return self

    def __len__(self) -> int:
        return self.store.count()

    # --- writing -----------------------------------------------------------------------------------------

    def put(self, nodes: Sequence[BaseNode], memories: Sequence[Memory] | None) -> None:
        """Keep nodes; of several under one id the last counts. Without memories they are compressed.

        Raises:
            ValueError: A node has no text; nothing is kept.
        """
        last = sorted({node.node_id: index for index, node in enumerate(nodes)}.values())
        kept = [copy_of(nodes[index]) for index in last]
        texts = [text_of(node) for node in kept]
        for node, text in zip(kept, texts, strict=True):
            if not text.strip():
                raise ValueError(
                    f"node {node.node_id!r} (of the source {node.ref_doc_id!r}) has no text to compress, and a store "
                    "with uri= keeps nothing else: leave it out. ClaraNodeParser makes no nodes of empty documents"
                )
        self.store.add(
            texts,
            [_metadata(node) for node in kept],
            [node.node_id for node in kept],
            None if memories is None else [memories[index] for index in last],
        )

    def delete_source(self, ref_doc_id: str) -> None:
        """Forget all nodes of a source document."""
        self.store.delete(filter={_SOURCE: ref_doc_id})

    def delete_nodes(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> None:
        """Forget nodes that are named and pass the filters; None names, and lets pass, all."""
        condition = core_filter(filters)
        self.store.delete(node_ids, {} if node_ids is None and condition is None else condition)

    # --- reading -----------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[BaseNode]:
        """Nodes in the order of their ids; unknown ones are left out."""
        from clara_core.filters import matches

        condition = core_filter(filters) or {}
        found: Iterable[Record] = self.store if node_ids is None else self.store.get(node_ids)
        return [_node(record) for record in found if matches(condition, record.metadata)]

    def memories(self, node_ids: Sequence[str]) -> list[Memory]:
        """Memories of nodes, in order.

        Raises:
            KeyError: There is no such node.
        """
        try:
            return self.store.memories(node_ids)
        except KeyError:
            known = {record.id for record in self.store.get(node_ids)}
            missing = [id_ for id_ in node_ids if id_ not in known]
            raise KeyError(f"the store has no node {missing[0]!r}" if missing else "a node was just deleted") from None

    def query(
        self, query: VectorStoreQuery, mode: VectorStoreQueryMode, question: Array | None, options: Mapping[str, Any]
    ) -> VectorStoreQueryResult:
        """Find nodes by a question's vector ``[D]``, or by words where it is None."""
        search = _Search(self, self._allowed(query))
        if question is None:
            ranked = search.matching(words_of(query), query.similarity_top_k)
        elif mode is VectorStoreQueryMode.HYBRID:
            ranked = fused(lambda k: search.nearest(question, k), search.matching, query)
        elif mode is VectorStoreQueryMode.MMR:
            ranked = search.diverse(question, query.similarity_top_k, mmr_balance(query, options))
        else:
            ranked = search.nearest(question, query.similarity_top_k)
        ids = [id_ for id_, _ in ranked]
        for memory in self.held(ids).values():  # what is read next is looked up by its text
            self._engine().cache.put(memory, replace=False)
        return VectorStoreQueryResult([_node(search.hits[id_]) for id_ in ids], [score for _, score in ranked], ids)

    def held(self, ids: list[str]) -> dict[str, Memory]:
        """Memories by id, of those nodes that nobody has deleted since they were found."""
        while ids:
            try:
                return dict(zip(ids, self.store.memories(ids), strict=True))
            except KeyError:
                ids = [record.id for record in self.store.get(ids)]
        return {}

    def _allowed(self, query: VectorStoreQuery) -> Filter | None:
        """The nodes that a query may find; None is all of them."""
        parts: list[Filter] = []
        if query.node_ids and not self._is_bookkeeping(query.node_ids):
            parts.append({_ID: {"$in": list(query.node_ids)}})
        if query.doc_ids:
            parts.append({_SOURCE: {"$in": list(query.doc_ids)}})
        condition = core_filter(query.filters)
        parts += [] if condition is None else [condition]
        return {"$and": parts} if parts else None

    def _is_bookkeeping(self, node_ids: list[str]) -> bool:
        """Whether these ids are those of all index and image nodes: see `_queries.allowed_ids`."""
        special = self.store.count({_OWN_IDS: True})
        if not special:
            return False
        named: Filter = {_ID: {"$in": list(node_ids)}}
        return special == self.store.count(named) == self.store.count({**named, _OWN_IDS: True})


class _Search:
    """The ways to find nodes that one query may use, and what they found."""

    def __init__(self, nodes: DurableNodes, allowed: Filter | None) -> None:
        self._nodes = nodes
        self._allowed = allowed
        self.hits: dict[str, Hit] = {}

    def nearest(self, question: Array, k: int) -> list[tuple[str, float]]:
        """Ids by the cosine of their best window with ``question [D]``, best first."""
        import torch

        return self._found(torch.from_numpy(question), k, "memory")

    def matching(self, question: str, k: int) -> list[tuple[str, float]]:
        """Ids by the words they share with the question, best first."""
        return self._found(question, k, "text")

    def diverse(self, question: Array, k: int, balance: float) -> list[tuple[str, float]]:
        """The nearest by LlamaIndex's rule of maximal marginal relevance, see `Table.diverse`."""
        near = self.nearest(question, max(_POOL, _WIDER * k)) if k else []
        memories = self._nodes.held([id_ for id_, _ in near])
        table = Table(lambda: len(question))
        for id_, _ in near:
            if id_ in memories:
                windows: Array = memories[id_].tokens.flatten(1).float().numpy()
                table.commit([(id_, Entry(_node(self.hits[id_]), "", {}, rows=table.stage(windows)))])
        return table.diverse(question, None, k, balance)

    def _found(self, question: Any, k: int, mode: Any) -> list[tuple[str, float]]:
        if k < 1:
            return []
        hits = self._nodes.store.search(question, k, filter=self._allowed, mode=mode)
        self.hits.update({hit.id: hit for hit in hits})
        return [(hit.id, hit.score) for hit in hits]


def _metadata(node: BaseNode) -> dict[str, Any]:
    own: dict[str, Any] = {_ID: node.node_id, _NODE: _json(node)}
    if node.ref_doc_id is not None:
        own[_SOURCE] = node.ref_doc_id
    if isinstance(node, IndexNode | ImageNode):
        own[_OWN_IDS] = True
    return filterable(node) | own


def _json(node: BaseNode) -> Any:
    """What `json_to_doc` makes a node of.

    Raises:
        TypeError: Something in the node is not JSON.
    """
    try:
        return json.loads(json.dumps(doc_to_json(without_object(node))))
    except TypeError as exc:
        raise TypeError(f"node {node.node_id!r} cannot be written: {exc}; turn it into a string or a number") from exc


def _node(found: Record | Hit) -> BaseNode:
    node: BaseNode = json_to_doc(found.metadata[_NODE])
    return node
