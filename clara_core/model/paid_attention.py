"""The attention of an answer to the windows of its prompt, computed without a further pass.

During generation the queries of the upper half of the layers are recorded. When the answer ends, they are multiplied
with its keys, which are still in the KV cache.

Dimensions of shapes: recorded ``layers``, ``tokens`` of the answer, ``windows`` of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_core.model.forked import Span
from clara_core.model.kv_memory import KVMemory, KVRow


class Queries:
    """Records the attention queries of the layers from `first` on, in one pass.

    Attributes:
        at: Positions of the pass to record, in the flattened rows; None: all.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._recorded: list[Tensor] = []
        self.at: Tensor | None = None

    def note(self, layer: int, query: Tensor, scale: float) -> None:
        """Record the queries of a layer, ``[rows, heads, length, dim]``, multiplied by `scale`."""
        if layer < self._first:
            return
        states = query.transpose(1, 2).flatten(0, 1)  # [rows * length, heads, dim]
        self._recorded.append((states if self.at is None else states.index_select(0, self.at)) * scale)

    def rows(self) -> Tensor:
        """The recorded queries: ``[rows, layers, heads, dim]``."""
        return torch.stack(self._recorded, dim=1)


def paid_attention(memory: KVMemory, row: KVRow, queries: Tensor, windows: Sequence[Span], prompt: int) -> Tensor:
    """Share of the attention of each token of an answer that each window gets: ``[tokens, windows]``, on the CPU.

    It is the mean over heads and layers. The shares add up to less than 1, because the rest of the prompt gets some.

    Args:
        memory: The memory with the keys.
        row: Row of the answer.
        queries: ``[tokens, layers, heads, dim]``, scaled.
        windows: Span of each window in the prompt.
        prompt: Number of positions of the prompt; the query at its last one belongs to the first token.
    """
    tokens, layers, heads, dim = queries.shape
    length = prompt + tokens - 1
    positions = torch.arange(length, device=queries.device)
    future = positions[None, :] >= prompt + positions[:tokens, None]  # [tokens, length]
    total = torch.zeros(tokens, length, device=queries.device)
    for layer in range(layers):
        pages = memory.layer(memory.shape.layers - layers + layer)[0][row.pages]
        columns = pages.transpose(1, 2) if memory.heads_first else pages  # [pages, PAGE, kv_heads, dim]
        keys = columns.flatten(0, 1)[:length].float()  # [length, kv_heads, dim]
        grouped = queries[:, layer].float().view(tokens, keys.shape[1], -1, dim)  # [tokens, kv_heads, group, dim]
        scores = torch.einsum("tkgd,nkd->tkgn", grouped, keys).masked_fill(future[:, None, None], -torch.inf)
        total += scores.softmax(-1).sum((1, 2))
    total /= heads * layers
    return torch.stack([total[:, start:end].sum(1) for start, end in windows], dim=1).cpu()
