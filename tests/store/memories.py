"""Memories without a model. This module imports little, for tests that start a process of their own."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import torch

from clara_core import Memory

N_MEM, HIDDEN = 4, 64
FINGERPRINT = "a" * 64


def made_memory(text: str, windows: int = 1, fingerprint: str = FINGERPRINT, shape: tuple[int, int] = (N_MEM, HIDDEN)):
    """A memory that depends only on the text, with a large common part, exact in bfloat16."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    common = torch.linspace(-1, 1, shape[0] * shape[1]).view(1, *shape)
    tokens = (common + 0.6 * torch.randn(windows, *shape, generator=generator)).bfloat16()
    cuts = [len(text) * part // windows for part in range(windows + 1)]
    return Memory(tokens, text, tuple(pairwise(cuts)), 3 * windows, fingerprint)
