"""Reads the mode, the text, the vector and the options of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

if TYPE_CHECKING:
    from clara_core.retrieval.vectors import Array

_POOL: Final = 20  # fewest nodes that MMR chooses from
_WIDER: Final = 4  # nodes that MMR chooses from, for each node to choose
MODES: Final = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.MMR,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.HYBRID,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a search for a query.

    Attributes:
        mode: Mode of the search.
        k: Number of nodes to find.
        text_weight: Weight of the words in ``hybrid``; None is the store's default.
        mmr_threshold: Threshold of maximal marginal relevance, if it chooses the nodes.
        fused: Whether scores are relevances in [0, 1].
        rerank: How many of the best documents of a search by memory and words are ranked again.
    """

    mode: Literal["memory", "text", "hybrid"]
    k: int
    text_weight: float | None = None
    mmr_threshold: float | None = None
    fused: bool = False
    rerank: int = 0

    @classmethod
    def of(cls, query: VectorStoreQuery, options: Mapping[str, Any]) -> Plan:
        """The options for a query.

        Raises:
            ValueError: The mode is not supported, or a weight is outside [0, 1].
        """
        mode = VectorStoreQueryMode(query.mode)
        if mode not in MODES:
            raise ValueError(f"ClaraVectorStore has the query modes {', '.join(MODES)}; got {mode.value!r}")
        rerank = options.get("rerank", 0)
        if mode is VectorStoreQueryMode.TEXT_SEARCH:
            return cls("text", query.similarity_top_k)
        if mode is VectorStoreQueryMode.MMR:
            k = query.similarity_top_k
            return cls("memory", max(_POOL, _WIDER * k) if k else 0, mmr_threshold=_mmr_threshold(query, options))
        if mode is VectorStoreQueryMode.DEFAULT:
            return cls("hybrid" if query.query_str else "memory", query.similarity_top_k, rerank=rerank)
        alpha = query.alpha
        if alpha is not None and not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1] (0 is words only, 1 is vectors only), got {alpha}")
        k = query.similarity_top_k if query.hybrid_top_k is None else query.hybrid_top_k
        if alpha in (0.0, 1.0):
            return cls("text" if alpha == 0.0 else "memory", k, fused=True)
        return cls("hybrid", k, None if alpha is None else 1 - alpha, fused=True, rerank=rerank)


def words_of(query: VectorStoreQuery) -> str:
    """The question as text.

    Raises:
        ValueError: The query has no text.
    """
    if query.query_str is None:
        raise ValueError("the query needs query_str= (or query_embedding=, in modes that search by vectors)")
    return query.query_str


def _mmr_threshold(query: VectorStoreQuery, options: Mapping[str, Any]) -> float:
    """Weight of relevance against novelty: that of the call, else of the query, else 0.5."""
    given = options.get("mmr_threshold", query.mmr_threshold)
    mmr_threshold = 0.5 if given is None else float(given)
    if not 0.0 <= mmr_threshold <= 1.0:
        raise ValueError(f"mmr_threshold must lie in [0, 1], got {given}")
    return mmr_threshold


def vector_of(numbers: Sequence[float], length: int, owner: str, model: str) -> Array:
    """A vector from a list.

    Raises:
        ValueError: Its length differs from the store's, or it is zero or not finite in float32.
    """
    if len(numbers) != length:
        raise ValueError(
            f"{owner} has a vector of {len(numbers)} numbers, this store holds {length}: embed with ClaraEmbedding "
            f"of the same model ({model}) and dimensions, or give the store dimensions={len(numbers)} to keep vectors "
            "of another embedding"
        )
    with np.errstate(over="ignore"):
        vector = np.asarray(numbers, np.float32)
    if not np.isfinite(vector).all():
        raise ValueError(f"{owner} has a vector with NaN or infinity, or numbers too large for float32")
    if not vector.any():
        raise ValueError(f"{owner} has a zero vector, which has no direction")
    return vector
