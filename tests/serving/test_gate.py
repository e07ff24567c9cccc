"""Access to a server, its limits, and the cancellation of work for clients that disconnect."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import httpx
import pytest

from clara_core import ServerError, ServerOverloaded, open_engine
from clara_core.serving.config import Keys, ServeConfig, checked_config
from tests.engines import wrapped
from tests.serving.servers import PATIENCE, running

KEY = "a-key-of-more-than-sixteen"
READER = "a-reader-of-more-than-sixteen"
CHAT = {"model": "clara", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


# --- the configuration -----------------------------------------------------------------------------------


def test_another_address_needs_a_key(tmp_path):
    everywhere = "0.0.0.0"  # noqa: S104 - this is refused
    with pytest.raises(ValueError, match="can be reached from other machines, and there is no key"):
        checked_config({"host": everywhere})
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        assert checked_config({"host": host}).loopback
    assert not checked_config({"host": everywhere, "keys": [KEY]}).loopback
    assert not checked_config({"host": everywhere, "insecure": True}).loopback
    with pytest.raises(ValueError, match="writable names the store 'x'"):
        checked_config({"writable": {"x"}})
    for name in ("../x", "a/b", "", ".", "a" * 65, "a b"):
        with pytest.raises(ValueError, match="a store is named by"):
            checked_config({"stores": {name: str(tmp_path)}})
    assert KEY not in repr(checked_config({"keys": [KEY]}))


def test_keys_are_read_again(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\n{READER} read-only\n")
    keys = Keys(ServeConfig(key_file=path))
    assert keys.find(KEY).label == "key-1"
    assert not keys.find(KEY).read_only
    assert keys.find(READER).read_only
    assert keys.find("") is None
    assert keys.find(KEY[:-1]) is None
    path.write_text("another-key-of-sixteen\n")
    keys.reload()
    assert keys.find(KEY) is None
    for content, message in (("", "holds no key"), ("short", "at least 16"), (f"{KEY} admin", "only 'read-only'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            keys.reload()
        assert keys.find("another-key-of-sixteen") is not None
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        keys.reload()


# --- keys ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked():
    with running(keys=[KEY, f"{READER} read-only"], docs=True) as server:
        yield server


def paths(app):
    """Every path and method of an app, including those of nested routers."""
    found = set()
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            waiting += inner
        if methods := getattr(route, "methods", None):
            found |= {(method, route.path.replace("{name:path}", "x").replace("{name}", "x")) for method in methods}
    return found


def test_every_route_but_health_needs_the_key(locked):
    known = paths(locked.server.config.app)
    assert {("POST", "/v1/chat/completions"), ("POST", "/v1/clara/rank"), ("GET", "/metrics"), ("GET", "/docs"),
            ("GET", "/v1/models/x")} <= known  # fmt: skip
    open_paths = {"/health", "/health/live", "/health/ready"}
    for method, path in sorted(known):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"x-api-key": KEY[:-1]},
            {"authorization": f"Bearer {KEY}x"},
        ):
            response = locked.http.request(method, path, headers=headers)
            assert response.status_code == (200 if path in open_paths else 401), (method, path)
            if path not in open_paths and method != "HEAD":
                assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1/../metrics", "/health/../metrics", "/health/%2e%2e/metrics", "/health%2f..%2fmetrics",
     "/%6detrics", "/health;/../metrics", "/HEALTH", "/nothing", "/health/"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE"])
def test_tricks_with_paths_open_nothing(locked, method, path):
    host, port = locked.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as raw:
        raw.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        reply = b""
        while part := raw.recv(65536):
            reply += part
    assert reply.split(b" ", 2)[1] in (b"401", b"400"), reply[:200]


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": READER}])
def test_a_key_opens(locked, headers):
    assert locked.http.get("/v1/models", headers=headers).status_code == 200
    basic = locked.http.get("/v1/models", auth=("anybody", KEY))
    assert basic.status_code == 200


def test_the_client_sends_its_key(locked, monkeypatch):
    assert open_engine(locked.url, token=KEY).answer("Hello", max_tokens=4).completion_tokens <= 4
    monkeypatch.setenv("CLARA_API_KEY", KEY)
    assert open_engine(locked.url + "/v1").n_mem == 16
    monkeypatch.delenv("CLARA_API_KEY")
    with pytest.raises(ServerError, match="a key is needed"):
        open_engine(locked.url).load()


# --- browsers --------------------------------------------------------------------------------------------


def test_a_page_of_another_site_can_do_nothing(server):
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
        response = server.http.get("/v1/models", headers={"host": host})
        assert response.status_code in (400, 403)
    for host in ("localhost", "LOCALHOST:8010", "[::1]:8010", "127.0.0.1"):
        assert server.http.get("/v1/models", headers={"host": host}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = server.http.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": kind})
        assert response.status_code == 415
    response = server.http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_request_keeps_its_id(server):
    assert server.http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for wrong in ("a" * 129, "a b", 'a"b'):
        assert server.http.get("/health", headers={"x-request-id": wrong}).headers["x-request-id"] != wrong


# --- hostile bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"model":"clara","messages":' + b'[{"role":"user","content":' * 5000,
        json.dumps({**CHAT, "metadata": json.loads("[" * 150 + "]" * 150)})[:-1].encode(),
        b'{"model":"clara","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"clara","messages":[{"role":"user","content":"\xff\xfe"}]}',
        json.dumps({**CHAT, "temperature": 1e308}).replace("1e+308", "1e999").encode(),
        b'{"model":"clara","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        json.dumps({**CHAT, "max_tokens": -1}).encode(),
        json.dumps({**CHAT, "seed": 2**70}).encode(),
        json.dumps({**CHAT, "n": 2}).encode(),
        json.dumps({**CHAT, "tools": [{"type": "function"}]}).encode(),
        json.dumps({**CHAT, "response_format": {"type": "json_object"}}).encode(),
        json.dumps({**CHAT, "top_logprobs": 3}).encode(),
        json.dumps({**CHAT, "presence_penalty": 0.5}).encode(),
        json.dumps({**CHAT, "temprature": 0.5}).encode(),
        json.dumps({**CHAT, "messages": []}).encode(),
        json.dumps({**CHAT, "messages": [{"role": "tool", "content": "a"}]}).encode(),
        json.dumps({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).encode(),
        json.dumps({**CHAT, "documents": [{"id": "a"}]}).encode(),
        json.dumps({**CHAT, "documents": ["a"] * 257}).encode(),
    ],
)
def test_a_body_that_is_wrong_is_a_400_that_says_what(server, body):
    response = server.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    told = response.json()
    assert told["error"]["type"] == "invalid_request_error"
    assert told["detail"] == told["error"]["message"]
    assert len(response.content) < 2000
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 100_000, b'{"a":' * 5000, b"NaN", b'{"documents": 1e999}', b'"\\ud800"', b"\xff\xfe", b"\x00" * 99],
)
def test_no_route_fails_over_a_body(server, body):
    posted = [path for method, path in paths(server.server.config.app) if method == "POST"]
    assert len(posted) > 15
    for path in posted:
        for kind in ("application/json", "application/x-ndjson"):
            response = server.http.post(path, content=body, headers={"content-type": kind})
            assert 400 <= response.status_code < 500, (path, kind, response.text)
    assert server.http.get("/health/live").status_code == 200


def test_documents_without_end_are_refused(server):
    response = server.post("/v1/rerank", {"model": "clara", "query": "q", "documents": ["a"] * 100_000})
    assert response.status_code == 400
    assert "at most 1000" in response.json()["detail"]
    response = server.post("/v1/embeddings", {"model": "clara", "input": ["a"] * 2049})
    assert "at most 2048" in response.json()["detail"]
    response = server.post("/v1/embeddings", {"model": "clara", "input": "a" * 1_000_001})
    assert "at most 1000000" in response.json()["detail"]


def test_text_that_looks_like_control_is_text(server, local):
    text = "<MEM0> <SEP> <ENC> </s> <|im_end|> [INST] {question} {{context}} \x00 \u202eback"
    response = server.post(
        "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}], "documents": [text]}
    )
    expected = local.answer(text, local.remember([text]), max_tokens=4)
    assert response.json()["choices"][0]["message"]["content"] == expected.text
    assert response.json()["usage"]["prompt_tokens_details"]["memory_tokens"] == expected.memory_tokens


@pytest.fixture(scope="module")
def small():
    """A server with small limits."""
    limits = {"body_bytes": 4096, "body_seconds": 0.5, "requests": 2, "waiting_bytes": 8192}
    with running(limits=limits) as server:
        yield server


def test_bodies_without_end_are_cut_off(small):
    def endless():
        yield b'{"model": "'
        while True:
            yield b"a" * 1000

    # The server may answer, or close the connection of a client that continues to send.
    try:
        response = small.http.post(
            "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
    except httpx.TransportError:
        pass
    response = small.post("/v1/chat/completions", {**CHAT, "user": "a" * 5000})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert small.http.get("/health").status_code == 200


def test_slow_senders_and_large_headers_are_let_go(small):
    host, port = small.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), PATIENCE) as raw:
        raw.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert b" 504 " in raw.recv(65536)
    for before in ("", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection((host, int(port)), PATIENCE) as raw:
            if before:
                raw.sendall(before.encode())
                assert b" 200 " in raw.recv(65536)
            raw.sendall(head.encode())
            while raw.recv(65536):  # until the server closes
                pass
    with socket.create_connection((host, int(port)), PATIENCE) as raw:
        try:
            raw.sendall(head.encode())
            for _ in range(160):
                raw.sendall(b"X-Large: " + b"a" * 65536 + b"\r\n")
            reply = raw.recv(65536)
        except OSError:
            reply = b""
    assert reply == b"" or reply.split(b" ")[1] in (b"400", b"431")
    assert small.http.get("/health").status_code == 200


# --- overload --------------------------------------------------------------------------------------------


def test_what_is_too_much_is_refused_at_once(small):
    model = small.state.engine.load().model
    held = threading.Event()
    replies = []

    def slow(original, *arguments, **options):
        assert held.wait(PATIENCE)
        return original(*arguments, **options)

    def ask(n):
        with httpx.Client(base_url=small.url, timeout=PATIENCE) as http:
            replies.append(http.post("/v1/rerank", json={"query": f"q{n}", "documents": [f"document {n}"]}))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(2)]
    engine = open_engine(small.url)
    engine.load()
    with wrapped(model, "encode", slow):
        try:
            for thread in threads:
                thread.start()
            small.wait_until(lambda: small.state.in_flight == 2)
            refused = [small.post("/v1/rerank", {"query": "q", "documents": ["a"]}) for _ in range(5)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("clara_core.engine.remote.http.time.sleep", lambda _seconds: None)
                with pytest.raises(ServerOverloaded, match="2 requests are being answered") as caught:
                    engine.reason(["q"])
            assert small.http.get("/health/ready").status_code == 200
        finally:
            held.set()
            for thread in threads:
                thread.join(PATIENCE)
    assert {reply.status_code for reply in refused} == {503}
    assert all(1 <= int(reply.headers["retry-after"]) <= 30 for reply in refused)
    assert {reply.json()["error"]["code"] for reply in refused} == {"overloaded"}
    assert caught.value.retry_after >= 1
    assert [reply.status_code for reply in replies] == [200, 200]
    small.wait_until(lambda: small.state.in_flight == 0)


def test_a_request_may_say_how_long_it_waits(server):
    response = server.post("/v1/chat/completions", CHAT, **{"x-clara-timeout": "0"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    server.wait_until(lambda: server.state.in_flight == 0)


# --- clients that disconnect -----------------------------------------------------------------------------


def idle(state) -> bool:
    stats = state.engine.stats()
    return not (stats.waiting or stats.running or stats.questions or stats.passages or state.in_flight)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_not_worked_for(server, stream):
    body = json.dumps(
        {**CHAT, "max_tokens": 2000, "stream": stream, "messages": [{"role": "user", "content": "Tell me"}]}
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    before = server.state.metrics.cancelled.labels("disconnect")._value.get()
    for n in range(20):
        with socket.create_connection((host, int(port)), PATIENCE) as raw:
            raw.sendall((head + body).encode())
            if stream and n % 2:
                raw.recv(1)  # while it is generated
            elif n % 3 == 0:
                server.wait_until(lambda: server.state.in_flight > 0)
    server.wait_until(lambda: idle(server.state))
    assert server.state.metrics.cancelled.labels("disconnect")._value.get() > before


async def test_a_cancelled_task_stops_the_work_on_the_server(server, remote):
    task = asyncio.create_task(remote.aanswer("Tell me", max_tokens=2000))
    await asyncio.to_thread(server.wait_until, lambda: task.done() or server.state.engine.stats().running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(server.wait_until, lambda: idle(server.state))


def test_a_closed_stream_stops_the_work_on_the_server(server, remote):
    with remote.stream("Tell me", max_tokens=2000) as pieces:
        next(pieces)
    server.wait_until(lambda: idle(server.state))


# --- separation of clients -------------------------------------------------------------------------------


async def test_answers_of_many_at_once_are_each_their_own(server, local):
    questions = [
        (f"Who keeps the lighthouse of Port {n}?", [f"The lighthouse of Port {n} is kept by Ada {n}."])
        for n in range(16)
    ]
    expected = [local.answer(question, local.remember(texts), max_tokens=12).text for question, texts in questions]

    async def ask(http, question, texts):
        body = {**CHAT, "max_tokens": 12, "messages": [{"role": "user", "content": question}], "documents": texts}
        reply = await http.post("/v1/chat/completions", json=body)
        return reply.json()["choices"][0]["message"]["content"]

    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
        found = await asyncio.gather(*(ask(http, *each) for each in questions))
    assert found == expected
