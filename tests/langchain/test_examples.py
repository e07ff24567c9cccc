"""The LangChain examples run, and their answers with the bundled model are right."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

from tests.langchain.data import bundled_or_tiny

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ENTRIES = {entry["question"]: entry for entry in json.loads((EXAMPLES / "questions.json").read_text())}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "langchain_mixed",
        "langchain_store",
        "langchain_durable",
        "langchain_agent",
        "langchain_other_store",
        "langchain_citations",
    ],
)
def test_example(name, capsys):
    module = load(name)
    model = bundled_or_tiny()
    result = module.main(model)
    result = asyncio.run(result) if inspect.iscoroutine(result) else result
    questions = getattr(module, "QUESTIONS", None) or [module.QUESTION]
    answers = list(result.values()) if isinstance(result, dict) else [result] if isinstance(result, str) else result
    shown = capsys.readouterr().out
    for question, answer in zip(questions, answers, strict=True):
        assert question in shown
        assert answer.strip()
        if model == "pocket":
            assert ENTRIES[question]["answers"][0] in answer
            assert ENTRIES[question]["files"][0] in shown.split(question)[1]
    assert shown.count(".md") + shown.count(".txt") >= 3  # with sources


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("langchain_*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert 30 <= len(path.read_text(encoding="utf-8").splitlines()) <= 80
