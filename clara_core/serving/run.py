"""A server as a process: it listens, drains when it is told to end, and reads its keys again when it is told to."""

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

_KEEP_ALIVE = 75  # seconds; more than the idle time of common balancers, which else meet closed connections


class PatientProtocol(H11Protocol):
    """uvicorn's protocol over h11, which bounds the size of headers, and here their time.

    A connection that says nothing for a while, or sends its headers one letter at a time, is closed.
    """

    seconds: ClassVar[float] = 30.0
    """In which the headers of a request have to arrive."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()  # a request is being answered; its body is the gate's to wait for
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
    """uvicorn's server, which tells that it ends before it takes no more connections.

    Args:
        config: Of uvicorn.
        state: Of the server.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends at once."""
        if self.state.draining:
            self.should_exit = self.force_exit = True
            return
        self.drain()

    def drain(self) -> None:
        """Say that the server is not ready any more; stop taking connections after the delay of the configuration."""
        self.state.draining = True
        log.info("ending: requests have %g s to finish", self.state.config.drain_seconds)
        delay = self.state.config.drain_delay
        if delay == 0:
            self.should_exit = True
            return
        loop = asyncio.get_event_loop()
        loop.call_later(delay, lambda: setattr(self, "should_exit", True))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, or until the model turns out not to load."""
        watch = asyncio.create_task(self._watch_failure())
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):
            # Not on Windows, and not in a thread.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_keys)
        try:
            await super().serve(sockets)
        finally:
            watch.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; shut down in order if the server was stopped meanwhile, as older versions of uvicorn do not."""
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
            log.error("the keys stay as they are: %s", exc)  # noqa: TRY400 - the message says it all
        else:
            log.info("the keys were read again")


def server_of(config: ServeConfig) -> DrainingServer:
    """The server of a configuration, not yet running."""
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
    warnings.filterwarnings("ignore", "truncated ")  # shows the text; the client that asked for it warns its own user
    server = server_of(config)
    server.run()
    if server.state.failure is not None:
        raise server.state.failure
    server.state.engine.unload()
