"""Builds the ASGI application of a server, which uvicorn or Ray Serve runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from clara_core.common.version import __version__
from clara_core.engine.options import option_values
from clara_core.serving.config import ServeConfig
from clara_core.serving.failures import install
from clara_core.serving.gate import Gate
from clara_core.serving.native import native_routes
from clara_core.serving.page import page_routes
from clara_core.serving.standard import standard_routes
from clara_core.serving.state import ServerState
from clara_core.serving.stores import store_routes


def build_app(config: ServeConfig | None = None) -> FastAPI:
    """Build the application of one server. The model loads in the background when the application starts.

    Args:
        config: Configuration of the server; None is a `ServeConfig` with the defaults.

    Returns:
        FastAPI: The application; ``app.state.server`` is its `ServerState`.

    Raises:
        ValueError: The model is the address of another server, or a key file cannot be read.
    """
    from clara_core import ClaraEngine
    from clara_core.engine.door import is_server

    config = config or ServeConfig()
    if is_server(config.options.model):
        raise ValueError(f"a server loads its own model; {config.options.model} is another server's address")
    engine = ClaraEngine.from_pretrained(**option_values(config.options))
    return app_of(ServerState(config, engine))


def app_of(state: ServerState) -> FastAPI:
    """Build the application of a server with the given state."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(state.load())
        try:
            yield
        finally:
            loading.cancel()

    docs = state.config.docs
    app = FastAPI(
        title="clara serve",
        version=__version__,
        lifespan=lifespan,
        docs_url="/docs" if docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs else None,
    )
    app.state.server = state
    install(app)
    _health(app, state)
    for routes in (native_routes, standard_routes, store_routes):
        app.include_router(routes(state))
    app.include_router(page_routes())
    app.add_middleware(Gate, state=state)
    return app


def _health(app: FastAPI, state: ServerState) -> None:
    def status(why: str | None) -> Response:
        return JSONResponse({"status": "ok" if why is None else why}, 200 if why is None else 503)

    @app.get("/health/live", tags=["health"])
    async def live() -> Response:
        return status(state.why_not_alive())

    @app.get("/health", tags=["health"])
    @app.get("/health/ready", tags=["health"])
    async def ready() -> Response:
        return status(state.why_not_ready())

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        return Response(state.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
