"""The HTTP server of `clara serve`: one process holds a model, and any number of clients use it.

Needs the extra ``serve``. Names are resolved at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.serving.app import build_app
    from clara_core.serving.config import ServeConfig
    from clara_core.serving.run import serve

__all__ = ["ServeConfig", "build_app", "serve"]

_MODULES: Final = {
    "ServeConfig": "clara_core.serving.config",
    "build_app": "clara_core.serving.app",
    "serve": "clara_core.serving.run",
}
_HOW: Final = "pip install 'clara-rag[serve]'"

__getattr__, __dir__ = lazy_names(
    __name__, _MODULES, {"fastapi": _HOW, "prometheus_client": _HOW, "starlette": _HOW, "uvicorn": _HOW}
)
