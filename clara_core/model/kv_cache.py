"""The key/value cache of one forward pass: some rows of the KV memory, as transformers wants to see them.

A prompt pass writes the keys of each row to its pages and attends over its own positions alone. A step writes one
position a row and attends over all that the row has; so does a pass over a piece of one long prompt. Since rotary
positions are baked into the keys, rows of any lengths share a step: that is all that continuous batching needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from clara_core.checkpoint.config import Role
from clara_core.model.attention import Gathered, InPages, Products, Ragged
from clara_core.model.devices import upload
from clara_core.model.kernels import PAGE, Kernel
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.paid_attention import Queries


def _refused(name: str) -> Callable[..., None]:
    def refuse(self: KVCache, *_: Any, **__: Any) -> None:
        msg = f"KVCache.{name} is not supported: rows have lengths of their own; open and close them in the KVMemory"
        raise TypeError(msg)

    return refuse


class KVCache(Cache):
    """Rows that take part in one pass.

    Args:
        memory: Where their pages are.
        rows: Each with room for what the pass adds to it.
        role: Whose adapter reads and writes all of them; None: the bare base.
        queries: Takes what the upper layers ask with at the last position of each row.
    """

    def __init__(
        self,
        memory: KVMemory,
        rows: Sequence[KVRow],
        role: Role | None = Role.GENERATOR,
        queries: Queries | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.role = role
        self.queries = queries
        self.memory = memory
        self.rows = rows
        self._write: Callable[[Tensor, Tensor], None] = _unset
        self._write_step: Callable[[Tensor, Tensor], None] = _unset
        self._gather: Gathered | None = None
        self._width = 0  # columns that a mask over this pass would have
        self._stepping = False
        self._lengths: list[int] = []  # of the rows after this pass

    # --- the kinds of pass ---------------------------------------------------------------------------------

    def begin_prompts(self, lengths: Sequence[int], *, packed: bool) -> None:
        """A pass over prompts of these lengths, each from the beginning of its row.

        Args:
            lengths: Positions of each prompt.
            packed: Whether they come as one row of all positions, or as padded rows.
        """
        self._lengths = list(lengths)
        self._width = sum(lengths) if packed else max(lengths)
        self._write_positions(lengths, packed=packed)

    def begin_chunk(self, length: int, kernel: Kernel | None, *, gather: bool) -> tuple[Tensor, Ragged]:
        """A pass over the next positions of the one row's prompt, which sees what the row has before them.

        Args:
            length: How many.
            kernel: For attention over pages, where there is one.
            gather: Attend over copies, whatever else is possible.

        Returns:
            tuple: Rotary ``positions [length]`` on the device, and how to attend.
        """
        [row], device = self.rows, self.memory.shape.device
        self._write_positions([length], packed=True)
        self._stepping = True
        self._lengths = [row.length + length]
        self._width = row.length + length
        most = -(-self._width // PAGE)
        positions = torch.arange(row.length, self._width, device=device)
        table = upload([[*row.pages[:most], self._width]], device)
        return positions, self._reading(table[:, :-1], table[:, -1], kernel, gather, length)

    def _write_positions(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Prepare for so many new positions of each row."""
        places = [_blocks(row, length) for row, length in zip(self.rows, lengths, strict=True)]
        if self.memory.heads_first:
            self._write = lambda target, states: _write_blocks(target, states, places)
            return
        device = self.memory.shape.device
        columns = [page * PAGE + column + at for row in places for page, column, n in row for at in range(n)]
        into = upload(columns, device)
        of = (
            None if packed else upload([i * self._width + at for i, n in enumerate(lengths) for at in range(n)], device)
        )
        self._write = lambda target, states: _write_columns(target, states, into, of)

    def _reading(self, table: Tensor, used: Tensor, kernel: Kernel | None, gather: bool, queries: int = 1) -> Ragged:
        memory = self.memory
        if kernel is not None and not gather:
            return InPages(kernel, table.int(), used.int(), table.shape[1] * PAGE, queries)
        self._gather = Gathered(table, used, self._width, memory.shape.dtype, memory.heads_first, queries)
        return self._gather

    def begin_step(
        self, tokens: Sequence[int] | Tensor, kernel: Kernel | None, *, gather: bool
    ) -> tuple[Tensor, Tensor, Ragged]:
        """A pass that adds one position to each row.

        Args:
            tokens: The newest token of each row; a tensor is on the device.
            kernel: For attention over pages, where there is one.
            gather: Attend over copies, whatever else is possible.

        Returns:
            tuple: ``tokens [rows]`` and their rotary ``positions [rows]`` on the device, and how to attend.
        """
        self._stepping = True
        memory, device = self.memory, self.memory.shape.device
        self._lengths = lengths = [row.length + 1 for row in self.rows]
        self._width = max(lengths)
        most = -(-self._width // PAGE)
        numbers: list[list[int]] = []
        there = isinstance(tokens, Tensor)
        for token, row in zip([0] * len(tokens) if there else tokens, self.rows, strict=True):
            page, column = row.pages[row.length // PAGE], row.length % PAGE
            # Pages that other rows have and this one has not are never read: any will do.
            pages = [*row.pages[:most], *[page] * (most - len(row.pages))]
            numbers.append([token, row.length, page, column, page * PAGE + column, row.length + 1, *pages])
        table = upload(numbers, device)  # all at once: [rows, 6 + most]
        ids, positions, page_of, column_of, into, used = table[:, :6].unbind(1)
        if isinstance(tokens, Tensor):
            ids = tokens

        def write(target: Tensor, states: Tensor) -> None:
            """``states [rows, n, kv_heads, dim]`` into ``target [n, pages, …]``."""
            if memory.heads_first:
                target[:, page_of, :, column_of] = states
            else:
                target.flatten(1, 2).index_copy_(1, into, states.transpose(0, 1))

        self._write_step = write
        self._write = lambda target, states: write(target[None], states[:, None, :, 0])
        ragged: Ragged
        if kernel is None and memory.heads_first and memory.shape.dtype is torch.float32 and not gather:
            ragged = Products([row.pages[: -(-n // PAGE)] for row, n in zip(self.rows, lengths, strict=True)], lengths)
        else:
            ragged = self._reading(table[:, 6:], used, kernel, gather)
        return ids, positions, ragged

    def commit(self) -> None:
        """The pass has ended well: its positions belong to the rows. One that is not committed may be run again."""
        for row, length in zip(self.rows, self._lengths, strict=True):
            row.length = length

    # --- what transformers asks --------------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values ``[rows, kv_heads, length, dim]``; returns what its attention takes:
        the same in a pass over prompts, in a step the pages of the layer or, where they are gathered, copies.
        """
        keys, values = self.memory.layer(layer_idx)
        self._write(keys, key_states)
        self._write(values, value_states)
        if not self._stepping:
            return key_states, value_states
        return self._read(layer_idx)

    def _read(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self.memory.layer(layer)
        return (keys, values) if self._gather is None else (self._gather.copy(keys), self._gather.copy(values))

    def put(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """In a step, a layer's new keys and values together, ``[rows, 2, kv_heads, dim]``; returns what `update` does
        where attention is ours.
        """
        self._write_step(self.memory.both(layer), states)
        return self._read(layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before this pass; what it adds has positions of its own."""
        return self._width - 1 if self._stepping else 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Width and offset of a causal mask over prompts."""
        return self._width, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: rows grow by pages, there is no length of their own."""
        return -1

    # `Cache` would walk over its list of layers, which is empty here, and change nothing without a word.
    crop = _refused("crop")
    reorder_cache = _refused("reorder_cache")
    reset = _refused("reset")
    batch_repeat_interleave = _refused("batch_repeat_interleave")
    batch_select_indices = _refused("batch_select_indices")


def _unset(_target: Tensor, _states: Tensor) -> None:
    raise RuntimeError("a KVCache takes keys only after begin_prompts or begin_step")


def _blocks(row: KVRow, length: int) -> list[tuple[int, int, int]]:
    """Where the next positions of a row go: ``(page, first column, how many)``."""
    end = row.length + length
    starts = [row.length, *range(row.length - row.length % PAGE + PAGE, end, PAGE)]
    return [(row.pages[at // PAGE], at % PAGE, min(end, at - at % PAGE + PAGE) - at) for at in starts]


def _write_blocks(target: Tensor, states: Tensor, places: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    """``states [rows, kv_heads, length, dim]`` or, packed, ``[1, kv_heads, total, dim]`` into
    ``target [pages, kv_heads, PAGE, dim]``.
    """
    packed, before = len(states) == 1, 0
    for index, blocks in enumerate(places):
        row = states[0 if packed else index]
        before = before if packed else 0
        for page, column, count in blocks:
            target[page, :, column : column + count] = row[:, before : before + count]
            before += count


def _write_columns(target: Tensor, states: Tensor, into: Tensor, of: Tensor | None) -> None:
    """``states [rows, kv_heads, length, dim]`` into ``target [pages, PAGE, kv_heads, dim]``."""
    columns = states.transpose(1, 2).flatten(0, 1)  # [rows * length, kv_heads, dim]
    target.flatten(0, 1).index_copy_(0, into, columns if of is None else columns[of])
