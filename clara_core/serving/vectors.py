"""Memories as vectors of any length: what the components of both frameworks make, made on the server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara_core.retrieval.projection import Projection
from clara_core.retrieval.ranking import unit_rows

if TYPE_CHECKING:
    from clara_core.data.memory import Memory


def document_vectors(memories: Sequence[Memory], length: int) -> Tensor:
    """Unit vectors ``[M, length]`` in float32; a document of several windows has the mean of their directions."""
    return _shortened(torch.stack([unit_rows(memory.tokens).mean(0) for memory in memories]), length)


def question_vectors(tokens: Tensor, length: int) -> Tensor:
    """Unit vectors ``[Q, length]`` in float32 of the query reasoner's ``[Q, n_mem, hidden]``."""
    return _shortened(unit_rows(tokens), length)


def _shortened(vectors: Tensor, length: int) -> Tensor:
    source = vectors.shape[1]
    if length < source:
        vectors = _projection(source, length).apply(vectors)
    return torch.nn.functional.normalize(vectors, dim=1)


@lru_cache(maxsize=8)
def _projection(source: int, target: int) -> Projection:
    return Projection(source, target)
