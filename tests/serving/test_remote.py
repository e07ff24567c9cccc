"""A remote engine gives the same results as the engine of the server."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading

import httpx
import pytest
import torch

from clara_core import (
    ClaraEngine,
    ContextOverflow,
    FingerprintMismatch,
    Memory,
    ServerError,
    ServerUnreachable,
    UnknownOption,
    WindowOverflow,
    open_engine,
)
from clara_core.engine.remote.engine import RemoteEngine
from clara_core.engine.sampling import Chunk
from tests.serving.servers import PATIENCE, running
from tests.serving.test_failures import held
from tests.serving.test_gate import idle

QUESTION = "When was Tolmet Bridge opened?"
TEXTS = [
    "Tolmet Bridge was opened in 1907. It crosses the river Aln.",
    "Captain Ada Quill sailed the Merganser from Bristol to Lisbon in nine days.",
    "富士山 is 3,776 m high; both are climbed in <|im_end|> summer! \U0001f600",
    " ".join(f"The {n}th pillar of the bridge is {n} metres high." for n in range(40)),
    "",
]


def same(one: Memory, other: Memory) -> bool:
    facts = [(each.text, each.spans, each.source_tokens, each.fingerprint, each.n_windows) for each in (one, other)]
    return facts[0] == facts[1] and torch.allclose(one.tokens, other.tokens, atol=1e-6)


def test_an_address_gives_the_same_engine_by_every_door(server, remote):
    assert isinstance(remote, RemoteEngine)
    assert ClaraEngine.from_pretrained(server.url) is remote
    assert copy.deepcopy(remote) is remote
    assert pickle.loads(pickle.dumps(remote)) is remote  # noqa: S301
    assert open_engine(server.url, token="k" * 16) is not remote


def test_what_a_server_decides_is_refused(server):
    with pytest.raises(ValueError, match="dtype= cannot be given"):
        open_engine(server.url, dtype="bfloat16")
    with pytest.raises(ValueError, match="compression= cannot be given"):
        ClaraEngine.from_pretrained(server.url, compression=16)
    with pytest.raises(UnknownOption, match="dtype"):
        open_engine(server.url, dtpye="bfloat16")


def test_a_memory_of_a_server_can_be_read_by_the_engine_itself(local, remote):
    memories = remote.remember(["Tolmet Bridge was opened in 1907, on a Sunday."])
    assert local.answer(QUESTION, memories) == local.answer(QUESTION, local.remember([memories[0].text]))


def test_what_does_not_fit_is_the_same_error(remote, local):
    long = TEXTS[3]
    with pytest.raises(WindowOverflow, match="does not fit the window"):
        remote.compress([long], "error")
    with pytest.warns(UserWarning, match="truncated"):
        [cut] = remote.compress([long], "truncate")
    with pytest.warns(UserWarning, match="truncated"):
        assert same(cut, local.compress([long], "truncate")[0])
    with pytest.raises(ContextOverflow, match="shorten the conversation"):
        remote.answer("word " * 4000)
    with pytest.raises(ValueError, match="overflow must be one of"):
        remote.compress([long], "spilt")
    with pytest.raises(TypeError, match=r"texts\[0\] must be a string"):
        remote.remember([1])
    with pytest.raises(UnknownOption, match="max_tokens"):
        remote.answer(QUESTION, max_token=3)
    with pytest.raises(ValueError, match="temperature must be"):
        remote.answer(QUESTION, temperature=-1.0)
    with pytest.raises(ValueError, match="the last message is the model's own"):
        remote.chat([{"role": "assistant", "content": "no"}])
    foreign = Memory(local.compress(["x"])[0].tokens, "x", ((0, 1),), 1, "0" * 64)
    with pytest.raises(FingerprintMismatch):
        remote.rank(QUESTION, [foreign])


def test_a_ranking_that_is_too_large_goes_in_parts(local):
    texts = [f"Note {n}: the {n}th ship left in {1800 + n}." for n in range(23)]
    with running(limits={"documents": 7, "body_bytes": 2048}) as small:
        engine = open_engine(small.url)
        ranked = engine.rank("When did the 5th ship leave?", engine.remember(texts), 11)
    expected = local.rank("When did the 5th ship leave?", local.remember(texts), 11)
    assert [each.index for each in ranked] == [each.index for each in expected]
    assert [each.score for each in ranked] == pytest.approx([each.score for each in expected], abs=1e-6)


def test_a_cancelled_stream_ends_with_what_arrived(remote):
    stream = remote.stream("Tell me everything.", max_tokens=200)
    first = next(stream)
    stream.cancel()
    last = list(stream)[-1]
    assert last.answer.finish_reason == "cancelled"
    assert last.answer.text.startswith(first.text)


def test_a_cancelled_stream_stops_the_server_before_it_is_read_again(server, remote):
    stream = remote.stream("Tell me everything.", max_tokens=2000, temperature=1.5, seed=1)
    next(stream)
    before = server.state.metrics.cancelled.labels("disconnect")._value.get()
    stream.cancel()  # and nothing reads it
    server.wait_until(lambda: idle(server.state))
    assert server.state.metrics.cancelled.labels("disconnect")._value.get() > before
    [last] = stream
    assert last.answer.finish_reason == "cancelled"
    stream.cancel()  # its connection may be another request's by now
    assert remote.answer(QUESTION, max_tokens=2).completion_tokens


def test_a_stream_is_cancelled_while_another_thread_waits_for_its_next_piece(server, remote):
    pieces: list[Chunk] = []
    with held(server, "step") as step:
        stream = remote.stream("Tell me everything.", max_tokens=2000)
        reader = threading.Thread(target=lambda: pieces.extend(stream))
        reader.start()
        assert step.entered.wait(PATIENCE)  # the server writes nothing more
        stream.cancel()
        reader.join(PATIENCE)
        assert not reader.is_alive()
    assert pieces[-1].answer.finish_reason == "cancelled"
    assert pieces[-1].answer.text == "".join(piece.text for piece in pieces)


async def test_many_threads_and_loops_at_once(local, remote):
    expected = local.answer(QUESTION, local.remember(TEXTS[:1]))
    found: list[object] = []

    def ask() -> None:
        memories = remote.remember(TEXTS[:1])
        found.append(remote.answer(QUESTION, memories))
        found.append(asyncio.run(remote.aanswer(QUESTION, memories)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    found += await asyncio.gather(*(remote.aanswer(QUESTION, remote.remember(TEXTS[:1])) for _ in range(6)))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert found == [expected] * 18


def test_no_server_is_an_error_that_says_what_to_check(monkeypatch):
    monkeypatch.setattr("clara_core.engine.remote.http.time.sleep", lambda _seconds: None)
    with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9 does not answer.*clara serve"):
        open_engine("http://127.0.0.1:9").answer("?")


PROBE = """
import json, sys
from langchain_core.documents import Document
import langchain_core.language_models.chat_models, llama_index.core  # older ones import transformers
before = set(sys.modules)
from langchain_clara import ChatClara, ClaraRerank
from llama_index_clara import ClaraLLM
url = sys.argv[1]
documents = [Document("Tolmet Bridge was opened in 1907."), Document("Captain Ada Quill sailed to Lisbon.")]
best = ClaraRerank(model=url, top_n=1).compress_documents(documents, "When was the bridge opened?")
llm = ChatClara(model=url)
said = [llm.invoke("Who sailed to Lisbon?", documents=documents).text]
said.append("".join(piece.text for piece in llm.stream("Who sailed to Lisbon?", documents=documents)))
said.append(ClaraLLM(model=url).reading([d.page_content for d in documents]).complete("Who sailed to Lisbon?").text)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = sorted(new & {"torch", "transformers", "lance", "pyarrow"})
print(json.dumps([best[0].metadata, said, heavy]))
"""


def test_a_process_that_talks_to_a_server_imports_no_model_library(server, local):
    done = subprocess.run([sys.executable, "-c", PROBE, server.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metadata, said, heavy = json.loads(done.stdout)
    assert heavy == []
    assert set(metadata) == {"relevance_score"}
    memories = local.remember(["Tolmet Bridge was opened in 1907.", "Captain Ada Quill sailed to Lisbon."])
    assert set(said) == {local.answer("Who sailed to Lisbon?", memories).text}


# --- a server with invalid replies -----------------------------------------------------------------------


def tensors(header: object, body: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


ONE = {"dtype": "F32", "shape": [1, 1, 4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\xff" * 40,
        (1 << 40).to_bytes(8, "little"),
        tensors([]),
        tensors({"other": ONE}, bytes(16)),
        tensors({"tokens": {**ONE, "shape": [1 << 40, 1, 4]}}, bytes(16)),
        tensors({"tokens": {**ONE, "shape": [-1, -1, 4]}}, bytes(16)),
        tensors({"tokens": {**ONE, "dtype": "F64"}}, bytes(16)),
        tensors({"tokens": {**ONE, "data_offsets": [8, 24]}}, bytes(24)),
        tensors({"tokens": ONE}, bytes(12)),
        tensors({"tokens": ONE}, bytes(99)),
        tensors({"tokens": {**ONE, "shape": [4]}}, bytes(16)),
        tensors({"tokens": ONE}, b"\0\0\xc0\x7f" * 4),
        tensors({"tokens": {**ONE, "data_offsets": ["0", 16]}}, bytes(16)),
    ],
)
def test_tensors_that_are_not_as_promised_are_refused(reply):
    from clara_core.engine.remote.wire import tensors_from_wire

    with pytest.raises(ServerError, match="the server sent"):
        tensors_from_wire(reply, {"tokens": 3})


def test_good_tensors_are_read():
    from clara_core.engine.remote.wire import tensors_from_wire

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tokens = torch.arange(24).reshape(2, 3, 4).to(dtype)
        from clara_core.engine.remote.wire import tensor_to_wire

        assert torch.equal(tensors_from_wire(tensor_to_wire(tokens), {"tokens": 3})["tokens"], tokens)


def test_a_redirect_is_not_followed_with_the_key(server, monkeypatch):
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(307, headers={"location": "http://127.0.0.1:1/v1/clara/info"})

    engine = RemoteEngine("http://127.0.0.1:2", "secret-of-sixteen-letters")
    engine.connection._client = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.raises(ServerError, match="redirects are not followed"):
        engine.load()
    assert len(asked) == 1
    assert "secret" not in repr(engine)


def test_another_model_behind_the_same_address_is_noticed(server):
    engine = RemoteEngine(server.url, None)
    memories = engine.remember(["a"])
    engine.connection.fingerprint = "0" * 64
    with pytest.raises(FingerprintMismatch, match="runs"):
        engine.rank("?", memories)
