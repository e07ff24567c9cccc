"""Keys and values of all answers being written: one block of memory, allocated once, handed out in pages.

A row takes whole pages, in any order, and gives them back when its answer ends: joining and leaving copies nothing,
and no row takes more for the length of another. How many bytes there are is decided once, so that no number of
requests can take more.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clara_core.model.kernels import PAGE

_LINE = 64  # bytes of a cache line, which products like their numbers to begin at


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one position of a row takes.

    Attributes:
        layers: Decoder layers.
        kv_heads: Key and value heads of each.
        dim: Width of a head.
        dtype: Of keys and values.
        device: Where they lie.
    """

    layers: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in all layers."""
        return 2 * self.layers * self.kv_heads * self.dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.position_bytes * PAGE


@dataclass(eq=False, slots=True)
class KVRow:
    """One answer's place: its pages in the order of its positions, and how many positions are filled."""

    pages: list[int] = field(default_factory=list)
    length: int = 0

    @property
    def room(self) -> int:
        """Positions that its pages hold."""
        return len(self.pages) * PAGE


class KVMemory:
    """All pages, and which of them are free.

    Args:
        shape: Of a position.
        pages: How many.
        heads_first: Keep the columns of a head together, as plain products like it, instead of the heads of a column,
            as the kernels want it.

    Raises:
        torch.OutOfMemoryError: The device has not so much (elsewhere `MemoryError` or `RuntimeError`).
    """

    def __init__(self, shape: KVShape, pages: int, *, heads_first: bool) -> None:
        self.shape = shape
        self.pages = pages
        self.heads_first = heads_first
        page = (shape.kv_heads, PAGE, shape.dim) if heads_first else (PAGE, shape.kv_heads, shape.dim)
        # Zeros, since what is masked is read all the same, and must be finite.
        self._store = _zeros((shape.layers, 2, pages, *page), shape.dtype, shape.device)
        self._layers = [(store[0], store[1]) for store in self._store]
        self._free = list(range(pages))  # a heap: the lowest first, so that what is in use stays together

    @property
    def columns(self) -> int:
        """Positions that fit, of one row alone."""
        return self.pages * PAGE

    @property
    def total_bytes(self) -> int:
        """Bytes of all pages."""
        return self.pages * self.shape.page_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that rows hold."""
        return (self.pages - len(self._free)) * self.shape.page_bytes

    def open(self, columns: int) -> KVRow | None:
        """A row with room for so many positions; None while there are not enough free pages."""
        needed = math.ceil(columns / PAGE)
        if needed > len(self._free):
            return None
        return KVRow([heapq.heappop(self._free) for _ in range(needed)])

    def grow(self, row: KVRow) -> bool:
        """One more page for a row; False: none is free."""
        if not self._free:
            return False
        row.pages.append(heapq.heappop(self._free))
        return True

    def close(self, row: KVRow, *, wipe: bool = False) -> None:
        """Take a row's pages back.

        Args:
            row: It holds nothing afterwards.
            wipe: Its numbers were not finite, and must not be left to those who come after it.
        """
        for page in row.pages:
            if wipe:
                self._store[:, :, page].zero_()
            heapq.heappush(self._free, page)
        row.pages, row.length = [], 0

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[pages, kv_heads, PAGE, dim]`` each if `heads_first`, else
        ``[pages, PAGE, kv_heads, dim]``.
        """
        return self._layers[index]

    def both(self, index: int) -> Tensor:
        """Keys and values of a layer as one, ``[2, pages, …]``."""
        return self._store[index]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # The system hands these zeros out page by page as they are written: memory that no row has used takes none.
    size = math.prod(shape) * dtype.itemsize
    block = torch.from_numpy(np.zeros(size + _LINE, dtype=np.uint8))
    skipped = -block.data_ptr() % _LINE
    return block[skipped : skipped + size].view(dtype).view(shape)
