"""Opens engines: a model's name gives an engine in this process, a server's address a client of that server."""

from __future__ import annotations

from typing import Any, Final

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.options import OPTIONS, EngineArguments, checked, given_options
from clara_core.engine.protocol import Engine

_OF_A_SERVER: Final = ("model", "token")


def is_server(model: object) -> bool:
    """Whether a model name is the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def open_engine(model: str | None = None, **options: Any) -> Engine:
    """Open the engine of a model; equal arguments give the same object. Weights load at first use.

    Args:
        model: As in `ClaraEngine.from_pretrained`, or the address of a server (``clara serve``), such as
            ``http://127.0.0.1:8010``; a client of a server imports neither torch nor transformers.
        **options: Options of `ClaraEngine.from_pretrained`. For a server only ``token``, which is its key; without it
            the environment variable ``CLARA_API_KEY`` is used.

    Raises:
        UnknownOption: An option is unknown.
        ValueError: A value is invalid, or the server decides the option.
    """
    refuse_unknown("open_engine", options, OPTIONS)
    if model is not None and is_server(model):
        return connect(model, options)
    from clara_core.engine.engine import ClaraEngine

    return ClaraEngine.from_pretrained(model, **options)


def connect(url: str, options: dict[str, Any]) -> Engine:
    """Open the client of a server.

    Raises:
        ImportError: httpx is not installed.
        ValueError: The server decides an option.
    """
    checked(EngineArguments, {**options, "model": url}, "open_engine")
    decided = [name for name in given_options(options) if name not in _OF_A_SERVER]
    if decided:
        raise ValueError(f"{decided[0]}= cannot be given with a server's address: the server at {url} decides it")
    try:
        from clara_core.engine.remote.engine import RemoteEngine
    except ImportError as exc:
        raise ImportError(f"a server such as {url} needs the package httpx: pip install 'clara-rag[remote]'") from exc
    return RemoteEngine.connect(url, options.get("token"))
