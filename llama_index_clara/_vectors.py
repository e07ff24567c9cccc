"""Memory tokens as vectors: flattened, or projected to fewer numbers. Arrays are float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core import Engine, Memory
    from clara_core.retrieval.projection import Projection

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The vectors of one engine at one length.

    Attributes:
        engine: Whose memories they are.
        dimensions: Length of projected vectors; None is the full `engine.dimension`.
    """

    engine: Engine
    dimensions: int | None = None

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return self.dimensions or self.engine.dimension

    def questions(self, tokens: Tensor) -> Array:
        """Unit vectors ``[Q, length]`` of the query reasoner's ``[Q, n_mem, hidden]``."""
        from clara_core.retrieval.ranking import unit_rows

        return _unit(self._projected(unit_rows(tokens)))

    def documents(self, memories: Sequence[Memory]) -> Array:
        """Unit vectors ``[M, length]``; a document of several windows has the mean of their directions."""
        import torch

        from clara_core.retrieval.ranking import unit_rows

        if not memories:
            return np.zeros((0, self.length), np.float32)
        means = torch.stack([unit_rows(memory.tokens).mean(0) for memory in memories])
        return _unit(self._projected(means))

    def windows(self, memory: Memory) -> Array:
        """One vector a window, ``[W, length]``; at full length they are the memory tokens themselves."""
        if self.dimensions is None:
            tokens: Array = memory.tokens.flatten(1).float().numpy()
            return tokens
        from clara_core.retrieval.ranking import unit_rows

        return self._projected(unit_rows(memory.tokens)).numpy()

    def _projected(self, vectors: Tensor) -> Tensor:
        if self.dimensions is None:
            return vectors
        return _projection(self.engine.dimension, self.dimensions).apply(vectors)


@lru_cache(maxsize=8)
def _projection(source: int, target: int) -> Projection:
    from clara_core.retrieval.projection import Projection

    return Projection(source, target)


def _unit(vectors: Tensor) -> Array:
    import torch

    rows: Array = torch.nn.functional.normalize(vectors, dim=1).numpy()
    return rows
