"""Memories and questions as plain vectors, for databases that store one vector a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.retrieval.projection import Projection
from clara_core.retrieval.ranking import unit_rows

Array = NDArray[np.float32]


class Dimensioned(Protocol):
    """The part of an engine that a vector space needs."""

    @property
    def dimension(self) -> int:
        """Dimensions of a window's flattened memory tokens, ``n_mem * hidden``."""


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The vectors of one engine, optionally projected. Arrays are float32."""

    engine: Dimensioned
    dimensions: int | None = None  # of projected vectors; None for the full `engine.dimension`
    seed: int = 0  # of the projection; only vectors with the same seed are comparable

    @property
    def length(self) -> int:
        """Dimensions of a vector."""
        return self.dimensions or self.engine.dimension

    def questions(self, tokens: Tensor) -> Array:
        """Unit vectors ``[Q, length]`` of the query reasoner's tokens ``[Q, n_mem, hidden]``.

        Raises:
            ValueError: `dimensions` exceeds `engine.dimension`.
        """
        return self._unit(unit_rows(tokens))

    def documents(self, memories: Sequence[Memory]) -> Array:
        """Unit vectors ``[M, length]``; a document has the normalized mean of its windows' unit vectors."""
        if not memories:
            return np.zeros((0, self.length), np.float32)
        return self._unit(torch.stack([unit_rows(memory.tokens).mean(0) for memory in memories]))

    def windows(self, memory: Memory) -> Array:
        """One vector a window, ``[W, length]``; without projection these are the flattened memory tokens."""
        if self.dimensions is None:
            return memory.vectors()
        projected: Array = self._projected(unit_rows(memory.tokens)).numpy()
        return projected

    def _unit(self, vectors: Tensor) -> Array:
        rows: Array = torch.nn.functional.normalize(self._projected(vectors), dim=1).numpy()
        return rows

    def _projected(self, vectors: Tensor) -> Tensor:
        if self.dimensions is None:
            return vectors
        if self.dimensions > self.engine.dimension:
            raise ValueError(
                f"dimensions={self.dimensions} must be at most {self.engine.dimension}, the dimensions of a memory"
            )
        return _projection(self.engine.dimension, self.dimensions, self.seed).apply(vectors)


_projection = lru_cache(maxsize=8)(Projection)
