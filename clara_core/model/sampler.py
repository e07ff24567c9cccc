"""Sampling of tokens on the device, reproducible by seed.

The argmax of ``logit / temperature + Gumbel noise`` is a sample from the softmax. The noise is an integer hash of seed,
position and token alone, so CPU and GPU draw the same tokens in any batch, and only the tokens are sent to the host.

Dimensions of shapes: ``vocab`` logits of each of the ``rows`` to sample.
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
# Odd multipliers of two well-known integer hashes. The second one of 32 bits is written as a negative number, so that
# its product with a word fits 64 bits.
_FIRST, _SECOND, _SPREAD = 0x7FEB352D, 0x846CA68B - 2**32, 0x1E3779B1
_COLDEST: Final = 1e-30  # lower temperatures would divide by zero in float32
_ALMOST_ONE: Final = 1 - 2**-24


@dataclass(frozen=True, slots=True)
class Draw:
    """How to sample the next token of a row."""

    temperature: float  # above 0
    top_p: float  # probability mass of the tokens to sample from
    seed: int  # seed of 64 bits
    position: int  # index of the token in the answer


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens that end an answer."""

    ids: frozenset[int]  # ids of these tokens
    after: int = 0  # fewest tokens of an answer (``min_new_tokens`` of a generation config)


def without_ends(logits: Tensor, ends: Mapping[int, Collection[int]]) -> Tensor:
    """A copy of the logits ``[rows, vocab]`` with forbidden tokens at minus infinity; `logits` if there are none.

    Args:
        logits: Logits, not changed.
        ends: Forbidden tokens by row.
    """
    places = [(row, token) for row, tokens in ends.items() for token in tokens]
    if not places:
        return logits
    rows, tokens = upload(places, logits.device).unbind(1)
    return logits.index_put((rows, tokens), logits.new_tensor(-torch.inf))


def only(logits: Tensor, allowed: Mapping[int, Mapping[int, float]]) -> Tensor:
    """A copy of the logits ``[rows, vocab]`` with minus infinity for all tokens of some rows but the allowed ones.

    Args:
        logits: Logits, not changed.
        allowed: Allowed tokens by row, each with what its logit gains; other rows are copied.
    """
    places = [(row, token) for row, tokens in allowed.items() for token in tokens]
    if not places:
        return logits
    rows, tokens = upload(places, logits.device).unbind(1)
    gains = upload([gain for tokens in allowed.values() for gain in tokens.values()], logits.device, logits.dtype)
    restricted = logits.index_fill(0, upload(list(allowed), logits.device), -torch.inf)
    return restricted.index_put((rows, tokens), logits[rows, tokens] + gains)


def draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Sample one token a row, ``[rows, vocab]`` -> ``[rows]``, on the device of the logits; the host does not wait."""
    device = logits.device
    numbers = upload([[max(one.temperature, _COLDEST), one.top_p] for one in draws], device, torch.float32)
    temperature, top_p = numbers.split(1, dim=1)  # [rows, 1] each
    logits = logits.float()
    scores = (logits - logits.amax(-1, keepdim=True)) / temperature  # the best stays finite at any temperature
    if any(one.top_p < 1 for one in draws):
        scores = scores.masked_fill(_outside(scores.softmax(-1), top_p), -torch.inf)
    keys = upload([_key(one.seed, one.position) for one in draws], device)  # [rows, 2]
    chosen: Tensor = (scores + gumbel(keys, logits.shape[-1])).argmax(-1)
    return chosen


def gumbel(keys: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise ``[rows, vocab]`` in float32.

    Args:
        keys: Two words of 32 bits a row, ``[rows, 2]`` int64.
        vocab: Number of values of a row.
    """
    first, second = keys.split(1, dim=1)  # [rows, 1] each
    tokens = torch.arange(vocab, device=keys.device) * _SPREAD
    words = _mixed(_mixed((tokens + first) & _WORD) ^ second)  # [rows, vocab]
    # Uniform in (0, 1). Words near 0, which give the largest noise, keep full precision.
    uniform = ((words.float() + 0.5) * 2**-32).clamp_(max=_ALMOST_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _outside(chances: Tensor, top_p: Tensor) -> Tensor:
    """Tokens outside of the smallest set with the mass `top_p`, which always has the best token: ``[rows, vocab]``."""
    ordered, order = chances.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(chances, dtype=torch.bool).scatter_(-1, order, (before >= top_p) & (top_p < 1))


def _mixed(words: Tensor) -> Tensor:
    """Hash words of 32 bits, so that every bit depends on all bits."""
    words = words ^ (words >> 16)
    words = (words * _FIRST) & _WORD
    words = words ^ (words >> 15)
    words = (words * _SECOND) & _WORD
    return words ^ (words >> 16)


def _key(seed: int, position: int) -> tuple[int, int]:
    """Hash a seed of 64 bits and a position to two words of 32 bits."""
    key = (seed & _LONG) ^ ((position + 1) * 0x9E3779B97F4A7C15 & _LONG)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = ((key ^ (key >> shift)) * factor) & _LONG
    key ^= key >> 31
    return key & _WORD, key >> 32
