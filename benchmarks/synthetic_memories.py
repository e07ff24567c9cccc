"""Synthetic memories with the statistics of a 7B model's memories, for measuring a store. A generator cannot read them.

They imitate the properties that matter to search. Memories have a large common part (the cosine of any two is about
0.57). Their differences have a spectrum that falls as ``1 / (i + 5)`` over all 65,536 directions, so that cosines of
unrelated memories have a standard deviation of about 0.02. Documents are grouped into topics: a question is nearer to
its document than to others of the topic, and these are nearer than documents of other topics.

Each memory depends only on the seed and the number of its document or topic.
Dimensions: n memories, D = n_mem * hidden, S = sqrt(D).
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
_HEAD = 5  # offset of the spectrum 1 / (i + _HEAD)


@dataclass(frozen=True)
class SyntheticMemories:
    """A corpus of any size.

    Attributes:
        count: Number of documents, each of one window.
        n_mem: Memory tokens of a document.
        hidden: Numbers of a token; ``n_mem * hidden`` is a power of four.
        topics: Number of topics, of equal size.
        seed: Seed of the corpus.
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
        """Length D of a memory."""
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
        topic = self._topics[index * 7919 % self.topics]  # consecutive documents have different topics
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
        """Hadamard matrix ``[S, S]`` and signs ``[D]``: together they rotate the axes of the spectrum."""
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
        """The common part of all memories, and the remaining parts ``[n, D]``."""
        vectors = self._common + math.sqrt(1 - _COMMON) * self._rotated(rest)
        return vectors.view(-1, self.n_mem, self.hidden).bfloat16()
