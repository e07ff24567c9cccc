"""Which nodes a query is about, and how two rankings become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from llama_index.core.schema import BaseNode, ImageNode, IndexNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode
from llama_index.core.vector_stores.utils import build_metadata_filter_fn, node_to_metadata_dict

from llama_index_clara._table import Entry
from llama_index_clara._vectors import Array

MODES: Final = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.MMR,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.HYBRID,
)
_POOL = 20  # fewest candidates of either ranking that are fused
_CONSTANT = 60  # of reciprocal rank fusion


def checked_mode(query: VectorStoreQuery) -> VectorStoreQueryMode:
    """The mode of a query.

    Raises:
        ValueError: The store does not offer it.
    """
    mode = VectorStoreQueryMode(query.mode)
    if mode not in MODES:
        raise ValueError(f"ClaraVectorStore has the query modes {', '.join(MODES)}; got {mode.value!r}")
    return mode


def words_of(query: VectorStoreQuery) -> str:
    """The question as text.

    Raises:
        ValueError: The query has none.
    """
    if query.query_str is None:
        raise ValueError("the query needs query_str= (or query_embedding=, in modes that search by vectors)")
    return query.query_str


def filterable(node: BaseNode) -> dict[str, Any]:
    """Metadata as filters see it: what it would be after a round through a file, and the ids of the source."""
    metadata = node_to_metadata_dict(without_object(node), remove_text=True)
    del metadata["_node_content"]
    return metadata


def without_object(node: BaseNode) -> BaseNode:
    """An index node without the query engine or retriever that it points at, which is no data."""
    if isinstance(node, IndexNode) and not isinstance(node.obj, BaseNode | None):
        return node.model_copy(update={"obj": None})
    return node


def passing(entries: Mapping[str, Entry], filters: MetadataFilters | None) -> Callable[[str], bool]:
    """Whether a node passes metadata filters, by LlamaIndex's own rules."""
    return build_metadata_filter_fn(lambda id_: entries[id_].metadata, filters)


def allowed_ids(entries: Mapping[str, Entry], query: VectorStoreQuery) -> set[str] | None:
    """The nodes that a query may find; None is all of them."""
    ids: set[str] | None = None
    if query.node_ids and not _is_bookkeeping(entries, query.node_ids):
        ids = set(query.node_ids) & set(entries)
    if query.doc_ids:
        wanted = set(query.doc_ids)
        ids = {id_ for id_ in (entries if ids is None else ids) if entries[id_].node.ref_doc_id in wanted}
    if query.filters is not None and query.filters.filters:
        passes = passing(entries, query.filters)
        ids = {id_ for id_ in (entries if ids is None else ids) if passes(id_)}
    return ids


def _is_bookkeeping(entries: Mapping[str, Entry], node_ids: list[str]) -> bool:
    """Whether these ids are no filter but what an index remembers of a store that keeps texts.

    `VectorStoreIndex.as_retriever` passes the ids that it keeps itself, which are those of all index and image nodes;
    taken for a filter they would hide every other node.
    """
    known = {id_ for id_ in node_ids if id_ in entries}
    return bool(known) and known == {
        id_ for id_, entry in entries.items() if isinstance(entry.node, IndexNode | ImageNode)
    }


def mmr_balance(query: VectorStoreQuery, options: Mapping[str, Any]) -> float:
    """Share of relevance against novelty: of the call, else of the query, else a half.

    Raises:
        ValueError: It is outside [0, 1].
    """
    given = options.get("mmr_threshold", query.mmr_threshold)
    balance = 0.5 if given is None else float(given)
    if not 0.0 <= balance <= 1.0:
        raise ValueError(f"mmr_threshold must lie in [0, 1], got {given}")
    return balance


Ranking = list[tuple[str, float]]


def fused(
    nearest: Callable[[int], Ranking], matching: Callable[[str, int], Ranking], query: VectorStoreQuery
) -> Ranking:
    """Cosines and words by their ranks; 1 is the first place in both.

    Args:
        nearest: So many ids by their cosine.
        matching: So many ids by the words they share with a question.
        query: What for.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].
    """
    from clara_core.ranking import fuse_ranks

    alpha = 0.5 if query.alpha is None else query.alpha
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1] (0 is words alone, 1 is vectors alone), got {alpha}")
    pool = max(query.similarity_top_k, _POOL)
    rankings = [
        (alpha, nearest(pool)),
        (1 - alpha, matching(words_of(query), query.sparse_top_k or pool)),
    ]
    used = [(weight, [id_ for id_, _ in hits]) for weight, hits in rankings if weight > 0]
    fused_ = fuse_ranks([ids for _, ids in used], [weight for weight, _ in used], _CONSTANT)
    k = query.similarity_top_k if query.hybrid_top_k is None else query.hybrid_top_k
    return [(id_, score * (_CONSTANT + 1)) for id_, score in fused_[:k]]


def vector_of(numbers: list[float], length: int, owner: str, model: str) -> Array:
    """A vector from a list.

    Raises:
        ValueError: It has another length than the store's.
    """
    if len(numbers) != length:
        raise ValueError(
            f"{owner} has a vector of {len(numbers)} numbers, this store holds {length}: embed with ClaraEmbedding "
            f"of the same model ({model}) and dimensions"
        )
    with np.errstate(over="ignore"):  # becomes infinity, which is refused later
        return np.asarray(numbers, np.float32)
