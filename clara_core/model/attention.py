"""Attention over rows of different lengths, behind the interface of transformers.

One function is registered, and an argument of the forward pass selects what it does: without one, plain causal
attention over padded rows; with a `Ragged`, attention over packed rows or over pages of the KV cache.

Dimensions of shapes: ``group`` query heads share a key/value head; ``used`` columns of a page hold positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clara_core.model.devices import upload
from clara_core.model.kernels import PAGE, Kernel

if TYPE_CHECKING:
    from clara_core.model.paid_attention import Queries

# transformers reserves names that contain "flash", "flex_attention" or "sdpa", begin with "paged|", or look like a
# repository.
ATTENTION = "clara_varlen"


class Ragged(Protocol):
    """The layout of the rows of a pass, and the attention over it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention of ``query [rows, heads, length, dim]`` -> ``[rows, length, heads, dim]``.

        Keys and values are what the cache's `update` returned.
        """


def register_attention() -> None:
    """Register `ATTENTION` with transformers.

    No mask function is registered, so transformers makes no mask. Causal attention needs none, and over packed rows it
    would have all positions by all positions.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ragged: Ragged | None = None,
    queries: Queries | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a layer: ``query [rows, heads, length, dim]`` -> ``[rows, length, heads, dim]``."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if queries is not None:
        queries.note(int(module.layer_idx), query, scale)  # type: ignore[arg-type]
    if ragged is not None:
        return ragged.attend(query, key, value, scale, sliding_window), None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return output


class Packed:
    """Texts packed one after the other, ``[1, total]``, without padding; each attends only to itself."""

    def __init__(self, kernel: Kernel, lengths: Sequence[int], device: torch.device) -> None:
        self._kernel = kernel
        self._starts = upload([0, *accumulate(lengths)], device, torch.int32)
        self._longest = max(lengths)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`."""
        rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # [total, heads, dim] each
        return self._kernel.packed(*rows, starts=self._starts, longest=self._longest, scale=scale, window=window)[None]


class InPages:
    """The newest positions of rows, by a kernel that reads pages in place.

    Args:
        kernel: The kernel.
        table: ``[rows, most]``, int32: the pages of each row.
        lengths: ``[rows]``, int32.
        longest: The largest length, or an upper bound.
        queries: Number of new positions of each row.
    """

    def __init__(self, kernel: Kernel, table: Tensor, lengths: Tensor, longest: int, queries: int = 1) -> None:
        self._kernel, self._table, self._lengths, self._longest = kernel, table, lengths, longest
        self._queries = queries
        self._starts = torch.arange(len(table) + 1, dtype=torch.int32, device=table.device) * queries

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`; keys and values are ``[pages, PAGE, kv_heads, dim]``."""
        new = query.transpose(1, 2)  # [rows, queries, heads, dim]
        return self._kernel.paged(
            new.flatten(0, 1), key, value, table=self._table, lengths=self._lengths, starts=self._starts,
            queries=self._queries, longest=self._longest, scale=scale, window=window,
        ).view(new.shape)  # fmt: skip


class Gathered:
    """The newest positions over copies of the rows, padded to the longest one; needs no kernel.

    Args:
        table: ``[rows, most]``: the pages of each row.
        lengths: ``[rows]``.
        width: The largest length.
        dtype: Type of the mask.
        heads_first: Layout of the KV cache (see `KVMemory`).
        queries: Number of new positions of each row.
    """

    def __init__(
        self, table: Tensor, lengths: Tensor, width: int, dtype: torch.dtype, heads_first: bool, queries: int = 1
    ) -> None:
        columns = torch.arange(width, device=lengths.device)
        self._pages = table.index_select(1, columns // PAGE).long()  # [rows, width]
        self._columns = columns % PAGE
        self._heads_first = heads_first
        seen = lengths[:, None]
        if queries > 1:
            seen = seen + torch.arange(1 - queries, 1, device=lengths.device)  # [rows, queries]
        hidden = columns >= seen[:, :, None]  # [rows, queries, width]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        self.mask = mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]  # [rows, 1, queries, width]

    def copy(self, pages: Tensor) -> Tensor:
        """The columns of each row: ``[rows, kv_heads, width, dim]``."""
        by_column = pages.transpose(1, 2) if self._heads_first else pages  # [pages, PAGE, kv_heads, dim]
        return by_column[self._pages, self._columns].transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`; keys and values are copies. `window` is ignored, because no context exceeds the model's."""
        rows, heads, length, dim = query.shape
        if length > 1:
            # The heads of a group one after the other, because a mask for each head would be larger than the keys.
            groups = query.unflatten(1, (key.shape[1], -1)).transpose(1, 2)  # [rows, group, kv_heads, length, dim]
            parts = [
                torch.nn.functional.scaled_dot_product_attention(part, key, value, self.mask, scale=scale)
                for part in groups.unbind(1)
            ]
            return torch.stack(parts, dim=2).flatten(1, 2).transpose(1, 2)  # [rows, length, heads, dim]
        # The query heads of a group become positions of one head, so that keys are not copied for each of them.
        groups = query.reshape(rows, key.shape[1], -1, dim)  # [rows, kv_heads, group, dim]
        mask = self.mask.expand(-1, -1, groups.shape[2], -1)
        read = torch.nn.functional.scaled_dot_product_attention(groups, key, value, mask, scale=scale)
        return read.reshape(rows, 1, heads, dim)


