"""The examples of whole tasks run unchanged, and their answers are right."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from clara_core import MemoryStore

EXAMPLES = Path(__file__).parents[1] / "examples"
ENTRIES = {entry["question"]: entry for entry in json.loads((EXAMPLES / "questions.json").read_text())}
# The test of each example; examples of a framework are found by their names.
RUN_IN = {
    "demo": "tests/test_examples.py",
    "evaluate": "tests/test_examples.py",
    "external_databases": "tests/store/test_external_stores.py",
    "fastapi_app": "tests/test_examples.py",
    "langgraph_agent": "tests/test_examples.py",
    "migration": "tests/test_examples.py",
    "pdf_pages": "tests/test_examples.py",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*langchain-community.*:DeprecationWarning")


def test_every_example_is_run_by_a_test() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    of_a_framework = {name for name in names if name.startswith(("langchain_", "llama_index_"))}
    assert names - of_a_framework == RUN_IN.keys()
    for name, test in RUN_IN.items():
        assert name in (EXAMPLES.parent / test).read_text(encoding="utf-8")
    for name in of_a_framework:
        framework = "llama_index" if name.startswith("llama_index") else "langchain"
        assert f'"{name}"' in (EXAMPLES.parent / f"tests/{framework}/test_examples.py").read_text(encoding="utf-8")


def test_the_demo_answers_rightly() -> None:
    assert import_module("examples.demo").main("pocket") == 0


@pytest.mark.parametrize("name, says", [("migration", "  before "), ("langgraph_agent", "tools called: handbook")])
def test_answers_are_right_and_the_sources_are_named(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = import_module(f"examples.{name}")
    answers = example.main()
    shown = capsys.readouterr().out
    for question, answer in zip(example.QUESTIONS, answers, strict=True):
        assert ENTRIES[question]["answers"][0] in answer
        assert ENTRIES[question]["files"][0] in shown.split(question)[1]
    assert shown.count(says) == len(answers)


def test_pages_of_pdf_files_are_cited_and_compressed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = import_module("examples.pdf_pages")
    pages = list(example.read_pages(example.DATA))
    assert [(page.metadata["source"], page.metadata["page"]) for page in pages] == [
        ("bridges.pdf", 1),
        ("bridges.pdf", 2),
        ("mountains.pdf", 1),
        ("mountains.pdf", 2),
    ]
    uri = str(tmp_path / "store")
    answers = example.main("pocket", example.DATA, uri)
    shown = capsys.readouterr().out
    assert list(answers.values()) == ["1883", "244 metres", "8,849 metres"]
    for question, page in zip(
        example.QUESTIONS, ("bridges.pdf, page 1", "bridges.pdf, page 2", "mountains.pdf, page 1"), strict=True
    ):
        assert shown.split(question)[1].splitlines()[2].strip() == page  # the best page comes first
    assert example.main("pocket", example.DATA, uri) == answers
    assert MemoryStore.open(uri).stats().documents == len(pages)


def test_evaluation_of_ones_own_questions(capsys: pytest.CaptureFixture[str]) -> None:
    figures = import_module("examples.evaluate").main()
    assert figures["hit@5 by memory"] > 0.9
    assert figures["exact match, five passages as ranked"] > 0.8
    assert figures["exact match, the right passages among five"] > 0.8
    assert capsys.readouterr().out.count("\n") == len(figures)


def test_the_service_streams_sources_then_the_answer() -> None:
    app = import_module("examples.fastapi_app").app
    question = "How high is the Eiffel Tower?"
    with TestClient(app) as client:
        with client.stream("GET", "/ask", params={"question": question}) as response:
            assert response.status_code == 200
            lines = [json.loads(line) for line in response.iter_lines()]
        assert client.get("/ask").status_code == 422
        assert client.get("/ask", params={"question": ""}).status_code == 422
    assert ENTRIES[question]["files"][0] in lines[0]["sources"]
    assert len(lines) > 3  # streamed in several pieces
    assert "".join(line["text"] for line in lines[1:-1]) == ENTRIES[question]["answers"][0]
    assert 0 < lines[-1]["memory_tokens"] < lines[-1]["source_tokens"]
