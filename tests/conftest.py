"""Fixtures shared by the tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Set before torch is imported. The models of the tests are so small that a second thread costs more than it gains. On a
# busy machine, threads that wait for each other turn a test of a minute into one of half an hour.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

from tests.parity_data import PARITY
from tests.served import SERVED, kept

settings.register_profile("clara", deadline=None)  # a busy machine fails no property
settings.load_profile("clara")


@pytest.fixture(scope="module", autouse=True)
def free_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unload the engines of checkpoints that a test module has built, because engines live as long as the process."""
    yield
    module = sys.modules.get("clara_core.engine.engine")
    built = str(tmp_path_factory.getbasetemp())
    engines = module._engines.items() if module else ()
    loaded = [one for arguments, one in engines if arguments.model.startswith(built) and one.stats().loaded]
    if not loaded:
        return
    gc.freeze()  # each unload collects garbage, which takes half a second with the objects of all tests
    for engine in loaded:
        engine.unload()  # an engine that another module shares loads again
    gc.unfreeze()
    gc.collect()


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """The three recorded checkpoints: e2e, instruct, base, each with `base/` and `checkpoint/`."""
    return PARITY


@pytest.fixture(scope="session")
def encyclopedia():
    """The engine of the frozen weights that were trained on the synthetic encyclopedia."""
    from tests.known import find_known

    return find_known()[0]


@pytest.fixture(scope="session")
def known():
    """A question that `encyclopedia` answers correctly, with its passages (`tests.known`)."""
    from tests.known import find_known

    return find_known()[1]


@pytest.fixture(scope="session")
def encyclopedia_files(tmp_path_factory):
    """A folder with passages that `encyclopedia` can read (`tests.known`)."""
    from tests.known import write_files

    folder = tmp_path_factory.mktemp("encyclopedia")
    write_files(folder)
    return folder


@pytest.fixture
def clara(capsys):
    """Run the command in this process: exit code, standard output, standard error."""

    from clara_core.cli.main import app

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return left.value.code, shown.out, shown.err

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if there is none, and tests that need a local engine if models are behind servers."""
    if SERVED:
        for item in items:
            if item.get_closest_marker("in_process"):
                item.add_marker(pytest.mark.skip(reason="the engine is behind a server"))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def pytest_unconfigure() -> None:
    kept.close()
