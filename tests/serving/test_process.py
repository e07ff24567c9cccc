"""`clara serve` as a process of its own: it starts, says what it does, and ends without losing a request."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from clara_core.serving.config import ServeConfig
from clara_core.serving.run import server_of
from tests.serving.servers import PATIENCE

CHAT = {"model": "clara", "messages": [{"role": "user", "content": "Tell me about the bridge"}], "max_tokens": 48}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def process(*arguments: str, port: int | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = port or free_port()
    command = [sys.executable, "-m", "clara_core.cli", "serve", "pocket", "--port", str(port), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as started:
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + PATIENCE
            while True:
                assert started.poll() is None, started.stderr.read()
                assert time.monotonic() < end
                try:
                    if httpx.get(f"{url}/health/ready", timeout=PATIENCE).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
            yield started, url
        finally:
            if started.poll() is None:
                started.kill()


def test_the_end_under_load_loses_no_request_that_was_taken():
    with process("--drain-delay", "0.2") as (server, url):
        begun, replies, failures = threading.Barrier(9), [], []

        def ask(n: int) -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE) as http:
                begun.wait(PATIENCE)
                try:
                    replies.append(http.post("/v1/chat/completions", json=CHAT))
                except httpx.ConnectError:
                    pass  # not taken
                except httpx.TransportError as exc:
                    failures.append(exc)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        begun.wait(PATIENCE)
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            while b"clara_requests_in_flight 0.0" in http.get("/metrics").content and not replies:
                pass
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE)
        assert server.wait(PATIENCE) == 0
        assert failures == []
        assert replies
        assert {reply.status_code for reply in replies} == {200}
        lines = server.stderr.read().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    answered = [each for each in told if each["route"] == "/v1/chat/completions"]
    assert len(answered) == len(replies)
    assert all(each["status"] == 200 and each["ms"] > 0 and each["id"] for each in answered)
    assert "bridge" not in "".join(lines)
    assert any(line.startswith("ending:") for line in lines)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no-such-folder-or-model"], "no-such-folder-or-model"),
        (["pocket", "--host", "192.0.2.1"], "there is no key"),
        (["pocket", "--store", "x"], "--store takes NAME=URI"),
        (["pocket", "--store", "../x=/tmp"], "a store is named by"),
        (["http://127.0.0.1:1"], "is another server"),
    ],
)
def test_what_cannot_be_served_is_one_line(clara, arguments, message, monkeypatch):
    monkeypatch.delenv("CLARA_API_KEY", raising=False)
    code, _, said = clara("serve", *arguments, "--port", str(free_port()))
    assert code == 2
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_server_that_ends_while_it_starts_ends_in_order(caplog):
    server = server_of(ServeConfig(port=free_port()))
    server.state.failed.set()
    server.run()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
