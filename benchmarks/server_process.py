"""`clara serve` as a process of its own, for the programs that measure it and for the tests."""

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

PATIENCE = 300.0  # seconds; a server that is not ready then will not be


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: Its process.
        url: Its address.
        log: What it writes to standard error; a file, since a pipe that nobody reads would bring it to a stand.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def lines(self) -> list[str]:
        """What it has said."""
        return self.log.read_text(encoding="utf-8").splitlines()


@contextmanager
def serving(*arguments: str, port: int | None = None) -> Iterator[Server]:
    """A server of the bundled model that is ready; killed at the end unless it has ended.

    Args:
        arguments: Of ``clara serve pocket``.
        port: To listen at; None: one that is free.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "clara_core.cli", "serve", "pocket", "--port", str(port), *arguments]
    with tempfile.NamedTemporaryFile() as log, subprocess.Popen(command, stderr=log) as started:
        server = Server(started, f"http://127.0.0.1:{port}", Path(log.name))
        try:
            end = time.monotonic() + PATIENCE
            while not _ready(server.url):
                if started.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start: {server.lines()}")
                time.sleep(0.05)
            yield server
        finally:
            started.kill()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False
