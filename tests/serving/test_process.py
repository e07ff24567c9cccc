"""`clara serve` as a process: start, log, and shutdown without a lost request."""

from __future__ import annotations

import json
import signal
import threading

import httpx
import pytest

from benchmarks.server_process import free_port, serving
from clara_core.serving.config import ServeConfig
from clara_core.serving.run import server_of
from tests.serving.servers import PATIENCE

CHAT = {"model": "clara", "messages": [{"role": "user", "content": "Tell me about the bridge"}], "max_tokens": 48}


def test_the_end_under_load_loses_no_request_that_was_taken():
    with serving("--drain-delay", "0.2") as server:
        begun, replies, failures = threading.Barrier(9), [], []

        def ask(n: int) -> None:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
                begun.wait(PATIENCE)
                try:
                    replies.append(http.post("/v1/chat/completions", json=CHAT))
                except httpx.ConnectError:
                    pass  # not free
                except httpx.TransportError as exc:
                    failures.append(exc)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        begun.wait(PATIENCE)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            while b"clara_requests_in_flight 0.0" in http.get("/metrics").content and not replies:
                pass
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE)
        assert server.process.wait(PATIENCE) == 0
        assert failures == []
        assert replies
        assert {reply.status_code for reply in replies} == {200}
        lines = server.lines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    answered = [each for each in told if each["route"] == "/v1/chat/completions"]
    assert len(answered) == len(replies)
    assert all(each["status"] == 200 and each["ms"] > 0 and each["id"] for each in answered)
    assert "bridge" not in "".join(lines)
    assert any(line.startswith("stopping:") for line in lines)


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
