"""A remote engine says what the engine behind the server says, call by call."""

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
from tests.serving.servers import running

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


@pytest.mark.parametrize("name", ["fingerprint", "n_mem", "hidden", "dimension", "window", "context", "dtype", "roles"])
def test_facts(local, remote, name):
    assert getattr(remote, name) == getattr(local, name)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer(local, remote, text):
    ours, theirs = local.tokenizer, remote.tokenizer
    assert theirs.count(text) == ours.count(text)
    assert theirs.count_plain(text) == ours.count_plain(text)
    assert theirs.encode_plain(text) == ours.encode_plain(text)
    assert theirs.windows(text) == ours.windows(text)
    assert theirs.windows(text, first_only=True, reserve=20) == ours.windows(text, first_only=True, reserve=20)
    turns = [{"role": "user", "content": text}]
    assert theirs.chat_prompt(turns, 3) == ours.chat_prompt(turns, 3)


async def test_documents(local, remote):
    expected = local.compress(TEXTS)
    for made in (remote.compress(TEXTS), remote.remember(TEXTS), list(remote.compress_stream(iter(TEXTS)))):
        assert all(map(same, made, expected))
    for made in (await remote.acompress(TEXTS), await remote.aremember(TEXTS)):
        assert all(map(same, made, expected))
    assert remote.compress([]) == []
    copied = pickle.loads(pickle.dumps(remote.remember(TEXTS)[0]))  # noqa: S301
    assert type(copied) is Memory
    assert same(copied, expected[0])


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


async def test_questions(local, remote):
    questions = [QUESTION, "Who sailed to Lisbon?"]
    ours, theirs = local.remember(TEXTS), remote.remember(TEXTS)
    assert torch.allclose(remote.reason(questions), local.reason(questions), atol=1e-6)
    assert torch.allclose(await remote.areason(questions), local.reason(questions), atol=1e-6)
    assert remote.reason([]).shape == local.reason([]).shape
    expected = local.rank(QUESTION, ours)
    for ranked in (remote.rank(QUESTION, theirs), await remote.arank(QUESTION, theirs)):
        assert [(each.index, each.window) for each in ranked] == [(each.index, each.window) for each in expected]
        assert [each.score for each in ranked] == pytest.approx([each.score for each in expected], abs=1e-6)
    assert [each.index for each in remote.rank(QUESTION, theirs, 2)] == [each.index for each in expected[:2]]
    assert remote.rank(QUESTION, []) == []
    assert torch.allclose(remote.score(questions, theirs), local.score(questions, ours), atol=1e-6)
    assert torch.allclose(await remote.ascore(questions, theirs), local.score(questions, ours), atol=1e-6)


def test_a_ranking_that_is_too_large_goes_in_parts(local):
    texts = [f"Note {n}: the {n}th ship left in {1800 + n}." for n in range(23)]
    with running(limits={"documents": 7, "body_bytes": 2048}) as small:
        engine = open_engine(small.url)
        ranked = engine.rank("When did the 5th ship leave?", engine.remember(texts), 11)
    expected = local.rank("When did the 5th ship leave?", local.remember(texts), 11)
    assert [each.index for each in ranked] == [each.index for each in expected]
    assert [each.score for each in ranked] == pytest.approx([each.score for each in expected], abs=1e-6)


async def test_answers(local, remote):
    ours, theirs = local.remember(TEXTS[:3]), remote.remember(TEXTS[:3])
    options = {"max_tokens": 24, "stop": ["zzz"]}
    expected = local.answer(QUESTION, ours, **options)
    assert expected.text
    assert remote.answer(QUESTION, theirs, **options) == expected
    assert await remote.aanswer(QUESTION, theirs, **options) == expected
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert remote.chat(turns, theirs) == local.chat(turns, ours)
    assert await remote.achat(turns, theirs) == local.chat(turns, ours)
    items = [(QUESTION, theirs), ("Who sailed?", theirs[:2]), ("Hello", [])]
    batch = local.answer_batch([(QUESTION, ours), ("Who sailed?", ours[:2]), ("Hello", [])])
    assert remote.answer_batch(items) == batch
    assert await remote.aanswer_batch(items) == batch
    assert remote.answer_batch([]) == local.answer_batch([])
    sampled = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": 12}
    assert remote.answer(QUESTION, theirs, **sampled) == local.answer(QUESTION, ours, **sampled)
    assert remote.paraphrase(theirs[0], max_tokens=20) == local.paraphrase(ours[0], max_tokens=20)


def test_what_is_asked_for_beside_the_text(local, remote):
    ours, theirs = local.remember(TEXTS[:3]), remote.remember(TEXTS[:3])
    asked = {"logprobs": True, "top_logprobs": 2, "citations": True, "max_tokens": 16}
    assert repr(remote.answer(QUESTION, theirs, **asked)) == repr(local.answer(QUESTION, ours, **asked))
    recorded = {"logprobs": True, "max_tokens": 16}
    assert list(map(repr, remote.stream(QUESTION, theirs, **recorded))) == list(
        map(repr, local.stream(QUESTION, ours, **recorded))
    )
    with pytest.raises(ValueError, match="needs logprobs=True"):
        remote.answer(QUESTION, theirs, top_logprobs=2)


async def test_streams(local, remote):
    ours, theirs = local.remember(TEXTS[:2]), remote.remember(TEXTS[:2])
    expected = list(local.stream(QUESTION, ours))
    assert list(remote.stream(QUESTION, theirs)) == expected
    assert [chunk async for chunk in remote.astream(QUESTION, theirs)] == expected
    assert "".join(chunk.text for chunk in expected) == expected[-1].answer.text
    with pytest.raises(ContextOverflow):
        list(remote.stream("word " * 4000))


def test_a_cancelled_stream_ends_with_what_arrived(remote):
    stream = remote.stream("Tell me everything.", max_tokens=200)
    first = next(stream)
    stream.cancel()
    last = list(stream)[-1]
    assert last.answer.finish_reason == "cancelled"
    assert last.answer.text.startswith(first.text)


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


# --- a server that lies ----------------------------------------------------------------------------------


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
