"""Short keys of memories for the first step of a search: the inner product of two keys estimates the cosine.

Dimensions: n windows, Q questions, T memory tokens, H numbers of a token, D = T * H, L numbers of a key.

Memories of one model have a direction c in common. The cosine of unit vectors q and d is ``<q, c> <c, d> + <q', d'>``,
where q' and d' are q and d without their parts along c. The first product is kept exactly. The second is estimated from
a seeded projection ``P`` to L - 1 numbers, whose results are scaled to the true lengths of q' and d'. So the key of u
is ``[<c, u>, P(u')]``, for documents and questions alike, and the error of a score has a standard deviation of about
``|q'| |d'| / sqrt(L)``.

P flips signs, mixes blocks of `_BLOCK` numbers with a Hadamard transform, flips signs again and adds blocks up. This
needs two small matrix products instead of a transform of the whole vector, with the same accuracy.
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
from torch.nn import functional as F

from clara_core.retrieval.projection import hadamard
from clara_core.retrieval.ranking import unit_rows

DEFAULT_LENGTH: Final = 1024

_KIND = "folded-hadamard-2"  # must change whenever the same settings would give other keys
_BLOCK = 64
_NUMBERS = 1 << 21  # numbers of memories projected at a time, so that they stay in the cache
_FEW = 2  # up to this many questions keys are compared without a copy in float32
_SCORED = 1 << 19  # numbers of keys compared at a time


class Key:
    """Makes keys of one length from memories and questions, the same on every machine (up to rounding).

    With ``length >= dimension`` a key is the unit vector itself. `common` is the direction ``[D]`` that memories share,
    see `fitted`. Only keys with equal settings are comparable.

    Raises:
        ValueError: A length is not positive, or the direction has another length.
    """

    def __init__(
        self, dimension: int, length: int = DEFAULT_LENGTH, seed: int = 0, common: Tensor | None = None
    ) -> None:
        if dimension < 1 or length < 2:
            raise ValueError(f"a key needs a dimension of at least 1 and a length of at least 2, "
                             f"got dimension={dimension}, length={length}")  # fmt: skip
        if common is not None and common.shape != (dimension,):
            raise ValueError(f"the common direction must have the shape [{dimension}], got {list(common.shape)}")
        self.dimension, self.seed = dimension, seed
        self.length = min(length, dimension)
        self.exact = length >= dimension
        self._steps = torch.zeros(dimension, dtype=torch.int8) if common is None else _in_bytes(common)
        self._common = F.normalize(self._steps.float(), dim=0)  # c, [D]
        if not self.exact:
            self._fold = _Fold(dimension, self.length - 1, seed)
            self._folded_common = self._fold.apply(self._common[None])  # P(c), [1, L - 1]

    def fitted(self, tokens: Tensor) -> Key:
        """The same key, fitted to the common direction of memories ``[n, T, H]``; a few hundred are enough.

        Any direction gives correct keys; a well fitted one gives more accurate keys.
        """
        if not len(tokens):
            raise ValueError("fitting a key needs at least one memory, got none")
        if self.exact:
            return self
        common = torch.zeros(self.dimension)
        for block in self._blocks(tokens):
            common += unit_rows(block).sum(dim=0)
        return Key(self.dimension, self.length, self.seed, common)

    def documents(self, tokens: Tensor) -> NDArray[np.float16]:
        """Keys ``[n, L]`` of windows ``[n, T, H]``, as they are stored."""
        return self.questions(tokens).astype(np.float16)

    def questions(self, tokens: Tensor) -> NDArray[np.float32]:
        """Keys ``[Q, L]`` of questions ``[Q, T, H]``; their inner products with document keys are the scores."""
        if tokens.ndim < 2 or math.prod(tokens.shape[1:]) != self.dimension:
            raise ValueError(f"this key is for memories of {self.dimension} numbers, got the shape "
                             f"{list(tokens.shape)}")  # fmt: skip
        keys = torch.empty(len(tokens), self.length)
        for block, rows in zip(self._blocks(tokens), keys.split(self._step), strict=True):
            self._write(rows, block.detach().cpu().flatten(1))
        return keys.numpy()

    @staticmethod
    def scores(questions: NDArray[np.float32], documents: NDArray[np.float16]) -> NDArray[np.float32]:
        """Inner products ``[Q, n]`` of keys, within 0.0003 of the products in float32; they estimate the cosines."""
        queries, keys = torch.from_numpy(questions), torch.from_numpy(documents)
        scores = torch.empty(len(queries), len(keys))
        if len(queries) <= _FEW:
            for row, question in zip(scores, queries.half(), strict=True):
                row.copy_(keys @ question)
            return scores.numpy()
        step = max(1, _SCORED // max(1, keys.shape[1]))
        for part, own in zip(scores.split(step, dim=1), keys.split(step), strict=True):
            torch.mm(queries, own.float().T, out=part) if part.is_contiguous() else part.copy_(queries @ own.float().T)
        return scores.numpy()

    def to_json(self) -> str:
        """The settings, from which `from_json` makes the same key; about ``D * 4 / 3`` characters if fitted."""
        fitted = bool(self._steps.any())
        common = base64.b64encode(self._steps.numpy().tobytes()).decode() if fitted else None
        settings = {"kind": _KIND, "dimension": self.dimension, "length": self.length, "seed": self.seed}
        return json.dumps({**settings, "common": common})

    @classmethod
    def from_json(cls, text: str) -> Key:
        """The key whose `to_json` returned this text; ValueError if this version cannot read it."""
        try:
            found: dict[str, Any] = json.loads(text)
            kind, common = found["kind"], found["common"]
            if kind != _KIND:
                raise ValueError(f"keys of the kind {kind!r} are unknown here, {_KIND!r} is known: update clara-rag")
            if common is not None:
                steps = np.frombuffer(base64.b64decode(common, validate=True), np.int8)
                common = torch.from_numpy(steps.astype(np.float32))
            return cls(found["dimension"], found["length"], found["seed"], common)
        except (KeyError, TypeError, json.JSONDecodeError) as exc:
            raise ValueError(f"the settings of a key cannot be read: {exc!r}; they begin {text[:60]!r}") from exc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.dimension, self.length, self.seed))

    @property
    def _step(self) -> int:
        return max(1, _NUMBERS // self.dimension)

    def _blocks(self, tokens: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = tokens.split(self._step)
        return parts

    def _write(self, keys: Tensor, vectors: Tensor) -> None:
        """Write the keys ``[n, L]`` of vectors ``[n, D]`` of any length and type."""
        numbers = vectors.float()
        lengths = numbers.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if self.exact:
            torch.div(numbers, lengths, out=keys)
            return
        along = (numbers @ self._common)[:, None] / lengths  # <c, u>, [n, 1]
        # Projecting bfloat16 in bfloat16 is five times as fast; its rounding is far below the error of P.
        narrow = vectors if vectors.dtype == torch.bfloat16 else numbers
        rest = self._fold.apply(narrow).div_(lengths) - along * self._folded_common
        left = (1 - along.square()).clamp_min(0).sqrt() * (lengths > 1e-12)  # |u'|; zero for a zero vector
        keys[:, :1] = along
        keys[:, 1:] = F.normalize(rest, dim=1).mul_(left)


class _Fold:
    """The projection P from `source` numbers to `target`; it keeps lengths on average, up to a factor."""

    def __init__(self, source: int, target: int, seed: int) -> None:
        self.target = target
        self._source = source
        self._groups = -(-target // _BLOCK)
        step = _BLOCK * self._groups
        self._padded = -(-source // step) * step
        bits = np.frombuffer(hashlib.shake_256(f"clara key {seed}".encode()).digest(-(-self._padded // 4)), np.uint8)
        signs = torch.from_numpy(np.unpackbits(bits)[: 2 * self._padded].astype(np.float32) * 2 - 1)
        first, second = signs.view(2, self._padded)
        self._first, self._second = first.bfloat16(), second.view(-1, self._groups, _BLOCK).bfloat16()
        self._mix = hadamard(torch.eye(_BLOCK))

    def apply(self, vectors: Tensor) -> Tensor:
        """Project ``[n, source]`` in float32 or bfloat16 to ``[n, target]`` in float32."""
        n = len(vectors)
        if self._padded > self._source:
            vectors = F.pad(vectors, (0, self._padded - self._source))
        mixed = (vectors * self._first).view(n * self._padded // _BLOCK, _BLOCK) @ self._mix.to(vectors.dtype)
        blocks = mixed.view(n, *self._second.shape) * self._second  # [n, blocks of a group, groups, B]
        folded: Tensor = blocks.sum(dim=1, dtype=torch.float32).flatten(1)[:, : self.target]
        return folded


def _in_bytes(direction: Tensor) -> Tensor:
    """A direction rounded to bytes. The formula holds for any direction, so rounding does no harm."""
    largest = float(direction.abs().max())
    return (direction * (127 / largest if largest > 0 else 1.0)).round().clamp(-127, 127).to(torch.int8)
