"""Writes questions to calibrate the confidence of the bundled model on, each with the passages of a search.

    python -m tools.pocket_factory.calibration_set questions.jsonl
    clara calibrate questions.jsonl --model clara_core/pocket --unanswerable 0.3

Three in five are about typed passages that are held out, from the hints, too; the others are about passages of the
synthetic encyclopedia with a seed that no training run and no benchmark uses. Each question has the passages that a
search by memory and words finds; if the right passage is not among them, it replaces the last one.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.encyclopedia_tasks import DOCUMENTS, make_world
from benchmarks.evaluate_typed import hybrid_ranking
from clara_core import ClaraEngine
from clara_core.data.examples import RetrievalLine
from clara_core.data.jsonl import write_lines
from tools.pocket_factory.typed import FOLDER, read_typed

SEED = 9090
WORLD = 77  # seed of the encyclopedia
TYPED = 0.6  # share of the questions about typed passages
Asked = tuple[str, tuple[str, ...], int]  # question, forms of the answer, number of the passage


def typed(rng: random.Random, count: int) -> tuple[list[str], list[Asked]]:
    """Held-out passages, and questions about as many of them as there are."""
    passages = [one for folder in (FOLDER, FOLDER / "hints") for one in read_typed(folder, held=True)]
    asked = [(*rng.choice(passage.asked), number) for number, passage in enumerate(passages)]
    return [passage.text for passage in passages], rng.sample(asked, min(count, len(asked)))


def encyclopedia(count: int) -> tuple[list[str], list[Asked]]:
    """Passages of the synthetic encyclopedia and a question for each."""
    world = make_world(count, WORLD)
    return list(world.texts), [(q.text, (q.answer,), q.gold[0]) for q in world.single]


def with_passages(model: str, texts: list[str], asked: list[Asked]) -> list[RetrievalLine]:
    """Questions, each with the passages of a search, including its own; one more passage than an answer reads."""
    engine = ClaraEngine.from_pretrained(model)
    ranking = hybrid_ranking(engine, [question for question, _, _ in asked], texts, DOCUMENTS + 1)
    lines = []
    for (question, answers, gold), ranked in zip(asked, ranking, strict=True):
        found = ranked if gold in ranked else [*ranked[:DOCUMENTS], gold]
        docs = tuple(texts[at] for at in found)
        lines.append(RetrievalLine(question, docs, answers[0], answers, (found.index(gold),)))
    return lines


def main(
    file: Annotated[Path, typer.Argument(help="Where the questions are written.")],
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "pocket",
    count: Annotated[int, typer.Option(min=20, help="Questions.")] = 800,
) -> None:
    """Write questions for `clara calibrate`."""
    rng = random.Random(SEED)
    parts = typed(rng, round(TYPED * count)), encyclopedia(round((1 - TYPED) * count))
    lines = [line for texts, asked in parts for line in with_passages(model, texts, asked)]
    rng.shuffle(lines)
    print(f"{write_lines(file, lines)} questions")


if __name__ == "__main__":
    typer.run(main)
