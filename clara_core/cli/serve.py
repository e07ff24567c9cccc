"""The command `clara serve`: one process holds a model for all others."""

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
    host: Annotated[
        str, typer.Option(help="Address to listen at; any other than 127.0.0.1 needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free port.")] = 8010,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the keys of clients, one a line, read again at SIGHUP; default: the key in {_KEY}."
        ),
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URI", help="A store that clients may search; may be repeated.")
    ] = None,
    writable: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A store that clients may write to; may be repeated.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another host name of this server; may be repeated.")
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests at a time; further ones are refused.")] = 256,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds after the stop signal until new connections are refused.")
    ] = 0,
    drain_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds that running requests then have to finish.")
    ] = 30,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow any --host without a key.")] = False,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept any model name in requests.")] = False,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Show metrics without a key.")] = False,
    docs: Annotated[bool, typer.Option("--docs", help="Serve a description of the routes at /docs.")] = False,
    *,
    options: EngineOptions,
) -> None:
    """Serve a model to other processes and machines, over the routes of OpenAI, Cohere and TEI."""
    from clara_core.serving import serve
    from clara_core.serving.config import checked_config

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
            "stores": dict(map(_name_and_uri, store or [])),
            "writable": writable or [],
            "any_model": any_model,
            "open_metrics": open_metrics,
            "docs": docs,
            "drain_delay": drain_delay,
            "drain_seconds": drain_seconds,
            "limits": {"requests": max_requests},
        }
    )
    _log_to_stderr()
    serve(config)


def _name_and_uri(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or not uri:
        raise ValueError(f"--store takes NAME=URI, got {text!r}")
    return name, uri


def _log_to_stderr() -> None:
    """Log to standard error: events of the server as text, requests as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("clara_core.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
