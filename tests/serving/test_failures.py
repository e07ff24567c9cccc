"""Overload, clients that disconnect at any moment, a device that hangs or fails, a server that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from benchmarks.server_process import free_port, serving
from clara_core import MemoryStore, ServerUnreachable, open_engine
from clara_core.common.errors import ClaraError, ServerError, StoreError
from clara_core.engine.remote.wire import CODES, code_of
from clara_core.model.devices import DeviceLost
from clara_core.serving.failures import failure, refused_of
from tests.engines import Counter, wrapped
from tests.serving.servers import PATIENCE, running
from tests.serving.test_gate import CHAT, idle
from tests.tiny import build

TAKEN = 16 + 4  # answers in the batch on a processor, and answers that wait


@pytest.fixture(scope="module")
def server():
    with running(limits={"waiting_answers": 4, "turn_seconds": 0.2}) as started:
        yield started


@contextmanager
def held(server, name):
    """A method of the server's model that waits until it is released."""
    calls = SimpleNamespace(entered=threading.Event(), let_go=threading.Event(), count=0)

    def wait(original, *arguments, **options):
        calls.count += 1
        calls.entered.set()
        assert calls.let_go.wait(PATIENCE)
        return original(*arguments, **options)

    with wrapped(server.state.engine.load().model, name, wait):
        try:
            yield calls
        finally:
            calls.let_go.set()
            server.wait_until(lambda: idle(server.state))


def raising(exc):
    def raises(original, *arguments, **options):
        raise exc

    return raises


async def test_what_is_above_three_times_as_much_is_refused_and_the_rest_finishes(server):
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
        with held(server, "prefill"):
            asked = {asyncio.create_task(http.post("/v1/chat/completions", json=CHAT)) for _ in range(3 * TAKEN)}
            done: set[asyncio.Task[httpx.Response]] = set()
            while len(done) < 2 * TAKEN:  # while no answer is finished
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
                await asyncio.sleep(0.01)
            refused = [each.result() for each in done]
        accepted = [await each for each in asked - done]
    assert {reply.status_code for reply in refused} == {503}
    assert {reply.json()["error"]["code"] for reply in refused} == {"overloaded"}
    assert all(1 <= int(reply.headers["retry-after"]) <= 30 for reply in refused)
    assert [reply.status_code for reply in accepted] == [200] * TAKEN
    assert server.state.answers == 0


