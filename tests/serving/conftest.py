"""A server that is shared by all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clara_core import ClaraEngine, Engine, open_engine
from tests.serving.servers import Running, running


@pytest.fixture(scope="session")
def local() -> ClaraEngine:
    return ClaraEngine.from_pretrained("pocket")


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def remote(server: Running) -> Engine:
    return open_engine(server.url)
