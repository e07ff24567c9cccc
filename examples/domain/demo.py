"""Domain adaptation from beginning to end: `make domain-demo`.

A collection of passages that the weights of the encyclopedia understand badly (another world: other kinds of things,
relations, phrasings and names) becomes training data; the model learns from it in four stages and is measured before
and after:

    synthesize      a language model writes questions and paraphrases about the passages (here one of templates)
    stage1          compressor and generator learn the new words: lists of questions and answers, and paraphrases
    stage1_2        they learn to answer one question
    contrastive     the query reasoner learns to find passages
    stage2          end to end: the answer's loss teaches the query reasoner as well

What is measured has no phrasing in common with the training questions, and a fifth of it is about passages of which
nothing was trained. Against forgetting, every stage also rehearses lines of the old world, and after the last two the
weights are brought back part of the way to what they were. A run that was stopped goes on where it stood; the result is
a checkpoint folder that every component loads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clara_core import ClaraEngine
from clara_core.data.examples import Stage
from clara_core.data.jsonl import RetrievalLine, read_objects
from clara_core.engine.loader import plan_engine
from clara_core.engine.options import EngineArguments
from clara_core.evaluation import evaluate, over_corpus, read_questions
from clara_core.training.averaging import average
from clara_core.training.candidates import end_to_end_sets
from clara_core.training.config import TrainingConfig
from clara_core.training.run import train
from clara_core.training.synthesis import synthesize
from examples.domain.make_domain import DOCUMENTS, HELD_OUT, PASSAGES, SEED, make_domain, write_domain
from examples.domain.old_world import held_out_lines, write_replay
from examples.domain.templated_llm import templated_llm
from tools.pocket_factory.world import ENCYCLOPEDIA

HERE = Path(__file__).parent
STAGES: tuple[Stage, ...] = ("stage1", "stage1_2", "contrastive", "stage2")
READ = 2  # passages of a line for instruction tuning: the one that answers beside one like it
# The stages after which the model is brought back towards what it was, and the share of what it has become by then.
SHARES: dict[Stage, float] = {"contrastive": 0.75, "stage2": 0.9}
MAX_TOKENS = 32
console = Console(highlight=False)

Scores = dict[str, float]  # recall@1, recall@5, exact match of one set of questions
Figures = dict[str, Scores]  # by the name of the set


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the demonstration is.

    Attributes:
        out: Folder of the run.
        model: Checkpoint to start from.
        passages: Of the new domain.
        replay: Passages of the old world that are rehearsed.
        measured: Passages of the old world that are measured.
        changes: Changes of the stages' configs, as for `clara train --set`.
    """

    out: Path
    model: str = ENCYCLOPEDIA
    passages: int = PASSAGES
    replay: int = 400
    measured: int = PASSAGES
    changes: Mapping[Stage, Sequence[str]] | None = None


# --- the steps -------------------------------------------------------------------------------------------


def prepare(plan: Plan) -> None:
    """Write the domain, the training sets that are made of it, and those of the old world."""
    write_domain(make_domain(plan.passages, SEED), plan.out / "data")
    passages = [found["text"] for _, found in read_objects(plan.out / "data" / DOCUMENTS)]
    console.print(str(synthesize(passages, templated_llm, plan.out / "gazette")), soft_wrap=True)
    console.print(str(end_to_end_sets(plan.out / "gazette", top_k=READ)), soft_wrap=True)
    write_replay(plan.out / "replay", plan.replay, SEED, top_k=READ)


def adapt(plan: Plan) -> Path:
    """Train the stages one after the other; returns the last checkpoint."""
    model = plan.model
    before = plan_engine(EngineArguments(model=model).resolved()).folder
    for stage in STAGES:
        config = TrainingConfig.read(
            HERE / f"{stage}.toml",
            (plan.changes or {}).get(stage, ()),
            stage=stage,
            model=model,
            data=[str(plan.out / kind / file_of(stage)) for kind in ("gazette", "replay")],
            out=str(plan.out / stage),
        )
        result = train(config, progress=sys.stderr.isatty())
        console.print(f"{stage}: {result.steps} steps, {result.seconds / 60:.1f} minutes", soft_wrap=True)
        model = str(result.checkpoint)
        if stage in SHARES:
            model = str(average(before, model, SHARES[stage], plan.out / f"{stage}-averaged"))
    return Path(model)


def measure(plan: Plan, model: str, folder: Path) -> Figures:
    """Recall and exact match on the held-out questions of both worlds."""
    engine = ClaraEngine.from_pretrained(model)
    figures = measure_gazette(plan.out / "data", engine, folder / "gazette")
    one, two = held_out_lines(plan.measured)
    figures["old world, one passage"] = _scores(_ask(engine, one, folder / "old"))
    figures["old world, two passages"] = _scores(_ask(engine, two, folder / "old-two"))
    engine.unload()
    return figures


