"""The door to engines: a model's name gives the engine in this process, a server's address the one behind it."""

from __future__ import annotations

from typing import Any, Final

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.options import OPTIONS, EngineArguments, checked, given_options
from clara_core.engine.protocol import Engine

_OF_A_SERVER: Final = ("model", "token")


def is_server(model: object) -> bool:
    """Whether a model is named by the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def open_engine(model: str | None = None, **options: Any) -> Engine:
    """The engine of a model; the same object for the same arguments. Weights load at first use.

    Args:
        model: As in `ClaraEngine.from_pretrained`, or the address of a server (``clara serve``), such as
            ``http://127.0.0.1:8010``. For a server neither torch nor transformers is imported.
        **options: Of `ClaraEngine.from_pretrained`. For a server ``token`` is its key (else the environment variable
            ``CLARA_API_KEY``); everything else is the server's to decide.

    Raises:
        UnknownOption: An option that no engine has.
        ValueError: A value that no engine can have, or an option that a server decides.
    """
    refuse_unknown("open_engine", options, OPTIONS)
    if model is not None and is_server(model):
        return connect(model, options)
    from clara_core.engine.engine import ClaraEngine

    return ClaraEngine.from_pretrained(model, **options)


def connect(url: str, options: dict[str, Any]) -> Engine:
    """The engine behind a server.

    Raises:
        ImportError: httpx is missing.
        ValueError: An option that the server decides.
    """
    checked(EngineArguments, {**options, "model": url}, "open_engine")
    decided = [name for name in given_options(options) if name not in _OF_A_SERVER]
    if decided:
        raise ValueError(f"{decided[0]}= cannot be given with a server's address: the server at {url} decides it")
    try:
        from clara_core.engine.remote.engine import RemoteEngine
    except ImportError as exc:
        raise ImportError(f"a server such as {url} is talked to with httpx: pip install 'clara-rag[remote]'") from exc
    return RemoteEngine.connect(url, options.get("token"))
