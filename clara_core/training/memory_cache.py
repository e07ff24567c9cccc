"""A cache of document memories for stages with a frozen compressor, which need not recompute them at each step."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara_core.training.objective import CHUNK, compress_frozen

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel


class MemoryCache:
    """Memories by the token ids of their windows.

    The first windows given to `keep` are cached until the cache is full, so that a resumed run caches the same ones.
    Other windows are compressed at each step.

    Args:
        model: The model; its compressor must not change.
        room: Size of the cache in bytes of host memory.
    """

    def __init__(self, model: ClaraModel, room: int) -> None:
        self.model = model
        self.most = room // (model.config.n_mem * model.hidden * model.dtype.itemsize)
        self._index: dict[bytes, int] = {}
        self._parts: list[Tensor] = []
        self._kept = torch.empty(0, model.config.n_mem, model.hidden, dtype=model.dtype)
        self._waiting: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._index)

    @property
    def full(self) -> bool:
        """Whether the cache is full."""
        return len(self._index) >= self.most

    def keep(self, sequences: Iterable[list[int]]) -> None:
        """Compress windows and cache their memories until the cache is full."""
        for ids in sequences:
            key = _key(ids)
            if key not in self._index and not self.full:
                self._index[key] = len(self._index)
                self._waiting.append(ids)
                if len(self._waiting) == CHUNK * 8:
                    self._compress()

    def close(self) -> None:
        """Compress the remaining windows after the last `keep`."""
        self._compress()
        if self._parts:
            self._kept = torch.cat(self._parts)
            self._parts = []

    def get(self, sequences: list[list[int]]) -> Tensor:
        """Cached or new memories ``[windows, n_mem, hidden]`` on the model's device."""
        rows = [self._index.get(_key(ids), -1) for ids in sequences]
        memories = self._kept[[max(row, 0) for row in rows]] if len(self._kept) else None
        new = [number for number, row in enumerate(rows) if row < 0]
        if memories is None:
            return compress_frozen(self.model, sequences)
        memories = memories.to(self.model.device)
        if new:
            memories[new] = compress_frozen(self.model, [sequences[number] for number in new])
        return memories

    def _compress(self) -> None:
        if self._waiting:
            self._parts.append(compress_frozen(self.model, self._waiting).cpu())
            self._waiting = []


def _key(ids: list[int]) -> bytes:
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()
