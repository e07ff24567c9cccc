"""Runs `clara serve` as a separate process, for benchmarks and tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

PATIENCE = 300.0  # seconds to wait until the server is ready


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: Its process.
        url: Its address.
        log: File with its standard error. A pipe that is not read would block the server.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def lines(self) -> list[str]:
        """The log so far."""
        return self.log.read_text(encoding="utf-8").splitlines()


@contextmanager
def serving(*arguments: str, port: int | None = None) -> Iterator[Server]:
    """Start a server of the bundled model and wait until it is ready; it is killed at the end if it still runs.

    Args:
        arguments: Arguments of ``clara serve pocket``.
        port: Port to listen at; None chooses a free one.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "clara_core.cli", "serve", "pocket", "--port", str(port), *arguments]
    with tempfile.NamedTemporaryFile() as log, subprocess.Popen(command, stderr=log) as started:
        server = Server(started, f"http://127.0.0.1:{port}", Path(log.name))
        try:
            end = time.monotonic() + PATIENCE
            with httpx.Client(timeout=PATIENCE) as client:
                while not _ready(client, server.url):
                    if started.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"the server did not start: {server.lines()}")
                    time.sleep(0.05)
            yield server
        finally:
            started.kill()


def _ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False
