"""Writes questions to calibrate the confidence of the bundled model on, each with the passages of a search.

    python -m tools.pocket_factory.calibration_set WORK questions.jsonl
    clara calibrate questions.jsonl --model clara_core/pocket --unanswerable 0.3

Half of the passages are everyday texts, half are from the synthetic encyclopedia. Their seeds are used by no training
run and no benchmark. Each question has the passages that a search by memory and words finds; if the right passage is
not among them, it replaces the last one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.encyclopedia_tasks import DOCUMENTS, make_world
from benchmarks.evaluate_typed import hybrid_ranking
from clara_core import ClaraEngine
from clara_core.data.examples import RetrievalLine
from clara_core.data.jsonl import write_lines
from tools.pocket_factory.lesson import Lesson, Mix

SEED = 9090  # used by no training run
WORLD = 77  # seed of the encyclopedia, used by no benchmark
EVERYDAY = {"frame": 0.55, "event": 0.2, "open": 0.25}
Asked = tuple[str, str, int]  # question, answer, number of the passage


def everyday(work: Path, count: int) -> tuple[list[str], list[Asked]]:
    """Passages of the sorts of the training, none of them in it, and for each a question that names its subject."""
    lesson, rng = Lesson(work, SEED), random.Random(SEED)
    mix = replace(Mix(), sorts=EVERYDAY, words=60, reworded=0.4)
    texts: list[str] = []
    asked: list[Asked] = []
    while len(texts) < count:
        made = lesson.passage(rng, mix)
        named = [(q, a) for q, a in made.asked if made.subject and made.subject.lower() in q.lower() and "___" not in q]
        if named:
            question, answer = rng.choice(named)
            asked.append((lesson.as_asked(rng, question, mix), answer, len(texts)))
            texts.append(made.text)
    return texts, asked


def encyclopedia(count: int) -> tuple[list[str], list[Asked]]:
    """Passages of the synthetic encyclopedia and a question for each."""
    world = make_world(count, WORLD)
    return list(world.texts), [(q.text, q.answer, q.gold[0]) for q in world.single]


def with_passages(model: str, texts: list[str], asked: list[Asked]) -> list[RetrievalLine]:
    """Questions, each with the passages of a search, including its own; one more passage than an answer reads."""
    engine = ClaraEngine.from_pretrained(model)
    ranking = hybrid_ranking(engine, [question for question, _, _ in asked], texts, DOCUMENTS + 1)
    lines = []
    for (question, answer, gold), ranked in zip(asked, ranking, strict=True):
        found = ranked if gold in ranked else [*ranked[:DOCUMENTS], gold]
        docs = tuple(texts[at] for at in found)
        lines.append(RetrievalLine(question, docs, answer, (answer,), (found.index(gold),)))
    return lines


def main(
    work: Annotated[Path, typer.Argument(help="Folder of sources.py.")],
    file: Annotated[Path, typer.Argument(help="Where the questions are written.")],
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "pocket",
    count: Annotated[int, typer.Option(min=20, help="Questions of each half.")] = 320,
) -> None:
    """Write questions for `clara calibrate`."""
    halves = everyday(work, count), encyclopedia(count)
    lines = [line for texts, asked in halves for line in with_passages(model, texts, asked)]
    random.Random(SEED).shuffle(lines)
    print(f"{write_lines(file, lines)} questions")


if __name__ == "__main__":
    typer.run(main)
