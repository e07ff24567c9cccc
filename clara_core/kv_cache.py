"""A key/value cache in which each row has its own length.

Rows are stored from column 0; a decode step writes each row's new key at that row's own column and masks the rest.
Since rotary positions are baked into the keys, rows of any lengths can be joined into one batch and leave it again
while the others go on: that is all that continuous batching needs. Every decode step has the same shapes for the
same capacity, which is what a captured graph needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

BLOCK = 64  # columns; the capacity grows in whole blocks, so that it changes seldom


def _refused(name: str) -> Callable[..., None]:
    def refuse(self: KVCache, *_: Any, **__: Any) -> None:
        msg = f"KVCache.{name} is not supported: rows have lengths of their own; use `keep` and `join`"
        raise TypeError(msg)

    return refuse


class KVCache(Cache):
    """Keys and values of every layer, ``[rows, kv_heads, capacity, head_dim]`` each.

    Args:
        lengths: ``[rows]``: how many columns of each row the prompt fills.
    """

    def __init__(self, lengths: Tensor) -> None:
        super().__init__(layers=[])
        self.lengths = lengths
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._used = int(lengths.max())
        self._decoding = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def positions(self) -> Tensor:
        """``[rows]``: the rotary position of each row's newest token."""
        return self.lengths - 1

    def advance(self) -> None:
        """Make room for one more token in each row."""
        self._decoding = True
        self.lengths = self.lengths + 1
        self._used += 1
        if self.keys and self._used > self.keys[0].shape[2]:
            self._reserve(self._used)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask ``[rows, 1, 1, used]`` of one decode step."""
        columns = torch.arange(self._used, device=self.lengths.device)
        hidden = columns[None, :] >= self.lengths[:, None]  # [rows, used]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None, :]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns all that its attention should see."""
        if not self._decoding:
            self.keys.append(_grow(key_states, _blocks(self._used)))
            self.values.append(_grow(value_states, _blocks(self._used)))
            return key_states, value_states
        rows = torch.arange(self.rows, device=self.lengths.device)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[rows, :, self.positions] = key_states[:, :, 0]
        values[rows, :, self.positions] = value_states[:, :, 0]
        return keys[:, :, : self._used], values[:, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in use (what transformers asks a cache for)."""
        return self._used if len(self.keys) > layer_idx else 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Width and offset of a causal mask over the prompt, asked for in a prefill only."""
        return self._used, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows, it has no length of its own (what transformers asks a cache for)."""
        return -1

    def join(self, other: KVCache) -> None:
        """Take over the rows of another cache behind this one's."""
        self._used = max(self._used, other._used)
        capacity = max(_blocks(self._used), self.keys[0].shape[2], other.keys[0].shape[2])
        self.lengths = torch.cat([self.lengths, other.lengths])
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, tensor in enumerate(mine):
                mine[layer] = torch.cat([_grow(tensor, capacity), _grow(theirs[layer], capacity)])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        index = torch.tensor(rows, device=self.lengths.device)
        self.lengths = self.lengths[index]
        self._used = int(self.lengths.max())
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor[index]

    # `Cache` would walk over its list of layers, which is empty here, and change nothing without a word.
    crop = _refused("crop")
    reorder_cache = _refused("reorder_cache")
    reset = _refused("reset")
    batch_repeat_interleave = _refused("batch_repeat_interleave")
    batch_select_indices = _refused("batch_select_indices")

    def _reserve(self, columns: int) -> None:
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = _grow(tensor, _blocks(columns))


def _blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK


def _grow(tensor: Tensor, capacity: int) -> Tensor:
    """Pad ``[rows, kv_heads, columns, head_dim]`` with zero columns up to `capacity` (never cuts)."""
    missing = capacity - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor
