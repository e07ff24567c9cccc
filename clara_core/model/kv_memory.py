"""The memory of the KV cache: one block for the keys and values of all answers, allocated once and divided into pages.

A row owns whole pages, in any order, until its answer ends. So rows join and leave without copies, a row takes no
memory for the length of another, and no number of requests can exceed the bytes that were allocated. The head of a
prompt can outlive its answer, until its pages are needed.
"""

from __future__ import annotations

import heapq
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from clara_core.model.kernels import PAGE

if TYPE_CHECKING:
    from clara_core.model.fixed_steps import FixedSteps

_LINE = 64  # bytes of a CPU cache line; products are fastest on memory that begins at one


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of one position of a row."""

    layers: int  # decoder layers
    kv_heads: int  # key and value heads of each layer
    dim: int  # width of a head
    dtype: torch.dtype  # type of keys and values
    device: torch.device  # device of keys and values

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
    """The pages of one answer in the order of its positions, and the number of positions that are filled."""

    pages: list[int] = field(default_factory=list)
    length: int = 0

    @property
    def room(self) -> int:
        """Number of positions that its pages hold."""
        return len(self.pages) * PAGE


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class KVHead:
    """The first positions of a row whose answer has ended."""

    pages: tuple[int, ...]
    length: int


# keys and values of a head in a layer: ``[kv_heads, length, dim]`` each
ReadHead: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]


class KVMemory:
    """All pages, and the list of those that are free.

    Args:
        shape: Shape of a position.
        pages: Number of pages.
        heads_first: Whether a page is ``[kv_heads, PAGE, dim]``, which plain products read fastest, or
            ``[PAGE, kv_heads, dim]``, which the kernels require.

    Attributes:
        fixed: Decode steps over these pages with fixed buffers; None: each step has its own tensors.

    Raises:
        torch.OutOfMemoryError: A GPU has too little free memory (other devices: `MemoryError` or `RuntimeError`).
    """

    fixed: FixedSteps | None = None

    def __init__(self, shape: KVShape, pages: int, *, heads_first: bool) -> None:
        self.shape = shape
        self.pages = pages
        self.heads_first = heads_first
        # Zeros, because masked positions are read, too, and must be finite.
        if heads_first:
            page = (shape.kv_heads, PAGE, shape.dim)
            self._store = _zeros((shape.layers, 2, pages, *page), shape.dtype, shape.device)
        else:
            block = (shape.layers, 2, pages * PAGE + 1, shape.kv_heads, shape.dim)
            self._by_column = _zeros(block, shape.dtype, shape.device)
            self._store = self._by_column[:, :, :-1].unflatten(2, (pages, PAGE))
        self._layers = [(store[0], store[1]) for store in self._store]
        self._free = list(range(pages))  # a heap: the lowest first, so that used pages stay close together
        self._heads: list[tuple[weakref.ref[KVHead], tuple[int, ...]]] = []  # kept heads and their pages, oldest first

    @property
    def columns(self) -> int:
        """Number of positions in all pages."""
        return self.pages * PAGE

    @property
    def total_bytes(self) -> int:
        """Bytes of all pages."""
        return self.pages * self.shape.page_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that rows hold; those of kept heads can be had at any time."""
        kept = sum(len(pages) for _, pages in self._heads)
        return (self.pages - len(self._free) - kept) * self.shape.page_bytes

    def open(self, columns: int) -> KVRow | None:
        """A row with room for so many positions; None if there are not enough free pages."""
        needed = math.ceil(columns / PAGE)
        if not self._has_free(needed):
            return None
        return KVRow([heapq.heappop(self._free) for _ in range(needed)])

    def grow(self, row: KVRow) -> bool:
        """Add a page to a row; returns False if none is free."""
        if not self._has_free(1):
            return False
        row.pages.append(heapq.heappop(self._free))
        return True

    def _has_free(self, needed: int) -> bool:
        """Whether so many pages are free, if need be those of the oldest kept heads."""
        kept, self._heads = self._heads, []
        for head, pages in kept:  # each is asked once: another thread may drop its last reference at any time
            if head() is None:
                self._release(pages)
            else:
                self._heads.append((head, pages))
        while needed > len(self._free) and self._heads:
            self._release(self._heads.pop(0)[1])
        return needed <= len(self._free)

    def close(self, row: KVRow, *, wipe: bool = False) -> None:
        """Free the pages of a row.

        Args:
            row: The row, which is empty afterwards.
            wipe: Overwrite its pages with zeros, because its values are not finite.
        """
        self._release(row.pages, wipe=wipe)
        row.pages, row.length = [], 0

    def _release(self, pages: Iterable[int], *, wipe: bool = False) -> None:
        for page in pages:
            if wipe:
                self._store[:, :, page].zero_()
            heapq.heappush(self._free, page)

    # --- heads of prompts ----------------------------------------------------------------------------------

    def keep(self, row: KVRow, length: int) -> KVHead:
        """Take the first positions out of a row whose answer has ended; its other pages stay with it.

        They are kept as long as something refers to the head and no row needs its pages.
        """
        count = math.ceil(length / PAGE)
        head = KVHead(tuple(row.pages[:count]), length)
        row.pages = row.pages[count:]
        self._heads.append((weakref.ref(head), head.pages))
        return head

    def read_head(self, head: KVHead) -> ReadHead | None:
        """A function that reads a kept head; None if it is kept no longer, or in another memory."""
        if all(kept() is not head for kept, _ in self._heads):
            return None

        def read(layer: int) -> tuple[Tensor, Tensor]:
            pages = self.both(layer)[:, list(head.pages)]  # [2, pages, …]
            columns = pages.transpose(1, 2).flatten(2, 3) if self.heads_first else pages.flatten(1, 2).transpose(1, 2)
            keys, values = columns[:, :, : head.length]
            return keys, values

        return read

    def drop(self, head: KVHead) -> None:
        """Free the pages of a head and overwrite them with zeros, because a value in them is not finite."""
        if self.read_head(head) is not None:
            self._heads = [kept for kept in self._heads if kept[0]() is not head]
            self._release(head.pages, wipe=True)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[pages, kv_heads, PAGE, dim]`` each if `heads_first`, else
        ``[pages, PAGE, kv_heads, dim]``.
        """
        return self._layers[index]

    def both(self, index: int) -> Tensor:
        """Keys and values of a layer as one, ``[2, pages, …]``."""
        return self._store[index]

    def by_column(self, index: int) -> Tensor:
        """Keys and values of a layer as one, ``[2, columns + 1, kv_heads, dim]``; not if `heads_first`.

        The last column belongs to no page. Rows that only fill up a batch write to it, and it is never read.
        """
        return self._by_column[index]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # The system allocates these zeros when they are first written, so pages that were never used take no memory.
    size = math.prod(shape) * dtype.itemsize
    block = torch.from_numpy(np.zeros(size + _LINE, dtype=np.uint8))
    skipped = -block.data_ptr() % _LINE
    return block[skipped : skipped + size].view(dtype).view(shape)
