"""The LlamaIndex examples run unchanged, and the benchmark of the store reaches its targets."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("llama_index_*.py"))
SAYS = {  # with right answers and their sources
    "llama_index_chat": ("it:  6 euros", "it:  in the shed", "4 messages so far"),
    "llama_index_citations": ("6 euros [1]", "[1] ferry.txt", "330 metres [1]", "withheld: "),
    "llama_index_durable": ("0 nodes were new or changed; the folder holds ", "default      ferry.txt"),
    "llama_index_query_engine": ("one question: 6 euros", "together:", "How high is the Eiffel Tower? 330 metres"),
    "llama_index_rerank": ("(was None)  ferry.txt",),
    "llama_index_starter": ("What is the price of a return ticket?\n  6 euros", "Eiffel Tower?\n  330 metres"),
    "llama_index_store": ("default      old-buildings.md", "best old-buildings.md"),
    "llama_index_with_langchain": ("6 euros\nread: ferry.txt", "compressed a second time: 0 documents"),
}


def test_all_examples_are_run():
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_runs(path, best_model, capsys):
    assert 30 <= len(path.read_text(encoding="utf-8").splitlines()) <= 80
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(best_model)
    shown = capsys.readouterr().out
    for words in SAYS[path.stem]:
        assert words in shown


def test_store_needs_little_more_memory_than_its_memories_and_little_time():
    """Three fifths of the benchmark's nodes (157 MB of memories), far more than all else that the process holds."""
    command = [sys.executable, "benchmarks/llama_index_store.py", "--measure", "memories", "--nodes", "600"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["peak_ratio"] < 2
    assert row["query_cpu_ms"] < 100
