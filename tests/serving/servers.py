"""Runs servers in a thread, on a free port of this machine, so that the tests use real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from clara_core.serving.config import ServeConfig
from clara_core.serving.run import DrainingServer, server_of

PATIENCE = 300.0  # seconds; only a failing test waits that long


class Running:
    """A server that runs in a thread."""

    def __init__(self, server: DrainingServer, port: int) -> None:
        self.server = server
        self.state = server.state
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def wait_until(self, holds: Any) -> None:
        """Wait until a condition is true, however busy the machine is."""
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.01)


@contextmanager
def running(*, ready: bool = True, port: int = 0, **config: Any) -> Iterator[Running]:
    """Run a server of the bundled model, unless `config` names another one; port 0 stands for a free one."""
    server = server_of(ServeConfig.model_validate({"options": {"model": "pocket"}, **config}))
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended
        listening.bind(("127.0.0.1", port))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name="server")
        thread.start()
        here = Running(server, listening.getsockname()[1])
        try:
            here.wait_until(lambda: server.started or not thread.is_alive())
            if ready:
                here.wait_until(lambda: server.state.ready)
            yield here
        finally:
            here.http.close()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
