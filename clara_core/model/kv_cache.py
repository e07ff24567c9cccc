"""The rows of the KV memory that take part in one forward pass, as a cache for transformers.

A prompt pass writes keys and values to the pages of each row and attends only over its own positions. A decode step
writes one position a row and attends over all positions of the row, and so does a pass over a piece of one long prompt.
Keys include their rotary positions, so rows of any lengths can share a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from clara_core.model.attention import Gathered, InPages, Products, Ragged
from clara_core.model.checkpoint.config import Role
from clara_core.model.devices import upload
from clara_core.model.kernels import PAGE, Kernel
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.paid_attention import Queries

if TYPE_CHECKING:
    from clara_core.model.fixed_steps import StepBuffers


def _refused(name: str) -> Callable[..., None]:
    def refuse(self: KVCache, *_: Any, **__: Any) -> None:
        msg = f"KVCache.{name} is not supported: rows have different lengths; open and close them in the KVMemory"
        raise TypeError(msg)

    return refuse


class KVCache(Cache):
    """Rows that take part in one pass.

    Args:
        memory: The memory of their pages.
        rows: Rows with room for the positions that the pass adds.
        role: Role whose adapter is used for all rows; None: the base decoder without adapters.
        queries: Records the attention queries at the last position of each row; None: they are not recorded.
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
        self._write_step: Callable[[int, Tensor], None] = _unset
        self._gather: Gathered | None = None
        self._width = 0  # columns of a mask over this pass
        self._stepping = False
        self._lengths: list[int] = []  # lengths of the rows after this pass

    # --- the kinds of pass ---------------------------------------------------------------------------------

    def begin_prompts(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Prepare a pass over prompts of these lengths, each from the beginning of its row.

        Args:
            lengths: Positions of each prompt.
            packed: Whether the prompts are packed in one row, or padded.
        """
        self._lengths = list(lengths)
        self._width = sum(lengths) if packed else max(lengths)
        self._write_positions(lengths, packed=packed)

    def begin_chunk(self, length: int, kernel: Kernel | None, *, gather: bool) -> tuple[Tensor, Ragged]:
        """Prepare a pass over the next positions of a single row, which attend over the earlier ones, too.

        Args:
            length: Number of positions.
            kernel: Kernel for attention over pages, if there is one.
            gather: Attend over copies, even if there is a kernel.

        Returns:
            tuple: Rotary ``positions [length]`` on the device, and the attention.
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
        """Prepare to write so many new positions of each row."""
        places = [_blocks(row, length) for row, length in zip(self.rows, lengths, strict=True)]
        if self.memory.heads_first:
            self._write = lambda target, states: _write_blocks(target, states, places)
            return
        device = self.memory.shape.device
        columns = [page * PAGE + column + at for row in places for page, column, n in row for at in range(n)]
        into = upload(columns, device)
        source = None
        if not packed:
            source = upload([i * self._width + at for i, n in enumerate(lengths) for at in range(n)], device)
        self._write = lambda target, states: _write_columns(target, states, into, source)

    def _reading(self, table: Tensor, used: Tensor, kernel: Kernel | None, gather: bool, queries: int = 1) -> Ragged:
        memory = self.memory
        if kernel is not None and not gather:
            return InPages(kernel, table.int(), used.int(), table.shape[1] * PAGE, queries)
        self._gather = Gathered(table, used, self._width, memory.shape.dtype, memory.heads_first, queries)
        return self._gather

    def begin_step(
        self, tokens: Sequence[int] | Tensor, kernel: Kernel | None, *, gather: bool
    ) -> tuple[Tensor, Tensor, Ragged]:
        """Prepare a decode step, which adds one position to each row.

        Args:
            tokens: The newest token of each row, as numbers or as a tensor on the device.
            kernel: Kernel for attention over pages, if there is one.
            gather: Attend over copies, even if there is a kernel.

        Returns:
            tuple: ``tokens [rows]`` and their rotary ``positions [rows]`` on the device, and the attention.
        """
        self._stepping = True
        memory, device = self.memory, self.memory.shape.device
        self._lengths = lengths = [row.length + 1 for row in self.rows]
        self._width = max(lengths)
        most = -(-self._width // PAGE)
        numbers: list[list[int]] = []
        uploaded = isinstance(tokens, Tensor)
        for token, row in zip([0] * len(tokens) if uploaded else tokens, self.rows, strict=True):
            page, column = row.pages[row.length // PAGE], row.length % PAGE
            # The table is padded with any page, because pages after a row's length are never read.
            pages = [*row.pages[:most], *[page] * (most - len(row.pages))]
            numbers.append([token, row.length, page, column, page * PAGE + column, row.length + 1, *pages])
        table = upload(numbers, device)  # in one transfer: [rows, 6 + most]
        ids, positions, page_of, column_of, into, used = table[:, :6].unbind(1)
        if isinstance(tokens, Tensor):
            ids = tokens

        def write(target: Tensor, states: Tensor) -> None:
            """Write ``states [rows, n, kv_heads, dim]`` to ``target [n, pages, …]``."""
            if memory.heads_first:
                target[:, page_of, :, column_of] = states
            else:
                target.flatten(1, 2).index_copy_(1, into, states.transpose(0, 1))

        self._write_step = lambda layer, states: write(memory.both(layer), states)
        self._write = lambda target, states: write(target[None], states[:, None, :, 0])
        ragged: Ragged
        if kernel is None and memory.heads_first and memory.shape.dtype is torch.float32 and not gather:
            own = [row.pages[: -(-n // PAGE)] for row, n in zip(self.rows, lengths, strict=True)]
            ragged = Products(own, lengths, memory.shape.kv_heads)
        else:
            ragged = self._reading(table[:, 6:], used, kernel, gather)
        return ids, positions, ragged

    def begin_fixed_step(self, buffers: StepBuffers) -> None:
        """Prepare a decode step as `begin_step` does, with fixed buffers that describe it already."""
        self._stepping = True
        self._lengths = [row.length + 1 for row in self.rows]
        self._width = buffers.pages * PAGE

    def read_fixed(self, buffers: StepBuffers, kernel: Kernel | None) -> Ragged:
        """The attention of a step with fixed buffers. Only operations of the device are used, so it can be captured."""
        memory, into = self.memory, buffers.into.long()

        def write(layer: int, states: Tensor) -> None:
            memory.by_column(layer).index_copy_(1, into, states.transpose(0, 1))

        self._write_step = write
        return self._reading(buffers.table, buffers.lengths, kernel, gather=False)

    def commit(self) -> None:
        """Add the positions of the pass to the rows. A pass that was not committed may run again."""
        for row, length in zip(self.rows, self._lengths, strict=True):
            row.length = length

    # --- the interface of transformers -------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values ``[rows, kv_heads, length, dim]``; returns those to attend over.

        These are the arguments in a pass over prompts, otherwise the layer's pages or, with `gather`, copies of them.
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
        """Store a layer's new keys and values ``[rows, 2, kv_heads, dim]`` in a decode step; returns as `update`."""
        self._write_step(layer, states)
        return self._read(layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the longest row before this pass."""
        return max(row.length for row in self.rows)

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Width and offset of a causal mask over prompts."""
        return self._width, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no fixed length, because rows grow by pages."""
        return -1

    # `Cache` would loop over its list of layers, which is empty here, and silently do nothing.
    crop = _refused("crop")
    reorder_cache = _refused("reorder_cache")
    reset = _refused("reset")
    batch_repeat_interleave = _refused("batch_repeat_interleave")
    batch_select_indices = _refused("batch_select_indices")


def _unset(_target: Tensor | int, _states: Tensor) -> None:
    raise RuntimeError("call begin_prompts, begin_chunk or begin_step before the pass")


def _blocks(row: KVRow, length: int) -> list[tuple[int, int, int]]:
    """The places of a row's next positions: ``(page, first column, count)``."""
    end = row.length + length
    starts = [row.length, *range(row.length - row.length % PAGE + PAGE, end, PAGE)]
    return [(row.pages[at // PAGE], at % PAGE, min(end, at - at % PAGE + PAGE) - at) for at in starts]


def _write_blocks(target: Tensor, states: Tensor, places: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    """Write ``states [rows, kv_heads, length, dim]``, or packed ``[1, kv_heads, total, dim]``, to
    ``target [pages, kv_heads, PAGE, dim]``.
    """
    packed, before = len(states) == 1, 0
    for index, blocks in enumerate(places):
        row = states[0 if packed else index]
        before = before if packed else 0
        for page, column, count in blocks:
            target[page, :, column : column + count] = row[:, before : before + count]
            before += count


def _write_columns(target: Tensor, states: Tensor, into: Tensor, source: Tensor | None) -> None:
    """Write ``states [rows, kv_heads, length, dim]`` to ``target [pages, PAGE, kv_heads, dim]``."""
    columns = states.transpose(1, 2).flatten(0, 1)  # [rows * length, kv_heads, dim]
    target.flatten(0, 1).index_copy_(0, into, columns if source is None else columns[source])
