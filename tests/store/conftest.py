"""Fixtures of the store tests: memories without a model, and a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clara_core import ClaraEngine, MemoryStore
from tests.engines import open_engine
from tests.store.memories import made_memory
from tests.store.watched import PATIENCE, Writers
from tests.tiny import build


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
