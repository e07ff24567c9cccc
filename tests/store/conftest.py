"""Fixtures of the store tests: memories without a model, and a tiny model."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_core import ClaraEngine, Memory, MemoryStore
from tests.engines import open_engine
from tests.store.watched import PATIENCE, Writers
from tests.tiny import build

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


def told(hits):
    """Hits as pairs of id and approximate score."""
    return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def add(store: MemoryStore, *names: str, windows: int = 1, **given: Any) -> list[str]:
    """Add an artificial memory for each name; the name is the id."""
    return store.add(memories=[made_memory(f"text of {name}", windows) for name in names], ids=names, **given)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore.open(tmp_path / "store")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("store-engine"), "mistral", seed=11))


@pytest.fixture(scope="session")
def other_engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("store-other"), "mistral", seed=12))


@pytest.fixture(scope="module")
def writers():
    writers = Writers()
    yield writers
    writers.process.stdin.close()
    writers.process.wait(PATIENCE)