def measure_gazette(data: Path, engine: ClaraEngine, folder: Path, every: int = 1) -> Figures:
    """The held-out questions of the new domain: all, and apart those about passages of which nothing was trained.

    Args:
        data: Where the domain was written.
        engine: Whom to ask.
        folder: For what was answered; the same call goes on where it was interrupted.
        every: Ask one of so many questions; each over all passages.
    """
    lines = over_corpus(read_questions(data / HELD_OUT))[::every]
    seen = [bool(found["seen"]) for _, found in read_objects(data / HELD_OUT)][::every]
    asked = _ask(engine, lines, folder)
    return {
        "gazette": _scores(asked),
        "gazette, trained passages": _scores([one for one, known in zip(asked, seen, strict=True) if known]),
        "gazette, unseen passages": _scores([one for one, known in zip(asked, seen, strict=True) if not known]),
    }


def _ask(engine: ClaraEngine, lines: Sequence[RetrievalLine], folder: Path) -> Sequence[Any]:
    report = evaluate(
        engine, lines, max_tokens=MAX_TOKENS, bm25=False, batch=32, timed=0, paraphrases=0, folder=folder,
        show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    return report.questions


def _scores(outcomes: Sequence[Any]) -> Scores:
    """Recall (all gold passages among the first k) and exact match, means over questions."""

    def mean(value: Callable[[Any], float]) -> float:
        return sum(map(value, outcomes)) / len(outcomes)

    return {
        "recall@1": mean(lambda one: one.rankings["memory"].gold_ranks[0] == 1),
        "recall@5": mean(lambda one: max(one.rankings["memory"].gold_ranks) <= 5),
        "exact match": mean(lambda one: one.replies[0].exact_match),
    }


def file_of(stage: Stage) -> str:
    """The file of a folder of sets that a stage learns from."""
    return "stage2.jsonl" if stage == "contrastive" else f"{stage}.jsonl"


# --- the whole -------------------------------------------------------------------------------------------


def run(plan: Plan) -> dict[str, Any]:
    """Everything; returns the figures before and after, minutes, and the folder of the checkpoint."""
    started = time.monotonic()
    prepare(plan)
    before = measure(plan, plan.model, plan.out / "before")
    trained = adapt(plan)
    after = measure(plan, str(trained), plan.out / "after")
    minutes = (time.monotonic() - started) / 60
    result = {"before": before, "after": after, "minutes": round(minutes, 1), "processors": os.cpu_count()}
    result["checkpoint"] = str(_publish(plan, trained, result))
    (plan.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _publish(plan: Plan, trained: Path, result: Mapping[str, Any]) -> Path:
    """The last checkpoint under a name of its own, its card with what was measured."""
    folder = plan.out / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)
    card = folder / "README.md"
    lines = [
        "",
        "## What it scored",
        "",
        "Held-out questions, before → after (`make domain-demo`):",
        "",
    ]
    lines += ["| | " + " | ".join(result["before"]["gazette"]) + " |", "|---|---|---|---|"]
    for name, scores in result["before"].items():
        cells = [f"{value:.3f} → {result['after'][name][measure]:.3f}" for measure, value in scores.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    card.write_text(card.read_text(encoding="utf-8") + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def show(result: Mapping[str, Any]) -> None:
    """Print the table and one JSON line."""
    table = Table("questions about", "measure", "before", "after", "change")
    for name, scores in result["before"].items():
        for measure_, value in scores.items():
            new = result["after"][name][measure_]
            table.add_row(name, measure_, f"{value:.3f}", f"{new:.3f}", f"{100 * (new - value):+.1f} points")
    console.print(table)
    console.print(f"{result['minutes']} minutes; checkpoint: {result['checkpoint']}", soft_wrap=True)
    print(json.dumps(result))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=None, help="folder of the run (default: runs/domain-FINGERPRINT)")
    parser.add_argument("--model", default=ENCYCLOPEDIA, help="checkpoint to start from")
    parser.add_argument("--passages", type=int, default=PASSAGES, help="of the new domain, and of the measured old one")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Another model to start from is another run: its name alone would not say so.
    out = arguments.out or Path(f"runs/domain-{ClaraEngine.from_pretrained(arguments.model).fingerprint[:8]}")
    show(run(Plan(out, arguments.model, arguments.passages, measured=arguments.passages)))


if __name__ == "__main__":
    main()
