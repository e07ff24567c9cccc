"""Prompts whose tail is read several times in one pass, each time with other positions hidden.

The head of a prompt is computed once. Copies of its tail follow, which see the head without the positions hidden from
them, and do not see each other:

    head | tail, nothing hidden | tail, the first document hidden | tail, the second one hidden | …

If the keys and values of the head are still in the KV cache, because the prompt has just been answered, the pass
consists of the tails alone.

Dimensions of shapes: ``rows`` copies of a tail of ``tail`` positions follow ``head`` positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from clara_core.model.devices import upload
from clara_core.model.kv_memory import ReadHead

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ForkedPrompt:
    """A prompt, its continuation, and the hidden spans of each row."""

    ids: list[int]  # token ids of the prompt and of the continuation without its last token
    slots: list[bool]  # which of them are memory slots
    head: int  # number of shared positions; only these can be hidden
    continuation: list[int]  # token ids of the continuation, whose log-probabilities are computed
    hidden: Sequence[Sequence[Span]]  # for each row the spans of the head that its tail does not see
    kept: ReadHead | None = None  # reads the keys and values of the head, if the KV cache still has them

    @property
    def tail(self) -> int:
        """Positions of each copy of the tail."""
        return len(self.ids) - self.head

    @property
    def first(self) -> int:
        """The first position that the pass computes."""
        return 0 if self.kept is None else self.head

    @property
    def columns(self) -> int:
        """Positions of the head and of all tails."""
        return self.head + len(self.hidden) * self.tail

    @property
    def positions(self) -> int:
        """Positions that the pass computes."""
        return self.columns - self.first

    def seen(self) -> Tensor:
        """Positions of the head and of itself that each tail sees: ``[rows, tail, head + tail]``, on the CPU."""
        causal = torch.ones(self.tail, self.head + self.tail, dtype=torch.bool).tril(self.head)
        rows = causal.repeat(len(self.hidden), 1, 1)
        for row, spans in zip(rows, self.hidden, strict=True):
            for start, end in spans:
                row[:, start:end] = False
        return rows

    def token_ids(self) -> list[int]:
        """Token ids of the pass."""
        return self.ids[self.first : self.head] + self.ids[self.head :] * len(self.hidden)

    def rotary_positions(self) -> list[int]:
        """Rotary positions of the pass: each tail continues after the head."""
        return [*range(self.first, self.head), *list(range(self.head, len(self.ids))) * len(self.hidden)]

    def is_slot(self) -> list[bool]:
        """Which positions of the pass are memory slots."""
        return self.slots[self.first : self.head] + self.slots[self.head :] * len(self.hidden)

    def predicting_positions(self, start: int) -> list[int]:
        """Positions that predict the continuation, row after row, if the pass has `start` positions before these."""
        ends = range(start + self.head - self.first + self.tail, start + self.positions + 1, self.tail)
        return [at for end in ends for at in range(end - len(self.continuation), end)]


class Forked:
    """Attention of forked prompts that are packed one after the other, ``[1, total]``; see `attention.Ragged`.

    Keys and values have the columns of all prompts, so those of kept heads stand in front of the tails (`KeptHeads`).
    """

    def __init__(self, prompts: Sequence[ForkedPrompt], device: torch.device, dtype: torch.dtype) -> None:
        self._prompts = prompts
        self._device, self._dtype = device, dtype
        self._seen = [upload(prompt.seen(), device)[:, None] for prompt in prompts]  # [rows, 1, tail, head + tail] each

    @property
    def mask(self) -> Tensor:
        """The same as a mask ``[1, 1, total, columns]`` for the attention of transformers."""
        seen = torch.block_diag(*map(_visible, self._prompts))
        mask = torch.zeros(seen.shape, dtype=self._dtype).masked_fill(~seen, torch.finfo(self._dtype).min)
        return upload(mask, self._device)[None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`; `window` is ignored, because no context exceeds a model's window."""
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        read = []
        positions, columns = [one.positions for one in self._prompts], [one.columns for one in self._prompts]
        pieces = zip(query.split(positions, 2), key.split(columns, 2), value.split(columns, 2), strict=True)
        for prompt, seen, (asked, keys, values) in zip(self._prompts, self._seen, pieces, strict=True):
            head, first = prompt.head, prompt.head - prompt.first  # the tails begin at `first` of the queries
            if first:
                own = keys[:, :, :head], values[:, :, :head]
                read.append(F.scaled_dot_product_attention(asked[:, :, :first], *own, is_causal=True, scale=scale)[0])
            tails = _rows(asked[:, :, first:], prompt.tail)
            both = _with_head(keys, prompt), _with_head(values, prompt)
            attended = F.scaled_dot_product_attention(tails, *both, seen, scale=scale)  # [rows, heads, tail, dim]
            read.append(attended.transpose(0, 1).flatten(1, 2))  # [heads, rows * tail, dim]
        return torch.cat(read, dim=1).transpose(0, 1)[None]  # [1, total, heads, dim]


class KeptHeads(Cache):
    """The kept heads of forked prompts, as a cache for transformers that stores nothing."""

    queries = None  # these passes do not record them

    def __init__(self, prompts: Sequence[ForkedPrompt]) -> None:
        super().__init__(layers=[])
        self._prompts = prompts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the heads in front of their tails: ``[1, kv_heads, total, dim]`` -> ``[1, kv_heads, columns, dim]``."""
        positions = [prompt.positions for prompt in self._prompts]
        own = zip(key_states[0].split(positions, 1), value_states[0].split(positions, 1), strict=True)
        pieces: list[tuple[Tensor, Tensor]] = []
        for prompt, states in zip(self._prompts, own, strict=True):
            pieces += [states] if prompt.kept is None else [prompt.kept(layer_idx), states]
        keys, values = (torch.cat(some, dim=1)[None] for some in zip(*pieces, strict=True))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are given."""
        return 0


def _visible(prompt: ForkedPrompt) -> Tensor:
    """Columns that each position of a prompt sees: ``[positions, columns]``."""
    head, tail = prompt.head, prompt.tail
    seen = torch.zeros(prompt.columns, prompt.columns, dtype=torch.bool)
    seen[:head, :head] = torch.ones(head, head, dtype=torch.bool).tril()
    for start, own in zip(range(head, prompt.columns, tail), prompt.seen(), strict=True):
        seen[start : start + tail, :head] = own[:, :head]
        seen[start : start + tail, start : start + tail] = own[:, head:]
    return seen[prompt.first :]


def _rows(states: Tensor, tail: int) -> Tensor:
    """``[1, heads, rows * tail, dim]`` -> ``[rows, heads, tail, dim]``."""
    heads, positions, dim = states.shape[1:]
    return states[0].reshape(heads, positions // tail, tail, dim).transpose(0, 1)


def _with_head(states: Tensor, prompt: ForkedPrompt) -> Tensor:
    """Keys or values of the head and of one tail each: ``[1, heads, columns, dim]`` to
    ``[rows, heads, head + tail, dim]``.
    """
    tails = _rows(states[:, :, prompt.head :], prompt.tail)
    return torch.cat([states[:, :, : prompt.head].expand(len(tails), -1, -1, -1), tails], dim=2)
