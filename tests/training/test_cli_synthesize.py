"""The command `clara synthesize`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clara_core.cli.main import app
from clara_core.data.jsonl import TrainingSet, read_lines
from clara_core.store import MemoryStore
from clara_core.training.llm_spec import open_llm
from tests.engines import open_engine
from tests.tiny import build
from tests.training.teacher import TEXTS, Teacher

TEACHER = f"python:{Path(__file__).parent / 'teacher.py'}:taught"


@pytest.fixture
def clara(capsys):
    """Run the command in this process: exit code, standard output, standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            app(["synthesize", *map(str, arguments)])
        shown = capsys.readouterr()
        return left.value.code, shown.out, shown.err

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("synthesize"))


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, text in enumerate(TEXTS[:4]):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_folder_becomes_sets_of_all_stages(clara, docs, tmp_path):
    out = tmp_path / "out"
    arguments = ("--n-candidates", 3, "--top-k", 2, "--model", "pocket")
    code, said, warned = clara(docs, "--llm", TEACHER, "--out", out, *arguments)
    assert (code, warned) == (0, "")
    assert "4 of 4 passages kept" in said
    assert "20 questions with candidates" in said
    assert f"wrote {out / 'stage2.jsonl'}" in said
    for name, lines in (("stage1", 12), ("stage1_2", 20), ("stage2", 20)):
        assert len(TrainingSet(out / f"{name}.jsonl", name)) == lines
    code, said, _ = clara(docs, "--llm", TEACHER, "--out", out, "--candidates", "none", "--json")
    facts = json.loads(said)
    assert facts["synthesis"]["resumed"] == 4
    assert "candidates" not in facts


def test_documents_of_a_jsonl_file(clara, tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"page_content": text, "id": 7}) + "\n" for text in TEXTS), encoding="utf-8")
    code, said, _ = clara(path, "--llm", TEACHER, "--out", tmp_path / "out", "--held-out", 0.3, "--json")
    facts = json.loads(said)
    assert (code, facts["synthesis"]["kept"], facts["candidates"]["missed_rate"]) == (0, 8, 0.0)
    assert facts["synthesis"]["held_out"] == len(list(read_lines(tmp_path / "out" / "evaluation.jsonl", "stage2"))) > 3


def test_passages_are_cut_to_the_window_of_the_model(clara, docs, tmp_path, tiny):
    (docs / "long.md").write_text(" ".join(TEXTS), encoding="utf-8")
    clara(docs, "--llm", TEACHER, "--out", tmp_path / "out", "--model", tiny.folder, "--candidates", "none")
    windows = open_engine(tiny).tokenizer.windows
    cut = {line.docs[0] for line in read_lines(tmp_path / "out" / "stage1.jsonl", "stage1")}
    assert len(cut) > 5
    assert all(len(windows(text)) == 1 for text in cut)


def test_candidates_of_a_store(clara, docs, tmp_path, tiny):
    uri = tmp_path / "store"
    store = MemoryStore.open(uri, engine=open_engine(tiny))
    store.add([*TEXTS[:4], "Something else."])
    store.close()
    arguments = ("--n-candidates", 5, "--top-k", 2, "--model", tiny.folder)
    code, _, warned = clara(docs, "--llm", TEACHER, "--out", tmp_path / "out", "--candidates", uri, *arguments)
    assert (code, warned) == (0, "")
    for line in read_lines(tmp_path / "out" / "stage2.jsonl", "stage2"):
        assert "Something else." in line.docs


WRONG = [
    (("--llm", "gpt-4"), "a language model must be openai:MODEL"),
    (("--llm", "python:no.such.module:llm"), "there is no module 'no.such.module'"),
    (("--llm", "python:none.py:llm"), "there is no file 'none.py'"),
    (("--llm", TEACHER + "er"), "has no 'taughter'"),
    (("--llm", "openai:gpt-4"), "set OPENAI_API_KEY"),
    (("--llm", "python:json:decoder"), "llm must be a LangChain chat model"),
    (("--top-k", 30), "--top-k 30 is more than --n-candidates 20"),
    (("--held-out", 1), "held_out must be at least 0"),
    (("--candidates", "no/such/store"), "no/such/store"),
    (("--model", "no/such/model"), "no/such/model"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(clara, docs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = ("--llm", TEACHER, *arguments)[-4:] if arguments[0] != "--llm" else arguments
    model = () if "--model" in given else ("--model", "pocket")
    code, said, warned = clara(docs, "--out", tmp_path / "out", *given, *model)
    assert (code, said) == (2, "")
    assert message in warned
    assert warned.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        ('{"text": "A."}\n{"title": "B"}\n', ":2: a document must have a text named 'text' or 'page_content'"),
        ("nothing\n", ":1: not valid JSON"),
        ("\n", "no document in"),
    ],
)
def test_wrong_documents_are_named_by_line(clara, tmp_path, lines, message):
    path = tmp_path / "docs.jsonl"
    path.write_text(lines, encoding="utf-8")
    code, _, warned = clara(path, "--llm", TEACHER, "--out", tmp_path / "out")
    assert code == 2
    assert message in warned
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_none(clara, tmp_path):
    (tmp_path / "empty").mkdir()
    said = clara(tmp_path / "empty", "--llm", TEACHER, "--out", tmp_path)[2]
    assert "no text" in said
    assert "supported kinds" in said
    assert "there is no folder" in clara(tmp_path / "none", "--llm", TEACHER, "--out", tmp_path)[2]


# --- language models -------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server with OpenAI's protocol and the teacher as its model; it records its requests."""
    teacher, sent = Teacher(), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((self.path, self.headers["Authorization"], body))
            message = {"role": "assistant", "content": teacher(body["messages"][0]["content"])}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            reply = json.dumps({**head, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1", sent
        running.shutdown()
        thread.join()


def test_a_server_that_speaks_the_protocol(clara, docs, tmp_path, server, monkeypatch):
    pytest.importorskip("openai")
    url, sent = server
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    code, said, _ = clara(docs, "--llm", f"openai:org/model@2@{url}", "--out", tmp_path / "out", "--candidates", "none")
    assert code == 0
    assert "4 of 4 passages kept" in said
    assert {(path, key, body["model"]) for path, key, body in sent} == {
        ("/v1/chat/completions", "Bearer sesame", "org/model@2")
    }


def test_a_server_that_is_down_is_one_line(clara, docs, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    from clara_core.training import synthesis_draft

    monkeypatch.setattr(synthesis_draft, "ATTEMPTS", 1)
    llm, out = "openai:model@http://127.0.0.1:9/v1", tmp_path / "out"
    code, _, warned = clara(docs, "--llm", llm, "--out", out, "--model", "pocket")
    assert code == 2
    assert "the language model failed for 4 passages in a row, last with APIConnectionError" in warned
    assert warned.strip().count("\n") == 0


def test_an_object_of_a_package():
    assert open_llm("python:json:decoder.JSONDecoder.decode") is json.decoder.JSONDecoder.decode


def test_what_the_users_own_module_cannot_import_is_said(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        open_llm(f"python:{tmp_path / 'mine.py'}:llm")
