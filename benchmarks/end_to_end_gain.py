"""Compares the end-to-end stage with and without the gradient through the top-k, over several seeds.

    python benchmarks/end_to_end_gain.py                      after `make domain-demo`, whose run it starts from
    python benchmarks/end_to_end_gain.py --start stage1_2     from before the contrastive stage

Both arms start from the same checkpoint and see the same lines in the same order for the same number of steps, with
the same learning rate. In both arms the generator learns from the passages that the query reasoner picks. In one arm
the answer's loss also reaches the query reasoner through the choice (straight-through top-k), in the other it does not.
There is no contrastive loss. The arms are measured on the held-out questions of the domain. The program prints a table
and one JSON line, and resumes a run that was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import hardware
from clara_core import ClaraEngine
from clara_core.training.config import TrainingConfig
from clara_core.training.run import train
from examples.domain.demo import HERE, Figures, file_of, measure_gazette

ARMS = {"with": True, "without": False}
MEASURES = ("recall@1", "recall@5", "exact match")


def main(
    domain: Annotated[Path | None, typer.Option(help="Folder of a run of `make domain-demo`.")] = None,
    start: Annotated[str, typer.Option(help="Stage to start from: contrastive or stage1_2.")] = "contrastive",
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each arm.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 40,
    every: Annotated[int, typer.Option(min=1, help="Ask every n-th held-out question.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs (default: beside those of the demo).")] = None,
) -> None:
    """Train both arms with every seed and compare them."""
    domain = domain or _newest_demo()
    out = out or domain / f"end-to-end-gain-{start}"
    checkpoint = domain / start / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        raise typer.BadParameter(f"there is no checkpoint in {checkpoint}: run `make domain-demo` first")
    before = _measured(domain, checkpoint, out / "start", every)
    runs: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    for seed in range(1, seeds + 1):
        for arm, gradient in ARMS.items():
            run = out / f"{arm}-{seed}"
            trained = _train(domain, checkpoint, run, seed, steps, gradient=gradient)
            runs[arm].append(_measured(domain, trained, run / "measured", every))
    _show(before, runs, start, steps)


def _newest_demo() -> Path:
    found = sorted(Path("runs").glob("domain-*/result.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise typer.BadParameter("there is no finished run of `make domain-demo` in runs/; give one with --domain")
    return found[-1].parent


def _train(domain: Path, checkpoint: Path, out: Path, seed: int, steps: int, *, gradient: bool) -> Path:
    """Train one arm with one seed; returns the checkpoint."""
    config = TrainingConfig.read(
        HERE / "stage2.toml",
        stage="stage2",
        model=str(checkpoint),
        data=str(domain / "gazette" / file_of("stage2")),
        out=str(out),
        steps=steps,
        seed=seed,
        contrastive=0.0,
        top_k_gradient=gradient,
    )
    return train(config, progress=sys.stderr.isatty()).checkpoint


def _measured(domain: Path, checkpoint: Path, folder: Path, every: int) -> Figures:
    engine = ClaraEngine.from_pretrained(str(checkpoint))
    figures = measure_gazette(domain / "data", engine, folder, every)
    engine.unload()
    return figures


def _show(before: Figures, runs: dict[str, list[Figures]], start: str, steps: int) -> None:
    table = Table("questions about", "measure", "before", *(f"{arm} the gradient" for arm in ARMS), "gain of it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"start": start, "steps": steps, "seeds": len(runs["with"]), "hardware": hardware(device)}
    for group, scores in before.items():
        for measure in MEASURES:
            values = {arm: [one[group][measure] for one in figures] for arm, figures in runs.items()}
            pairs = [ours - theirs for ours, theirs in zip(values["with"], values["without"], strict=True)]
            cells = [_spread(values[arm]) for arm in ARMS]
            table.add_row(group, measure, f"{scores[measure]:.3f}", *cells, _spread(pairs, signed=True))
            result[f"{group}: {measure}"] = {"before": scores[measure], **values, "gain": mean(pairs)}
    Console().print(table)
    print(json.dumps(result))


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):{'+' if signed else ''}.3f} ± {stdev(values):.3f}"


if __name__ == "__main__":
    typer.run(main)
