"""A cache of document memories for stages with a frozen compressor, which need not recompute them at each step."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara_core.training.objective import CHUNK, compress_frozen

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel


class MemoryCache:
    """Memories by the token ids of their windows.

    The first windows are cached that fit, so that a resumed run caches the same ones. Other windows are compressed at
    each step.

    Args:
        model: The model; its compressor must not change.
        room: Size of the cache in bytes of host memory.
        sequences: Token ids of the windows, read until the cache is full.
    """

    def __init__(self, model: ClaraModel, room: int, sequences: Iterable[list[int]]) -> None:
        self.model = model
        self._index: dict[bytes, int] = {}
        most = room // (model.config.n_mem * model.hidden * model.dtype.itemsize)
        fresh = islice(self._fresh(sequences), most)
        parts = [torch.empty(0, model.config.n_mem, model.hidden, dtype=model.dtype)]
        while chunk := list(islice(fresh, CHUNK * 8)):
            parts.append(compress_frozen(model, chunk).cpu())
        self._kept = torch.cat(parts)  # [cached windows, n_mem, hidden]

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, sequences: list[list[int]]) -> Tensor:
        """Cached or new memories ``[windows, n_mem, hidden]`` on the model's device."""
        if not len(self):
            return compress_frozen(self.model, sequences)
        rows = [self._index.get(_key(ids), -1) for ids in sequences]
        memories = self._kept[[max(row, 0) for row in rows]].to(self.model.device)
        if new := [number for number, row in enumerate(rows) if row < 0]:
            memories[new] = compress_frozen(self.model, [sequences[number] for number in new])
        return memories

    def _fresh(self, sequences: Iterable[list[int]]) -> Iterator[list[int]]:
        """Each distinct window once, with its row in the cache entered in the index."""
        for ids in sequences:
            key = _key(ids)
            if key not in self._index:
                self._index[key] = len(self._index)
                yield ids


def _key(ids: list[int]) -> bytes:
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()
