"""Measures a training step of each stage: seconds, tokens and arithmetic, with memories of frozen documents cached and
computed.

    python -m benchmarks.training_step [--model pocket] [--dtype bfloat16] [--steps 6]

The lines are from the synthetic encyclopedia. In the end-to-end stage each question has 20 passages, as in the paper. A
token is a position that passes through the decoder. The arithmetic is 2 operations for each weight in a forward pass
and 2 more in a backward pass (the base is frozen, so its weights have no gradients), without attention. The program
prints a table and one JSON line.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import hardware
from clara_core.data.examples import STAGES, Stage
from clara_core.training.batch import Step
from clara_core.training.config import TrainingConfig
from clara_core.training.objective import Objective
from clara_core.training.run import trainer_of
from tools.pocket_factory.world import make_corpus

LINES = 64


@dataclass(frozen=True)
class Cost:
    """One stage."""

    stage: str
    memories: str
    step_s: float
    lines_s: float
    tokens_s: float
    gflop_s: float


def main(
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = "pocket",
    dtype: Annotated[str, typer.Option(help="'bfloat16' or 'float32'.")] = "bfloat16",
    steps: Annotated[int, typer.Option(min=2, help="Timed steps, after one that is not timed.")] = 6,
    batch: Annotated[int, typer.Option(min=1, help="Lines of a step.")] = 8,
) -> None:
    """Time the steps of each stage."""
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            for room in (1024, 0) if stage in ("contrastive", "stage2") else (0,):
                values: dict[str, Any] = {
                    "stage": stage,
                    "model": model,
                    "dtype": dtype,
                    "batch_size": batch,
                }
                values |= {"micro_batch_size": batch, "memory_room_mb": room, "tensorboard": False}
                data = _write_lines(Path(folder), stage)
                values |= {"data": (data,), "out": Path(folder) / "run", "steps": steps + 1, "device": "cpu"}
                config = TrainingConfig(**values)
                costs.append(_measure(config, kept=room > 0))
    _show(costs, model, dtype)


def _measure(config: TrainingConfig, *, kept: bool) -> Cost:
    trainer = trainer_of(config)
    phase = trainer.phases[0]
    memories = phase.memories() if phase.memories is not None else None
    objective = Objective(trainer.model, phase.terms, memories)
    weights = sum(layer.in_features * layer.out_features for layer in trainer.model.routed.values())
    seconds, tokens, operations = [], [], []
    for number in range(phase.steps):
        passes = phase.source(number)
        started = time.process_time()
        trainer._step(phase, objective, number, passes)  # noqa: SLF001 - one step, without files
        seconds.append(time.process_time() - started)
        forwards, frozen = _tokens(passes, frozen=phase.terms.frozen, kept=kept)
        tokens.append(forwards + frozen)
        operations.append((4 * forwards + 2 * frozen) * weights)
    step_s = median(seconds[1:])
    share = range(1, phase.steps)
    return Cost(
        config.stage,
        "" if not phase.terms.frozen else "kept" if kept else "made anew",
        step_s,
        config.batch_size / step_s,
        median(tokens[number] / seconds[number] for number in share),
        median(operations[number] / seconds[number] for number in share) / 1e9,
    )


def _tokens(passes: Sequence[Step], *, frozen: bool, kept: bool) -> tuple[int, int]:
    """Positions in forward and backward passes, and in forward passes only."""
    compressed = sum(len(ids) for step in passes for ids in step.sequences)
    learned = sum(len(ids) for step in passes for ids in step.questions)
    learned += sum(len(ids) for step in passes if step.rows is not None for ids in step.rows.ids)
    if frozen:
        return learned, 0 if kept else compressed
    return learned + compressed, 0


def _write_lines(folder: Path, stage: Stage) -> Path:
    """Write training lines from the synthetic encyclopedia."""
    rng = random.Random(1)
    corpus = make_corpus(rng, 120, words=(40, 70), questions_per_passage=4, two_passage=0.0)
    path = folder / f"{stage}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for question in rng.sample(corpus.questions, LINES):
            gold = corpus.passages[question.gold[0]].text
            others = [passage.text for passage in rng.sample(corpus.passages, 20) if passage.text != gold]
            line: dict[str, Any] = {"question": question.text, "answer": question.answer}
            if stage == "stage1":
                line = {"data_type": "qa", "question": [question.text], "answers": [question.answer], "docs": [gold]}
            elif stage == "stage1_2":
                line["docs"] = [gold, *others[:4]]
            else:
                line |= {"docs": [gold, *others[:19]], "pos_index": [0]}
            file.write(json.dumps(line) + "\n")
    return path


def _show(costs: Sequence[Cost], model: str, dtype: str) -> None:
    table = Table(title=f"{model}, {dtype}, processor time")
    for name in ("stage", "memories", "s a step", "lines/s", "tokens/s", "GFLOP/s"):
        table.add_column(name, justify="left" if name in ("stage", "memories") else "right")
    for cost in costs:
        figures = f"{cost.step_s:.2f}", f"{cost.lines_s:.1f}", f"{cost.tokens_s:,.0f}", f"{cost.gflop_s:.1f}"
        table.add_row(cost.stage, cost.memories, *figures)
    Console().print(table)
    typer.echo(json.dumps({"hardware": hardware("cpu"), "model": model, "costs": [asdict(cost) for cost in costs]}))


if __name__ == "__main__":
    typer.run(main)
