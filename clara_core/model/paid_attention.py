"""How much attention an answer paid to the documents it was read from, without a pass of its own.

While tokens are written, the queries of the upper half of the layers are noted. Once the answer has ended, they meet
the keys, which lie in the KV memory until then.

Letters of shapes: ``layers`` that are noted, ``tokens`` of the answer, ``windows`` of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_core.model.forked import Span
from clara_core.model.kv_memory import KVMemory, KVRow


class Queries:
    """Takes the queries of some layers in one pass.

    Args:
        first: The first layer that is noted.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._taken: list[Tensor] = []
        self.at: Tensor | None = None  # positions of the pass, where not all are wanted

    def note(self, layer: int, query: Tensor, scale: float) -> None:
        """Take what a layer asks with, ``query [rows, heads, length, dim]``."""
        if layer < self._first:
            return
        states = query.transpose(1, 2).flatten(0, 1)  # [rows * length, heads, dim]
        self._taken.append((states if self.at is None else states.index_select(0, self.at)) * scale)

    def rows(self) -> Tensor:
        """What was taken: ``[rows, layers, heads, dim]``."""
        return torch.stack(self._taken, dim=1)


def paid_attention(memory: KVMemory, row: KVRow, queries: Tensor, windows: Sequence[Span], prompt: int) -> Tensor:
    """Shares of the attention that each token of an answer paid to windows: ``[tokens, windows]``, on the processor.

    Mean over heads and layers; what went to other windows and to the rest of the prompt is missing from the sum.

    Args:
        memory: Where the keys are.
        row: Of the answer.
        queries: ``[tokens, layers, heads, dim]``, with their scale.
        windows: Positions of each window in the prompt.
        prompt: Positions of the prompt; its last one asked for the first token.
    """
    tokens, layers, heads, dim = queries.shape
    length = prompt + tokens - 1
    positions = torch.arange(length, device=queries.device)
    behind = positions[None, :] >= prompt + positions[:tokens, None]  # [tokens, length]
    total = torch.zeros(tokens, length, device=queries.device)
    for layer in range(layers):
        pages = memory.layer(memory.shape.layers - layers + layer)[0][row.pages]
        columns = pages.transpose(1, 2) if memory.heads_first else pages  # [pages, PAGE, kv_heads, dim]
        keys = columns.flatten(0, 1)[:length].float()  # [length, kv_heads, dim]
        asked = queries[:, layer].float().view(tokens, keys.shape[1], -1, dim)  # [tokens, kv_heads, group, dim]
        scores = torch.einsum("tkgd,nkd->tkgn", asked, keys).masked_fill(behind[:, None, None], -torch.inf)
        total += scores.softmax(-1).sum((1, 2))
    total /= heads * layers
    return torch.stack([total[:, start:end].sum(1) for start, end in windows], dim=1).cpu()
