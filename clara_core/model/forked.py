"""Prompts whose tail is read several times in one pass, each time with other positions hidden.

The head of a prompt is computed once. Copies of its tail follow, which see the head without the positions hidden from
them, and do not see each other:

    head | tail, nothing hidden | tail, the first document hidden | tail, the second one hidden | …

Dimensions of shapes: ``rows`` copies of a tail of ``tail`` positions follow ``head`` positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clara_core.model.devices import upload

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ForkedPrompt:
    """A prompt, its continuation, and the hidden spans of each row."""

    ids: list[int]  # token ids of the prompt and of the continuation without its last token
    slots: list[bool]  # which of them are memory slots
    head: int  # number of shared positions; only these can be hidden
    continuation: list[int]  # token ids of the continuation, whose log-probabilities are computed
    hidden: Sequence[Sequence[Span]]  # for each row the spans of the head that its tail does not see

    @property
    def tail(self) -> int:
        """Positions of each copy of the tail."""
        return len(self.ids) - self.head

    @property
    def positions(self) -> int:
        """Positions of the head and of all tails."""
        return self.head + len(self.hidden) * self.tail

    def seen(self) -> Tensor:
        """Positions of the head and of itself that each tail sees: ``[rows, tail, head + tail]``, on the CPU."""
        causal = torch.ones(self.tail, self.head + self.tail, dtype=torch.bool).tril(self.head)
        rows = causal.repeat(len(self.hidden), 1, 1)
        for row, spans in zip(rows, self.hidden, strict=True):
            for start, end in spans:
                row[:, start:end] = False
        return rows

    def token_ids(self) -> list[int]:
        """Token ids of the head and of all tails."""
        return self.ids[: self.head] + self.ids[self.head :] * len(self.hidden)

    def rotary_positions(self) -> list[int]:
        """Rotary positions of the head and of all tails: each tail continues after the head."""
        return [*range(self.head), *list(range(self.head, len(self.ids))) * len(self.hidden)]

    def is_slot(self) -> list[bool]:
        """Which positions of the head and of all tails are memory slots."""
        return self.slots[: self.head] + self.slots[self.head :] * len(self.hidden)

    def predicting_positions(self, start: int) -> list[int]:
        """Positions that predict the continuation, row after row, if the head begins at position `start`."""
        first = start + self.head + self.tail - len(self.continuation)
        return [first + row * self.tail + at for row in range(len(self.hidden)) for at in range(len(self.continuation))]


class Forked:
    """Attention of forked prompts that are packed one after the other, ``[1, total]``; see `attention.Ragged`."""

    def __init__(self, prompts: Sequence[ForkedPrompt], device: torch.device, dtype: torch.dtype) -> None:
        self._prompts = prompts
        self._device, self._dtype = device, dtype
        self._seen = [upload(prompt.seen(), device)[:, None] for prompt in prompts]  # [rows, 1, tail, head + tail] each

    @property
    def mask(self) -> Tensor:
        """The same as a mask ``[1, 1, total, total]`` for the attention of transformers."""
        total = sum(prompt.positions for prompt in self._prompts)
        seen = torch.zeros(total, total, dtype=torch.bool)
        start = 0
        for prompt in self._prompts:
            head, tail = prompt.head, prompt.tail
            seen[start : start + head, start : start + head] = torch.ones(head, head, dtype=torch.bool).tril()
            for row, own in enumerate(prompt.seen()):
                at = start + head + row * tail
                seen[at : at + tail, start : start + head] = own[:, :head]
                seen[at : at + tail, at : at + tail] = own[:, head:]
            start += prompt.positions
        mask = torch.zeros(total, total, dtype=self._dtype).masked_fill(~seen, torch.finfo(self._dtype).min)
        return upload(mask, self._device)[None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Ragged`; `window` is ignored, because no context exceeds a model's window."""
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        read, start = [], 0
        for prompt, seen in zip(self._prompts, self._seen, strict=True):
            middle, end = start + prompt.head, start + prompt.positions
            asks, keys, values = (states[:, :, start:middle] for states in (query, key, value))  # [1, heads, head, dim]
            if prompt.head:
                read.append(F.scaled_dot_product_attention(asks, keys, values, is_causal=True, scale=scale)[0])
            asks, *own = (_rows(states[:, :, middle:end], prompt.tail) for states in (query, key, value))
            keys, values = (
                torch.cat([shared.expand(len(asks), -1, -1, -1), tails], dim=2)  # [rows, heads, head + tail, dim]
                for shared, tails in zip((keys, values), own, strict=True)
            )
            attended = F.scaled_dot_product_attention(asks, keys, values, seen, scale=scale)  # [rows, heads, tail, dim]
            read.append(attended.transpose(0, 1).flatten(1, 2))  # [heads, rows * tail, dim]
            start = end
        return torch.cat(read, dim=1).transpose(0, 1)[None]  # [1, total, heads, dim]


def _rows(states: Tensor, tail: int) -> Tensor:
    """``[1, heads, rows * tail, dim]`` -> ``[rows, heads, tail, dim]``."""
    heads, positions, dim = states.shape[1:]
    return states[0].reshape(heads, positions // tail, tail, dim).transpose(0, 1)
