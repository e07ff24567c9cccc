"""Memories and questions as plain vectors, for databases that hold neither tensors nor several windows a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clara_core.retrieval.projection import Projection
from clara_core.retrieval.ranking import unit_rows

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.data.memory import Memory

Array = NDArray[np.float32]


class Dimensioned(Protocol):
    """What makes memories: an engine."""

    @property
    def dimension(self) -> int:
        """Numbers of one window's memory tokens, ``n_mem * hidden``."""


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The vectors of one engine at one length. Arrays are float32 on the processor.

    Attributes:
        engine: Whose memories they are.
        dimensions: Length of projected vectors; None is the full `engine.dimension`.
        seed: Of the projection; vectors are comparable only under the same one.
    """

    engine: Dimensioned
    dimensions: int | None = None
    seed: int = 0

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return self.dimensions or self.engine.dimension

    def questions(self, tokens: Tensor) -> Array:
        """Unit vectors ``[Q, length]`` of the query reasoner's ``[Q, n_mem, hidden]``.

        Raises:
            ValueError: `dimensions` is more than the numbers of a memory.
        """
        return self._unit(unit_rows(tokens))

    def documents(self, memories: Sequence[Memory]) -> Array:
        """Unit vectors ``[M, length]``; a document of several windows has the mean of their directions."""
        if not memories:
            return np.zeros((0, self.length), np.float32)
        return self._unit(torch.stack([unit_rows(memory.tokens).mean(0) for memory in memories]))

    def windows(self, memory: Memory) -> Array:
        """One vector a window, ``[W, length]``; at full length they are the memory tokens themselves."""
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
                f"dimensions={self.dimensions} is more than the {self.engine.dimension} numbers of a memory"
            )
        return _projection(self.engine.dimension, self.dimensions, self.seed).apply(vectors)


@lru_cache(maxsize=8)
def _projection(source: int, target: int, seed: int) -> Projection:
    return Projection(source, target, seed)
