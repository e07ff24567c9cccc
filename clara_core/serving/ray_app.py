"""Several replicas of a server behind one address, on Ray Serve: the same application, one engine a replica.

Ray starts the replicas, spreads requests over them and replaces one that fails. There is no second hop and no second
batcher: a request goes to the replica that answers it, and its scheduler batches. What replicas share is the stores, by
an address that all of them reach. Needs the extras ``serve`` and ``ray``.
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
"""The header of a response that names the replica."""

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - replicas do not know where Ray's proxy listens, so a key is needed
_ROOM: Final = (
    4  # requests that Ray hands over for each that the gate takes: the gate is to refuse, not to be waited for
)
_PATIENCE: Final = 5  # seconds that Ray waits after the time in which requests have to finish


def application(values: Mapping[str, Any]) -> serve.Application:
    """The application for ``serve run`` and ``serve deploy``; its replicas are set beside it, as for every deployment.

    Args:
        values: Fields of `ServeConfig`, without ``host`` and ``port``, which are Ray's, and ``keys``, which each
            replica reads from ``key_file`` or the environment variable ``CLARA_API_KEY``.

    Raises:
        ValueError: A field cannot be.
    """
    own = {"host", "port", "keys"} & values.keys()
    if own:
        raise ValueError(f"{min(own)} is not set here: Ray's http_options say where it listens, key_file has the keys")
    # Keys are known on the replicas alone.
    config = checked_config({**values, "insecure": True})
    options = {
        "max_ongoing_requests": config.limits.requests * _ROOM,
        "max_queued_requests": config.limits.requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": config.drain_seconds + _PATIENCE,
    }
    return _Server.options(**options).bind(dict(values))


class Replica:
    """One server of several.

    Raises:
        ValueError: There is no key, and ``insecure`` was not said.
        ClaraError: The model cannot be loaded.
    """

    async def __init__(self, values: Mapping[str, Any]) -> None:  # type: ignore[misc]  # as Ray wants it
        key = os.environ.get(KEY_VARIABLE)
        keys = [key] if key and not values.get("key_file") else []
        self._server = build_app(checked_config({**values, "host": _EVERYWHERE, "keys": keys}))
        state = self._server.state.server
        await state.load()  # Ray sends no request before this ends
        if state.failure is not None:
            raise state.failure

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Of Ray."""
        self._server.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        return self._server

    def check_health(self) -> None:
        """Ray replaces a replica whose check fails.

        Raises:
            RuntimeError: It is of no use any more.
        """
        why = self._server.state.server.why_not_alive()
        if why is not None:
            raise RuntimeError(why)


class Named:
    """Puts the name of a replica on every response.

    Args:
        app: What answers.
        name: Of the replica.
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