def sent(server, path, body):
    """A request on a socket that is closed next."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    raw = socket.create_connection((host, int(port)), PATIENCE)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return raw


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_a_prompt_is_read_or_waits_leaves_no_work(server, stream):
    body = {**CHAT, "max_tokens": 1000, "stream": stream}
    with Counter(server.state.engine.load().model, "step") as steps, held(server, "prefill") as prefill:
        clients = [sent(server, "/v1/chat/completions", body)]
        assert prefill.entered.wait(PATIENCE)
        clients += [sent(server, "/v1/chat/completions", body) for _ in range(TAKEN - 1)]
        server.wait_until(lambda: server.state.engine.stats().waiting >= TAKEN - 1)
        for client in clients:
            client.close()
        server.wait_until(lambda: server.state.in_flight == server.state.answers == 0)  # although the device is blocked
        prefill.let_go.set()
        server.wait_until(lambda: idle(server.state))
    assert steps.calls <= 1


def test_who_leaves_while_documents_are_compressed_leaves_no_work(server):
    texts = [f"Note {n} of the harbour master." for n in range(200)]
    with held(server, "encode") as encode:
        client = sent(server, "/v1/rerank", {"query": "Who?", "documents": texts})
        assert encode.entered.wait(PATIENCE)
        client.close()
        server.wait_until(lambda: server.state.in_flight == 0)
        encode.let_go.set()
        server.wait_until(lambda: idle(server.state))
    assert encode.count == 1  # of more batches


def test_a_device_that_hangs_and_one_that_died_are_seen(server):
    def health():
        return server.http.get("/health/live")

    with held(server, "encode") as encode:
        client = sent(server, "/v1/rerank", {"query": "Who?", "documents": ["A note that nobody has seen."]})
        assert encode.entered.wait(PATIENCE)
        server.wait_until(lambda: health().status_code == 503)
        assert "has not finished a turn" in health().json()["status"]
        assert server.http.get("/health/ready").status_code == 503
        encode.let_go.set()
        assert b" 200 " in client.recv(65536)
        client.close()
    server.wait_until(lambda: health().status_code == 200)

    with wrapped(server.state.engine.load().model, "prefill", raising(BaseException("a fault of the thread"))):
        reply = server.post("/v1/chat/completions", CHAT)
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_unavailable"
    assert reply.headers["retry-after"]
    assert health().json() == {"status": "the engine's thread has ended"}
    assert server.post("/v1/chat/completions", CHAT).status_code == 200  # which starts another one
    assert health().status_code == 200


def test_a_device_that_is_lost_stays_lost(tmp_path):
    with running(options={"model": str(build(tmp_path).folder)}) as server:
        with wrapped(server.state.engine.load().model, "prefill", raising(DeviceLost("the card fell off the bus"))):
            assert server.post("/v1/chat/completions", CHAT).status_code == 503
        for _ in range(2):
            assert server.post("/v1/chat/completions", CHAT).json()["error"]["code"] == "engine_unavailable"
            assert server.http.get("/health/live").status_code == 503  # its supervisor restarts it


class Writer(threading.Thread):
    """Adds documents, eight in each request, until this fails."""

    def __init__(self, store, name, known):
        super().__init__()
        self.store, self.name_, self.known = store, name, known
        self.under_way: dict[str, str] = {}
        self.acknowledged = threading.Event()
        self.failure: Exception | None = None

    def run(self):
        try:
            for batch in range(100_000):
                self.under_way = {f"{self.name_}-{batch}-{n}": f"Lighthouse {batch} {n}." for n in range(8)}
                self.store.add(list(self.under_way.values()), ids=list(self.under_way))
                self.known |= self.under_way
                self.under_way = {}
                if batch == 2:
                    self.acknowledged.set()
        except ServerUnreachable as exc:
            self.failure = exc


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.heavy)])
def test_a_server_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path, kills):
    port, folder = free_port(), str(tmp_path / "store")
    engine = open_engine(f"http://127.0.0.1:{port}")
    store = MemoryStore.open(f"{engine.arguments.model}/v1/stores/a", engine)
    known: dict[str, str] = {}
    for kill in range(kills):
        with serving("--store", f"a={folder}", "--writable", "a", port=port) as server:
            assert len(store) == len(known)  # the client continues with the same objects
            writer = Writer(store, str(kill), known)
            writer.start()
            assert writer.acknowledged.wait(PATIENCE)
            stream = engine.stream("Tell me everything.", max_tokens=1500, temperature=50.0, seed=1)
            next(stream)
            server.process.send_signal(signal.SIGKILL)
            with pytest.raises(ServerUnreachable, match="was interrupted"):
                list(stream)
            writer.join(PATIENCE)
        assert "does not answer" in str(writer.failure)
        found = {record.id: record.text for record in MemoryStore.open(folder, model="pocket")}
        # One request is one commit: its documents are all stored, or none is.
        assert found in (known, known | writer.under_way)
        known = found
    with running(port=port, stores={"a": folder}, writable={"a"}):
        assert len(store) == len(known)


def test_a_fault_of_a_store_is_not_a_missing_store():
    """The client raises what the engine raised, and a damaged store answers 500, not 404."""
    refused = refused_of(StoreError("the table cannot be read"), "r1")
    assert (refused.code, failure(refused).status_code) == ("store_error", 500)
    assert failure(refused).headers["x-should-retry"] == "false"
    for code, (_, kind) in CODES.items():
        if issubclass(kind, ClaraError) and kind is not ServerError:
            assert CODES[code_of(kind("said"))][1] is kind, code
