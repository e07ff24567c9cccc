"""Shorter vectors with the same angles: a seeded orthogonal projection, for stores that take no long ones.

A flattened memory of a 7B model has 65,536 numbers; Qdrant, Milvus or pgvector hold fewer. `Projection` maps it onto
`target` orthonormal directions that follow from the seed alone. They are rows of a randomized Hadamard transform
(Ailon and Chazelle, 2006), so that nothing the size of ``source * target`` is ever made.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 2  # of signs and transform: after two, even a vector of a single number is spread over all directions
_BLOCK = 1 << 24  # numbers that are transformed at a time: 64 MB


class Projection:
    """From `source` numbers to `target`, the same ones on every machine and in every version.

    Cosines are kept up to an error whose standard deviation `standard_error` tells: 0.03 at 1,024 numbers for vectors
    at a right angle, and less the more alike they are. With ``target == source`` nothing is changed.

    Args:
        source: Length of the vectors.
        target: Length of the projected ones, at most `source`.
        seed: Of the directions; vectors are comparable only under the same seed and lengths.

    Raises:
        ValueError: A length is not positive, or `target` is larger than `source`.
    """

    def __init__(self, source: int, target: int, seed: int = 0) -> None:
        if not 1 <= target <= source:
            msg = f"a projection of {source} numbers may keep 1 to {source} of them, got target={target}"
            raise ValueError(msg)
        self.source, self.target, self.seed = source, target, seed
        self._padded = 1 << (source - 1).bit_length()  # N, a power of two
        stream = _random_bytes(seed, _ROUNDS * self._padded // 8 + 1 + 8 * self._padded)
        n_bits = _ROUNDS * self._padded
        bits = np.unpackbits(np.frombuffer(stream, np.uint8, n_bits // 8 + 1))[:n_bits]
        self._signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1).view(_ROUNDS, self._padded)
        order = np.frombuffer(stream, "<u8", self._padded, offset=n_bits // 8 + 1)
        self._rows = torch.from_numpy(np.sort(np.argsort(order, kind="stable")[:target]))
        self._scale = math.sqrt(self._padded / target)

    def apply(self, vectors: Tensor) -> Tensor:
        """Project vectors ``[n, source]`` of any type and device to ``[n, target]`` in float32.

        Lengths are kept on average; normalize afterwards where a store compares by inner product.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.source:
            msg = f"vectors must have the shape [n, {self.source}], got {list(vectors.shape)}"
            raise ValueError(msg)
        if self.target == self.source:
            return vectors.float()
        step = max(1, _BLOCK // self._padded)
        blocks = [self._project(block.float()) for block in vectors.split(step)]
        return torch.cat(blocks) if blocks else vectors.new_zeros(0, self.target, dtype=torch.float32)

    def standard_error(self, cosine: float = 0.0) -> float:
        """Standard deviation of a projected cosine around the true one."""
        if self.target == self.source:
            return 0.0
        return (1 - cosine**2) * math.sqrt((1 - self.target / self._padded) / self.target)

    def _project(self, vectors: Tensor) -> Tensor:
        rows = torch.nn.functional.pad(vectors, (0, self._padded - self.source))  # [n, N]
        for signs in self._signs.to(vectors.device):
            rows = hadamard(rows * signs)
        return rows[:, self._rows.to(vectors.device)] * self._scale


def hadamard(rows: Tensor) -> Tensor:
    """Walsh-Hadamard transform of each row ``[n, N]``, N a power of two, scaled to keep lengths.

    Sums and differences alone, so that every machine rounds alike.
    """
    n, length = rows.shape
    half = 1
    while half < length:
        pairs = rows.view(n, length // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack((first + second, first - second), dim=2).view(n, length)
        half *= 2
    return rows / math.sqrt(length)


def _random_bytes(seed: int, count: int) -> bytes:
    """Bytes that follow from the seed alone, unlike those of a library's generator."""
    return hashlib.shake_256(f"clara projection {seed}".encode()).digest(count)
