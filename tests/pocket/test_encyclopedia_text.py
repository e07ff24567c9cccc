"""Adapters of the encyclopedia that were taught to read text beside memories: a slice of `benchmarks.trust_text`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.encyclopedia_tasks import SEED
from benchmarks.trust_tasks import answerable, make_lines
from benchmarks.trust_text import exact_share, own_passages, taught
from clara_core import ClaraEngine
from clara_core.data.examples import RetrievalLine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClaraEngine]:
    engine = ClaraEngine.from_pretrained(taught(tmp_path_factory.mktemp("text") / "checkpoint"))
    yield engine
    engine.unload()


@pytest.fixture(scope="module")
def lines(engine: ClaraEngine) -> list[RetrievalLine]:
    return answerable(make_lines(engine, 150, SEED, 80).single)


def test_the_best_document_is_read_as_text_beside_the_memories_of_others(engine, lines) -> None:
    assert engine.config.mixed
    assert exact_share(engine, lines, text=True, verbatim=False) >= 0.85
    assert exact_share(engine, lines, text=False, verbatim=False) >= 0.80


def test_a_document_alone_is_read_as_text(engine, lines) -> None:
    assert exact_share(engine, own_passages(lines), text=True, verbatim=False) >= 0.94
