"""Drawing tokens on the device: the noise of a draw follows from a seed, a position and a token, and from nothing else.

The largest of ``logit / temperature + Gumbel noise`` is a draw from the softmax. The noise is a hash in whole numbers,
so a processor and a GPU draw alike, whoever shares the batch, and nothing but the tokens has to reach the host.

Letters of shapes: ``vocab`` logits of each of the ``rows`` that are drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from clara_core.model.devices import upload

_WORD: Final = 0xFFFFFFFF
_LONG: Final = 0xFFFFFFFFFFFFFFFF
# Odd multipliers of two well-known integer hashes. The second of 32 bits is written as a negative number, so that no
# product of it with a word leaves 64 bits.
_FIRST, _SECOND, _SPREAD = 0x7FEB352D, 0x846CA68B - 2**32, 0x1E3779B1
_COLDEST: Final = 1e-30  # a temperature below it divides by zero in float32
_ALMOST_ONE: Final = 1 - 2**-24


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token of a row is drawn.

    Attributes:
        temperature: Above 0.
        top_p: Share of probability that is drawn from.
        seed: Of 64 bits.
        position: Which token of the answer it is.
    """

    temperature: float
    top_p: float
    seed: int
    position: int


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends an answer.

    Attributes:
        ids: The tokens that do.
        after: Fewest tokens of an answer (``min_new_tokens`` of a generation config): before, it cannot end.
    """

    ids: frozenset[int]
    after: int = 0


def without_ends(logits: Tensor, ends: Mapping[int, Collection[int]]) -> Tensor:
    """The logits ``[rows, vocab]`` with the tokens that may not come next at minus infinity.

    Args:
        logits: Left as they are.
        ends: For each row that has some, these tokens.
    """
    places = [(row, token) for row, tokens in ends.items() for token in tokens]
    if not places:
        return logits
    rows, tokens = upload(places, logits.device).unbind(1)
    return logits.index_put((rows, tokens), logits.new_tensor(-torch.inf))


def draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """One token a row: ``[rows, vocab]`` -> ``[rows]``, on the device of the logits; the host does not wait."""
    device = logits.device
    numbers = upload([[max(one.temperature, _COLDEST), one.top_p] for one in draws], device, torch.float32)
    temperature, top_p = numbers.split(1, dim=1)  # [rows, 1] each
    logits = logits.float()
    scores = (logits - logits.amax(-1, keepdim=True)) / temperature  # the best stays finite at any temperature
    if any(one.top_p < 1 for one in draws):
        scores = scores.masked_fill(_behind(scores.softmax(-1), top_p), -torch.inf)
    keys = upload([_key(one.seed, one.position) for one in draws], device)  # [rows, 2]
    chosen: Tensor = (scores + gumbel(keys, logits.shape[-1])).argmax(-1)
    return chosen


def gumbel(keys: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise ``[rows, vocab]`` in float32.

    Args:
        keys: Two words of 32 bits a row, ``[rows, 2]`` int64.
        vocab: How many numbers a row.
    """
    first, second = keys.split(1, dim=1)  # [rows, 1] each
    tokens = torch.arange(vocab, device=keys.device) * _SPREAD
    words = _mixed(_mixed((tokens + first) & _WORD) ^ second)  # [rows, vocab]
    # Uniform in (0, 1): words near 0, which are the large ones of the noise, keep all of their digits.
    uniform = ((words.float() + 0.5) * 2**-32).clamp_(max=_ALMOST_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _behind(chances: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens are not among the fewest that hold the mass; the best one always is. ``[rows, vocab]``."""
    ordered, order = chances.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(chances, dtype=torch.bool).scatter_(-1, order, (before >= top_p) & (top_p < 1))


def _mixed(words: Tensor) -> Tensor:
    """A word of 32 bits from each, such that every bit depends on all bits."""
    words = words ^ (words >> 16)
    words = (words * _FIRST) & _WORD
    words = words ^ (words >> 15)
    words = (words * _SECOND) & _WORD
    return words ^ (words >> 16)


def _key(seed: int, position: int) -> tuple[int, int]:
    """Two words of 32 bits from a seed of 64 bits and a position."""
    key = (seed & _LONG) ^ ((position + 1) * 0x9E3779B97F4A7C15 & _LONG)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = ((key ^ (key >> shift)) * factor) & _LONG
    key ^= key >> 31
    return key & _WORD, key >> 32
