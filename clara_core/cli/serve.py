"""The command `clara serve`: one process that holds a model for all others."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clara_core.cli.options import with_options
from clara_core.engine.options import EngineOptions

_KEY: str = "CLARA_API_KEY"


@with_options
def serve_model(
    model: Annotated[str, typer.Argument(help="Bundled name, folder, or Hub id.")] = "pocket",
    host: Annotated[str, typer.Option(help="Address to listen at; another than 127.0.0.1 needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: one that is free.")] = 8010,
    key_file: Annotated[
        Path | None,
        typer.Option(help=f"Keys of clients, one a line; else the environment variable {_KEY}. Read again at SIGHUP."),
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URI", help="A store that clients may search; may be repeated.")
    ] = None,
    writable: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A store that clients may write to; may be repeated.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name of this server; may be repeated.")
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at a time; what is more is refused.")] = 256,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds between the signal to end and the end of new connections.")
    ] = 0,
    drain_seconds: Annotated[float, typer.Option(min=1, help="Seconds that requests have to finish then.")] = 30,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen elsewhere without a key.")] = False,
    any_model: Annotated[bool, typer.Option("--any-model", help="Answer whatever model a request names.")] = False,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Show metrics without a key.")] = False,
    docs: Annotated[bool, typer.Option("--docs", help="Describe the routes at /docs.")] = False,
    *,
    options: EngineOptions,
) -> None:
    """Holds a model for every process and machine that asks, over OpenAI's, Cohere's and TEI's routes."""
    try:
        from clara_core.serving import serve
        from clara_core.serving.config import checked_config
    except ImportError as exc:
        raise ValueError(f"clara serve needs more packages ({exc}): pip install 'clara-rag[serve]'") from exc
    key = os.environ.get(_KEY)
    config = checked_config(
        {
            "options": options,
            "host": host,
            "port": port,
            "keys": [key] if key and key_file is None else [],
            "key_file": key_file,
            "insecure": insecure,
            "allowed_hosts": allowed_host or [],
            "stores": dict(map(_named, store or [])),
            "writable": writable or [],
            "any_model": any_model,
            "open_metrics": open_metrics,
            "docs": docs,
            "drain_delay": drain_delay,
            "drain_seconds": drain_seconds,
            "limits": {"requests": max_requests},
        }
    )
    _log()
    serve(config)


def _named(told: str) -> tuple[str, str]:
    name, equals, uri = told.partition("=")
    if not equals or not uri:
        raise ValueError(f"--store takes NAME=URI, got {told!r}")
    return name, uri


def _log() -> None:
    """Lines of the server on standard error: what happens as text, each request as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("clara_core.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
