"""Memories like those of a 7B model, made without one: for measuring a store, not for reading.

What is known of such memories and matters to a search is imitated: they have much in common (the cosine of any two is
about 0.57), they differ along many directions of which few matter most (a spectrum that falls as ``1 / (i + 5)``
over all 65,536; the cosines of strangers then have a standard deviation of about 0.02), and documents lie in topics.
A question is nearer to its document than to the others of the topic, and these are nearer than strangers.

Everything follows from the seed and the number of a document or topic; nothing needs what came before it.
Letters of shapes: n memories, D = n_mem * hidden, S = sqrt(D).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_COMMON = 0.57  # share of the squared length that all memories have in common
_TOPIC = 0.5  # share of the rest that a topic has in common
_QUESTION = 0.5  # share of a question's rest that is its document's
_HEAD = 5  # of the spectrum 1 / (i + _HEAD)


@dataclass(frozen=True)
class SyntheticMemories:
    """A corpus of any size.

    Attributes:
        count: Documents, each of one window.
        n_mem: Memory tokens of a document.
        hidden: Numbers of a token; ``n_mem * hidden`` is a power of four.
        topics: What documents fall into, evenly.
        seed: Of everything.
    """

    count: int
    n_mem: int = 16
    hidden: int = 4096
    topics: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if math.isqrt(self.dimension) ** 2 != self.dimension or self.dimension & (self.dimension - 1):
            raise ValueError(f"n_mem * hidden must be a power of four, got {self.n_mem} * {self.hidden}")

    @property
    def dimension(self) -> int:
        """D."""
        return self.n_mem * self.hidden

    def documents(self, start: int, stop: int) -> Tensor:
        """The memories from `start` to before `stop` in bfloat16, ``[n, n_mem, hidden]``."""
        return self._placed(torch.stack([self._document(index) for index in range(start, stop)]))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All memories in order."""
        for start in range(0, self.count, size):
            yield self.documents(start, min(start + size, self.count))

    def questions(self, documents: Sequence[int]) -> Tensor:
        """A question about each of these documents, in bfloat16, ``[n, n_mem, hidden]``."""
        own = torch.stack([self._noise("question", index) for index in documents])
        about = torch.stack([self._document(index) for index in documents])
        return self._placed(math.sqrt(_QUESTION) * about + math.sqrt(1 - _QUESTION) * own)

    def _document(self, index: int) -> Tensor:
        topic = self._topics[index * 7919 % self.topics]  # neighbours in order are no neighbours in topic
        return math.sqrt(_TOPIC) * topic + math.sqrt(1 - _TOPIC) * self._noise("document", index)

    def _noise(self, kind: str, index: int) -> Tensor:
        """A normal vector ``[D]`` of expected length 1 with the spectrum."""
        kinds = ("common", "topic", "document", "question")
        stream = np.random.Generator(np.random.SFC64([self.seed, kinds.index(kind), index]))
        return torch.from_numpy(stream.standard_normal(self.dimension, np.float32)) * self._spectrum

    @cached_property
    def _topics(self) -> list[Tensor]:
        return [self._noise("topic", index) for index in range(self.topics)]

    @cached_property
    def _spectrum(self) -> Tensor:
        variances = 1 / (torch.arange(self.dimension) + _HEAD)
        return (variances / variances.sum()).sqrt()

    @cached_property
    def _common(self) -> Tensor:
        common = self._rotated(self._noise("common", 0)[None])[0]
        return common * math.sqrt(_COMMON / float(common.square().sum()))

    @cached_property
    def _transform(self) -> tuple[Tensor, Tensor]:
        """Hadamard matrix ``[S, S]`` and signs ``[D]``: together they hide the axes of the spectrum."""
        side = math.isqrt(self.dimension)
        matrix = torch.ones(1, 1)
        while len(matrix) < side:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        signs = torch.randint(0, 2, (self.dimension,), generator=torch.Generator().manual_seed(self.seed)) * 2.0 - 1
        return matrix / math.sqrt(side), signs

    def _rotated(self, vectors: Tensor) -> Tensor:
        matrix, signs = self._transform
        side = len(matrix)
        squares = vectors.view(-1, side, side)
        return (matrix @ (squares @ matrix)).view(len(vectors), -1) * signs

    def _placed(self, rest: Tensor) -> Tensor:
        """The part that all have in common, and the rest ``[n, D]`` around it."""
        vectors = self._common + math.sqrt(1 - _COMMON) * self._rotated(rest)
        return vectors.view(-1, self.n_mem, self.hidden).bfloat16()
