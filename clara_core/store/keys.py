"""Short keys of memories for the first step of a search: an inner product of keys is nearly the cosine of memories.

Letters of shapes: n windows, Q questions, T memory tokens, H numbers of a token, D = T * H, L numbers of a key.

Every cosine of unit vectors q and d is ``<q - m, d - m> + <q, m> + <m, d> - <m, m>``, for any m. Memories of one model
have much in common; with m their common mean, only the first term has to be estimated, and it is a product of short
vectors: its error is small. It is estimated from a seeded projection ``P`` to L - 1 numbers, whose result is given the
true length of ``d - m`` again. So the key of a document is ``[P(d - m), <m, d>]``, that of a question
``[P(q - m), 1]``, and a question's ``<q, m> - <m, m>``, the same for all documents, is added only where scores are
shown.

P turns signs, mixes blocks of `_BLOCK` numbers by a Hadamard transform, turns signs again and adds up blocks: a
product of matrices, an order of magnitude cheaper than the transform of the whole vector, and as good.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.ranking import unit_rows

__all__ = ["DEFAULT_LENGTH", "Key"]

DEFAULT_LENGTH: Final = 1024

_KIND = "folded-hadamard-1"  # changes whenever the same settings would give other keys
_BLOCK = 256
_ROWS = 16  # windows that are projected at a time: more leave the cache and take twice as long


class Key:
    """Makes keys of one length from memories and questions, the same ones on every machine.

    Args:
        dimension: D.
        length: L; with ``length >= dimension`` a key is the unit vector itself.
        seed: Of the projection; keys are comparable only under equal settings.
        mean: ``[D]``, the common mean of unit vectors; None for none. See `fitted`.

    Raises:
        ValueError: A length is not positive, or the mean has another length.
    """

    def __init__(self, dimension: int, length: int = DEFAULT_LENGTH, seed: int = 0, mean: Tensor | None = None) -> None:
        if dimension < 1 or length < 2:
            raise ValueError(f"a key needs a dimension of at least 1 and a length of at least 2, "
                             f"got dimension={dimension}, length={length}")  # fmt: skip
        if mean is not None and mean.shape != (dimension,):
            raise ValueError(f"the mean must have the shape [{dimension}], got {list(mean.shape)}")
        self.dimension, self.seed = dimension, seed
        self.length = min(length, dimension)
        self.exact = length >= dimension
        self._mean_bytes, self._mean_scale = _pack(torch.zeros(dimension) if mean is None else mean)
        self._mean = torch.from_numpy(self._mean_bytes.astype(np.float32)) * self._mean_scale  # m, [D]
        self._mean_square = float(self._mean.double().square().sum())  # <m, m>
        if not self.exact:
            self._fold = _Fold(dimension, self.length - 1, seed)
            self._folded_mean = self._fold.apply(self._mean[None])  # [1, L - 1]

    def fitted(self, tokens: Tensor) -> Key:
        """The same key around the common mean of memories ``[n, T, H]``; a few hundred are enough.

        Of a single one it takes half, since that one is not the mean of the next.
        """
        if not len(tokens):
            raise ValueError("a mean needs at least one memory, got none")
        if self.exact:
            return self
        mean = torch.zeros(self.dimension)
        for block in tokens.split(_ROWS):
            mean += unit_rows(block).sum(dim=0)
        return Key(self.dimension, self.length, self.seed, mean / (len(tokens) + 1))

    def documents(self, tokens: Tensor) -> NDArray[np.float16]:
        """Keys ``[n, L]`` of windows ``[n, T, H]``."""
        keys = np.empty((len(tokens), self.length), np.float16)
        for start in range(0, len(tokens), _ROWS):
            units = self._units(tokens[start : start + _ROWS])
            rows = keys[start : start + _ROWS]
            if self.exact:
                rows[:] = units.numpy()
                continue
            shared = units @ self._mean  # <m, d>
            rows[:, :-1] = self._centred(units, shared).numpy()
            rows[:, -1] = shared.numpy()
        return keys

    def questions(self, tokens: Tensor) -> NDArray[np.float32]:
        """Keys ``[Q, L]`` of questions ``[Q, T, H]``: their inner products with documents' keys order the documents."""
        units = self._units(tokens)
        if self.exact:
            return np.ascontiguousarray(units.numpy())
        keys = self._centred(units, units @ self._mean)
        return torch.cat([keys, torch.ones(len(keys), 1)], dim=1).numpy()

    def offsets(self, tokens: Tensor) -> NDArray[np.float32]:
        """What is missing from the inner products to the cosine, ``[Q]``: ``<q, m> - <m, m>``."""
        return (self._units(tokens) @ self._mean - self._mean_square).numpy()

    @staticmethod
    def scores(questions: NDArray[np.float32], documents: NDArray[np.float16]) -> NDArray[np.float32]:
        """Inner products ``[Q, n]`` of keys: nearly the cosines, less the `offsets`."""
        scores: NDArray[np.float32] = questions @ documents.astype(np.float32).T
        return scores

    def to_json(self) -> str:
        """All that makes the same keys again; ``D * 4 / 3`` characters where there is a mean."""
        centred = bool(self._mean_bytes.any())
        mean = {"scale": self._mean_scale, "int8": base64.b64encode(self._mean_bytes.tobytes()).decode()}
        settings = {"kind": _KIND, "dimension": self.dimension, "length": self.length, "seed": self.seed}
        return json.dumps({**settings, "mean": mean if centred else None})

    @classmethod
    def from_json(cls, text: str) -> Key:
        """The key that wrote this.

        Raises:
            ValueError: It is not readable, or of a kind that this version does not know.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            kind = found["kind"]
            if kind != _KIND:
                raise ValueError(f"keys of the kind {kind!r} are unknown here, {_KIND!r} is known: update clara-rag")
            mean = None
            if found["mean"] is not None:
                steps = np.frombuffer(base64.b64decode(found["mean"]["int8"], validate=True), np.int8)
                mean = torch.from_numpy(steps.astype(np.float32)) * found["mean"]["scale"]
            return cls(found["dimension"], found["length"], found["seed"], mean)
        except (KeyError, TypeError, json.JSONDecodeError) as exc:
            raise ValueError(f"the settings of a key cannot be read: {exc!r}; they begin {text[:60]!r}") from exc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.dimension, self.length, self.seed))

    def _units(self, tokens: Tensor) -> Tensor:
        if tokens.ndim < 2 or math.prod(tokens.shape[1:]) != self.dimension:
            raise ValueError(f"this key is for memories of {self.dimension} numbers, got the shape "
                             f"{list(tokens.shape)}")  # fmt: skip
        return unit_rows(tokens.detach().cpu())

    def _centred(self, units: Tensor, shared: Tensor) -> Tensor:
        """``P(u - m)`` with the length of ``u - m``, ``[n, L - 1]``."""
        projected = self._fold.apply(units) - self._folded_mean
        squares = units.square().sum(dim=1) - 2 * shared + self._mean_square  # |u - m|^2; a zero vector has no unit
        lengths = squares.clamp_min(0).sqrt()
        return torch.nn.functional.normalize(projected, dim=1) * lengths[:, None]


class _Fold:
    """The projection P from `source` numbers to `target`; lengths are kept on average."""

    def __init__(self, source: int, target: int, seed: int) -> None:
        self.target = target
        block = _BLOCK
        self._groups = -(-target // block)
        step = block * self._groups
        self._padded = -(-source // step) * step
        self._block = block
        bits = np.frombuffer(hashlib.shake_256(f"clara key {seed}".encode()).digest(-(-self._padded // 4)), np.uint8)
        signs = torch.from_numpy(np.unpackbits(bits)[: 2 * self._padded].astype(np.float32) * 2 - 1)
        self._first, second = signs.view(2, self._padded)
        self._second = second.view(-1, self._groups, block)
        self._mix = _hadamard_matrix(block)
        self._source = source

    def apply(self, vectors: Tensor) -> Tensor:
        """``[n, source]`` to ``[n, target]``."""
        n = len(vectors)
        if self._padded > self._source:
            vectors = torch.nn.functional.pad(vectors, (0, self._padded - self._source))
        mixed = (vectors * self._first).view(-1, self._block) @ self._mix  # [n * blocks, B]
        blocks = mixed.view(n, -1, self._groups, self._block) * self._second
        return blocks.sum(dim=1).view(n, -1)[:, : self.target]


def _hadamard_matrix(size: int) -> Tensor:
    """Orthogonal, of ``+-1 / sqrt(size)``; `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _pack(mean: Tensor) -> tuple[NDArray[np.int8], float]:
    """A mean in a byte a number. Any m is exact in the formula, so its rounding costs nothing."""
    largest = float(mean.abs().max())
    scale = largest / 127 if largest > 0 else 1.0
    return (mean / scale).round().clamp(-127, 127).to(torch.int8).numpy(), scale
