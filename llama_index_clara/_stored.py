"""Converts nodes to documents of a `MemoryStore` and back.

The text of a document is the compressed text of the node. Its metadata is what LlamaIndex's filters see, and, under
names that user filters do not use, the node itself and its ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llama_index.core.schema import BaseNode, ImageNode, IndexNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from llama_index_clara._filters import Filter, core_filter
from llama_index_clara._nodes import copy_of

if TYPE_CHECKING:
    from clara_core.store import Hit, MemoryStore, Record

_NODE: Final = "clara:node"
_ID: Final = "clara:id"
SOURCE: Final = "clara:source"
_OWN_IDS: Final = "clara:index_or_image"  # marks the nodes whose ids an index keeps, see `_is_bookkeeping`


def stored_node(node: BaseNode) -> BaseNode:
    """A copy of a node in the form in which it is stored: without its embedding and without references to objects.

    Raises:
        TypeError, ValueError: A metadata value cannot be stored; the message names the node and the key.
    """
    from clara_core.store.records import metadata_from_json, metadata_json

    metadata = metadata_from_json(metadata_json(node.metadata, f"node {node.node_id!r}: metadata"))
    kept = copy_of(node, metadata=metadata)
    if isinstance(kept, IndexNode) and not isinstance(kept.obj, BaseNode | None):
        return kept.model_copy(update={"obj": None})
    return kept


def metadata_of(node: BaseNode) -> dict[str, Any]:
    """The metadata of the document for a node from `stored_node`."""
    seen = node_to_metadata_dict(node, remove_text=True)
    del seen["_node_content"]
    own: dict[str, Any] = {_ID: node.node_id, _NODE: doc_to_json(node)}
    if node.ref_doc_id is not None:
        own[SOURCE] = node.ref_doc_id
    if isinstance(node, IndexNode | ImageNode):
        own[_OWN_IDS] = True
    return seen | own


def node_of(found: Record | Hit) -> BaseNode:
    """The node of a document, as the caller's own copy."""
    node: BaseNode = json_to_doc(found.metadata[_NODE])
    return node


def allowed(store: MemoryStore, query: VectorStoreQuery) -> Filter | None:
    """A filter for the nodes that a query may find; None allows all."""
    parts: list[Filter] = []
    if query.doc_ids:
        parts.append({SOURCE: {"$in": list(query.doc_ids)}})
    if query.node_ids and not _is_bookkeeping(store, query.node_ids):
        parts.append({_ID: {"$in": list(query.node_ids)}})
    if (condition := core_filter(query.filters)) is not None:
        parts.append(condition)
    return {"$and": parts} if parts else None


def _is_bookkeeping(store: MemoryStore, node_ids: list[str]) -> bool:
    """Whether these ids are not a filter but the ids that an index keeps for a store with texts.

    `VectorStoreIndex.as_retriever` passes the ids that it keeps itself, those of all index and image nodes. As a filter
    they would hide every other node.
    """
    special = store.count({_OWN_IDS: True})
    if not special:
        return False
    wanted: Filter = {_ID: {"$in": list(node_ids)}}
    return special == store.count(wanted) == store.count({**wanted, _OWN_IDS: True})
