"""Runs a server: it listens, drains on the first signal to stop, and reads its key file again on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import warnings
from types import FrameType
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clara_core.serving.app import build_app
from clara_core.serving.config import ServeConfig
from clara_core.serving.state import ServerState

log = logging.getLogger(__name__)

_KEEP_ALIVE = 75  # seconds; longer than load balancers keep idle connections, so that none reuses a closed one


class PatientProtocol(H11Protocol):
    """uvicorn's h11 protocol with a time limit for the headers of a request.

    It closes connections that stay silent, or that send their headers too slowly.
    """

    seconds: ClassVar[float] = 30.0
    """Time in which the headers of a request must arrive."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()  # a request is being answered; the gate limits the time of its body
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._give_up)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None):
            self.transport.close()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which reports that it is not ready before it stops accepting connections.

    Args:
        config: Configuration of uvicorn.
        state: State of the server.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, and stop at once at the second."""
        if self.state.draining:
            self.should_exit = self.force_exit = True
            return
        self.drain()

    def drain(self) -> None:
        """Report not ready, and stop accepting connections after `drain_delay` seconds."""
        self.state.draining = True
        log.info("stopping: requests have %g s to finish", self.state.config.drain_seconds)
        delay = self.state.config.drain_delay
        if delay == 0:
            self.should_exit = True
            return
        loop = asyncio.get_event_loop()
        loop.call_later(delay, lambda: setattr(self, "should_exit", True))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives or loading the model fails."""
        watch = asyncio.create_task(self._watch_failure())
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):
            # Not on Windows, and not in a thread.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_keys)
        try:
            await super().serve(sockets)
        finally:
            watch.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and shut down in order if the server was stopped meanwhile. Older versions of uvicorn do not do so."""
        await super().startup(sockets)
        if self.started and self.should_exit:
            await self.shutdown(sockets)
            self.started = False

    async def _watch_failure(self) -> None:
        await self.state.failed.wait()
        self.should_exit = True

    def _reload_keys(self) -> None:
        try:
            self.state.keys.reload()
        except ValueError as exc:
            log.error("the keys were not changed: %s", exc)  # noqa: TRY400 - the message says it all
        else:
            log.info("the keys were read again")


def server_of(config: ServeConfig) -> DrainingServer:
    """Create the server of a configuration; it does not run yet."""
    app = build_app(config)
    limits = config.limits
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=round(config.drain_seconds),
        ws="none",
        http=type("Protocol", (PatientProtocol,), {"seconds": limits.body_seconds}),
        h11_max_incomplete_event_size=65_536,
        limit_concurrency=limits.requests * 4,
        lifespan="on",
    )
    return DrainingServer(settings, app.state.server)


def serve(config: ServeConfig) -> None:
    """Serve until a signal ends it.

    Raises:
        ClaraError: The model cannot be loaded.
    """
    warnings.filterwarnings("ignore", "truncated ")  # the warning shows the text, and the client warns its own user
    server = server_of(config)
    server.run()
    if server.state.failure is not None:
        raise server.state.failure
    server.state.engine.unload()