class Products:
    """A decode step by plain matrix products over the pages in place, without copies and padding.

    For one position a row the fused attention of the CPU costs four times as much as the two products that it fuses.
    Pages are the batch of these products. If a row has several pages, each is attended separately, and the results are
    weighted by the page's share of the row's softmax.

    Args:
        pages: Pages of each row, without those after its length.
        lengths: Length of each row.
        kv_heads: Key and value heads.
    """

    def __init__(self, pages: Sequence[Sequence[int]], lengths: Sequence[int], kv_heads: int) -> None:
        self._rows = len(pages)
        self._most = max(map(len, pages))
        owners = {page: (row, nth) for row, own in enumerate(pages) for nth, page in enumerate(own)}
        taken = sorted(owners)
        span = range(taken[0], taken[-1] + 1)
        # Pages of other rows in between are read, too, if that is cheaper than copying ours together.
        whole = len(span) <= 2 * len(taken)
        chosen = list(span) if whole else taken
        self._chosen: slice | Tensor = slice(span.start, span.stop) if whole else torch.tensor(chosen)
        filled = [owners.get(page, (self._rows, 0)) for page in chosen]  # pages of others belong to an extra row
        used = [0 if row == self._rows else min(PAGE, lengths[row] - nth * PAGE) for row, nth in filled]
        self._used = max(used)
        in_order = [row for row, _ in filled] == list(range(self._rows))
        self._owner = None if in_order else torch.tensor([row for row, _ in filled])
        self._nth = torch.tensor([nth for _, nth in filled])
        hidden = torch.arange(self._used)[None, :] >= torch.tensor(used)[:, None]  # [pages, used]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        self._mask = mask.repeat_interleave(kv_heads, dim=0)[:, None]  # [pages * kv_heads, 1, used]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`; keys and values are ``[pages, kv_heads, PAGE, dim]``."""
        rows, heads, _, dim = query.shape
        kv_heads = key.shape[1]
        groups = query.reshape(rows, kv_heads, -1, dim)
        keys, values = (
            states[self._chosen][:, :, : self._used].flatten(0, 1)  # [pages * kv_heads, used, dim]
            for states in (key, value)
        )
        if self._owner is None:  # one page a row, in the order of the rows
            scores = torch.baddbmm(self._mask, groups.flatten(0, 1), keys.transpose(1, 2), alpha=scale)
            return (scores.softmax(-1) @ values).view(rows, 1, heads, dim)
        # An extra row for the pages of others.
        padded = torch.cat([groups, torch.zeros_like(groups[:1])])
        owned = padded[self._owner].flatten(0, 1)  # [pages * kv_heads, group, dim]
        scores = torch.baddbmm(self._mask, owned, keys.transpose(1, 2), alpha=scale)  # [pages * kv_heads, group, used]
        read = (scores.softmax(-1) @ values).unflatten(0, (-1, kv_heads))  # [pages, kv_heads, group, dim]
        if self._most > 1:
            mass = scores.logsumexp(-1).unflatten(0, (-1, kv_heads))  # [pages, kv_heads, group]
            shares = mass.new_full((rows + 1, self._most, *mass.shape[1:]), -torch.inf)
            shares[self._owner, self._nth] = mass
            read *= shares.softmax(1)[self._owner, self._nth][..., None]
        total = torch.zeros_like(padded).index_add_(0, self._owner, read)  # [rows + 1, kv_heads, group, dim]
        return total[:rows].view(rows, 1, heads, dim)
