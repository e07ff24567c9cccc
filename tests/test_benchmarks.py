"""The benchmarks run, and their baseline gives the same results as the model."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks.baseline import Baseline
from benchmarks.workload import SHAPES, prepare, token_counts
from tests.reference import Reference

ROOT = Path(__file__).parent.parent


def test_baseline_is_the_model(tmp_path: Path) -> None:
    """Padding, peft and generate change only the time; otherwise the comparison would be unfair."""
    work = prepare(SHAPES["tiny"], tmp_path, "cpu", torch.float32)
    baseline = Baseline(work.checkpoint, work.base, "cpu", torch.float32)
    twin = Reference.load(work.checkpoint, work.base)
    passages, [question] = work.language.passages(5), work.language.questions(1)
    memories = twin.compress(passages)
    torch.testing.assert_close(baseline.compress(passages), memories, atol=1e-4, rtol=0)
    queries = twin.reason([question])
    torch.testing.assert_close(baseline.reason([question]), queries, atol=1e-4, rtol=0)
    order = twin.score(queries, memories)[0].argsort(descending=True)
    assert baseline.rank(question, passages) == order.tolist()
    assert baseline.answer(question, memories, 8) == twin.answer(question, memories, 8)


def test_passages_have_the_lengths_that_are_claimed(tmp_path: Path) -> None:
    work = prepare(SHAPES["tiny"], tmp_path, "cpu", torch.float32)
    counts = token_counts(work.language, work.language.passages(500))
    assert max(counts) <= work.shape.window
    assert 93 <= sum(counts) / len(counts) <= 99


@pytest.mark.slow
def test_quick_run_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As below, but in this process, which has imported peft for its half of the comparison already."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.engine", "--quick"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where `free_engines` finds the engines
    with pytest.raises(SystemExit) as left:
        runpy.run_module("benchmarks.engine", run_name="__main__", alter_sys=True)
    assert not left.value.code
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        pytest.param("benchmarks.mixed", marks=pytest.mark.heavy),
        pytest.param("benchmarks.soak", marks=pytest.mark.heavy),
        pytest.param("benchmarks.store", marks=pytest.mark.heavy),
        pytest.param("benchmarks.serve_overhead", marks=pytest.mark.heavy),
        pytest.param("benchmarks.serve_load", marks=pytest.mark.heavy),
    ],
)
def test_quick_run(module: str) -> None:
    """The program succeeds, which it does not if results differ, and prints one JSON line last."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["rows"]


@pytest.mark.heavy
def test_retrieval_is_evaluated_and_found_again(tmp_path: Path) -> None:
    """On a small corpus every ranking method gets its figures, and a second run compresses nothing."""
    for _ in range(2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.evaluate_retrieval", "--sizes", "100", "--questions", "12"),
                *("--answers", "4", "--run", str(tmp_path), "--plot", str(tmp_path / "plot.png")),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        facts = json.loads(done.stdout.splitlines()[-1])
        methods = {line["method"]: line for line in facts["tables"]["100"]}
        assert all(0 < line["mrr"] <= 1 for line in methods.values())
        assert methods["memory, exact"]["recall@1"] > 0.8
        assert 0 <= facts["int8 and bfloat16"]["answers alike"] <= 1
        assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "storing" not in done.stderr
