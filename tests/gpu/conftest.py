"""Installs the simulated device if only these tests run. It cannot be removed, so no other tests may follow.

python -m pytest tests/gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
alone = False


def pytest_configure(config: pytest.Config) -> None:
    global alone  # noqa: PLW0603 - pytest calls two hooks
    places = [Path(str(argument).partition("::")[0]).resolve() for argument in config.args]
    alone = bool(places) and all(place.is_relative_to(HERE) for place in places)
    if alone:
        from tests.gpu.install import install

        install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if alone:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="needs a process of its own: python -m pytest tests/gpu"))
