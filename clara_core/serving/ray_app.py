"""Replicas of a server on Ray Serve, each with an engine of its own.

Ray starts the replicas, distributes requests over them and replaces one that fails. Each replica answers its requests
itself, and its scheduler batches them. Replicas share stores by an address that all of them can reach. Needs the extras
``serve`` and ``ray``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_core.engine.remote.http import KEY_VARIABLE
from clara_core.serving.app import build_app
from clara_core.serving.config import checked_config

try:
    from ray import serve
except ImportError as exc:
    raise ImportError(f"replicas need Ray Serve ({exc}): pip install 'clara-rag[serve,ray]'") from exc

REPLICA: Final = "x-clara-replica"
"""Response header with the id of the replica."""

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - a key is needed, because replicas do not know where Ray's proxy listens
_ROOM: Final = 4  # requests passed on by Ray for each that the gate accepts, so that the gate refuses and none queue
_PATIENCE: Final = 5  # seconds that Ray waits beyond `drain_seconds`


def application(values: Mapping[str, Any]) -> serve.Application:
    """The application for ``serve run`` and ``serve deploy``. Ray's own settings give the number of replicas.

    Args:
        values: Fields of `ServeConfig`, except ``host`` and ``port``, which Ray sets, and ``keys``, which each
            replica reads from ``key_file`` or the environment variable ``CLARA_API_KEY``.

    Raises:
        ValueError: A field is invalid.
    """
    own = {"host", "port", "keys"} & values.keys()
    if own:
        raise ValueError(f"{min(own)} cannot be set here: use Ray's http_options for the address and key_file for keys")
    # Only the replicas know the keys.
    config = checked_config({**values, "insecure": True})
    options = {
        "max_ongoing_requests": config.limits.requests * _ROOM,
        "max_queued_requests": config.limits.requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": config.drain_seconds + _PATIENCE,
    }
    return _Server.options(**options).bind(dict(values))


class Replica:
    """One replica.

    Raises:
        ValueError: There is no key, and ``insecure`` is not set.
        ClaraError: The model cannot be loaded.
    """

    async def __init__(self, values: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits the constructor
        key = os.environ.get(KEY_VARIABLE)
        keys = [key] if key and not values.get("key_file") else []
        self._server = build_app(checked_config({**values, "host": _EVERYWHERE, "keys": keys}))
        state = self._server.state.server
        await state.load()  # Ray sends no request before this ends
        if state.failure is not None:
            raise state.failure

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray to get the ASGI application."""
        self._server.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        return self._server

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica if this raises.

        Raises:
            RuntimeError: The replica cannot answer any more.
        """
        why = self._server.state.server.why_not_alive()
        if why is not None:
            raise RuntimeError(why)


class Named:
    """Adds the id of a replica to every response.

    Args:
        app: The application.
        name: Id of the replica.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA] = self.name
            await send(message)

        await self.app(scope, receive, named)


_Server = serve.deployment(serve.ingress()(Replica), name="clara")
