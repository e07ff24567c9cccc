"""Runs the tests of the components with every model behind a server: ``CLARA_TESTS_SERVED=1 pytest ...``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Engine

SERVED = os.environ.get("CLARA_TESTS_SERVED") == "1"

_behind: dict[str, ClaraEngine] = {}
kept = ExitStack()
"""Keeps servers running until the tests end."""


def served(model: str | Path) -> str:
    """The value of ``model=``: a name or folder or, if `SERVED`, the address of a server of this model."""
    return _address(str(model)) if SERVED else str(model)


def served_options(model: str | Path, **options: Any) -> dict[str, Any]:
    """The same with options, which go to the server instead of the component."""
    return {"model": _address(str(model), **options)} if SERVED else {"model": str(model), **options}


def behind(engine: Engine) -> ClaraEngine:
    """The engine that computes: this engine, or that of its server."""
    return _behind.get(engine.arguments.model, engine)


@cache
def _address(model: str, **options: Any) -> str:
    from tests.serving.servers import running

    server = kept.enter_context(running(options={"model": model, **options}))
    _behind[server.url] = server.state.engine
    return server.url
