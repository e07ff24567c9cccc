"""Measures retrieval and answers on the synthetic encyclopedia, with names that no training contains (``make eval``).

    python benchmarks/evaluate_encyclopedia.py                  # 1,000 passages, 1,000 + 500 questions
    python benchmarks/evaluate_encyclopedia.py --quick --check  # a small part; fails if a figure is far too low
    python benchmarks/evaluate_encyclopedia.py --model FOLDER --json figures.json

It measures the weights in ``tests/data/encyclopedia``, which were trained on the encyclopedia, unless ``--model`` names
others. The held-out corpus comes from a fixed seed, and all calls go through the public engine. Retrieval is measured
over all passages of the corpus and compared with BM25 on the same questions. For answers, each question has five
documents: the right ones, and the others that the model ranks highest. They are in the order of that ranking ("best
first", as in use and in training) or in a random order ("any order"). "End to end" reads the five documents that the
model itself retrieved, right or wrong. Answers are greedy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.encyclopedia_tasks import (
    DOCUMENTS,
    MAX_TOKENS,
    SEED,
    Reading,
    World,
    best_first,
    bm25_ranking,
    by,
    family_of,
    hybrid_ranking,
    make_world,
    memory_ranking,
    read,
    relation_of,
    rerank,
    value_of,
    with_gold,
)
from benchmarks.report import hardware
from clara_core import ClaraEngine, Memory
from clara_core.evaluation import recall_at_k, score_answers, score_rankings
from tools.pocket_factory.world import ENCYCLOPEDIA

RERANKED = 50  # candidates of BM25 that the engine reranks
ASKED_ALONE = 21  # questions that are timed one by one

Ranking = list[list[int]]  # passages for each question, best first


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    Attributes:
        name: What was measured.
        value: The figure.
        target: Minimum to be reached; None for no target.
        floor: Minimum for ``--check``; None for no minimum.
        beside: Other figures of the same line, by column.
    """

    name: str
    value: float
    target: float | None = None
    floor: float | None = None
    beside: dict[str, float] = field(default_factory=dict)


@dataclass
class Evaluation:
    """One model over one corpus, measured step by step."""

    engine: ClaraEngine
    world: World

    def __post_init__(self) -> None:
        start = time.perf_counter()
        self.memories: list[Memory] = self.engine.compress(self.world.texts)
        self.compressing = time.perf_counter() - start
        self.ranked: Ranking = memory_ranking(self.engine, self.world.single, self.memories)
        self.two_ranked: Ranking = memory_ranking(self.engine, self.world.double, self.memories)

    def retrieval(self) -> list[Figure]:
        """Retrieval by memory, by memory and words, by BM25, and by BM25 with the engine as reranker."""
        found = [
            score_rankings(ranking, [question.gold for question in self.world.single], ks=(1, 5, 20))
            for ranking in self._rankings(self.world.single, self.ranked)
        ]
        both = [self._both_found(ranking) for ranking in self._rankings(self.world.double, self.two_ranked)]
        goals = {"recall@1": (0.95, 0.90), "recall@5": (0.99, 0.96)}
        single = [
            _compared(f"{name}, one passage", [scores[name] for scores in found], *goals.get(name, (None, None)))
            for name in ("recall@1", "recall@5", "recall@20", "mrr", "ndcg@10")
        ]
        return single + [_compared(f"both in the top 5, {name}", [scores[name] for scores in both]) for name in both[0]]

    def _rankings(self, questions: Sequence, by_memory: Ranking) -> tuple[Ranking, Ranking, Ranking, Ranking]:
        texts = self.world.texts
        both = hybrid_ranking(self.engine, [question.text for question in questions], texts, RERANKED)
        words = bm25_ranking(questions, texts)
        return by_memory, both, words, rerank(words, by_memory, RERANKED)

    def _both_found(self, ranking: Ranking) -> dict[str, float]:
        questions = self.world.double
        found = [float(recall_at_k(one, q.gold, 5) == 1) for q, one in zip(questions, ranking, strict=True)]
        return {"two passages": sum(found) / len(found), **by(questions, found, family_of)}

    def reading(self) -> list[Figure]:
        """Answers from five documents with the gold passages, from these alone, and from retrieved documents."""
        single, double = self.world.single, self.world.double
        mixed, two_mixed = with_gold(single, self.ranked), with_gold(double, self.two_ranked)
        self.hard = self._read(single, best_first(mixed, self.ranked))
        self.two_hard = self._read(double, best_first(two_mixed, self.two_ranked))
        others = [
            ("one passage, nothing else", self._read(single, [list(question.gold) for question in single])),
            ("two passages, nothing else", self._read(double, [list(question.gold) for question in double])),
            ("one passage, end to end", self._read(single, [one[:DOCUMENTS] for one in self.ranked])),
            ("two passages, end to end", self._read(double, [one[:DOCUMENTS] for one in self.two_ranked])),
        ]
        return [
            _answered("one passage, best first", self.hard, 0.95, 0.80),
            _answered("two passages, best first", self.two_hard, 0.85, 0.42),
            *(Figure(f"  {family}", value) for family, value in self.two_hard.by(family_of).items()),
            _answered("one passage, any order", self._read(single, mixed), 0.95, 0.70),
            _answered("two passages, any order", self._read(double, two_mixed), 0.85),
            *(_answered(name, reading) for name, reading in others),
        ]

    def _read(self, questions: Sequence, documents: Ranking) -> Reading:
        return read(self.engine, questions, self.memories, documents)

    def cost(self) -> dict[str, float]:
        """Speed and size. Times of a question are medians over several that run one by one."""
        ranking, answering = [], []
        for question in self.world.single[:ASKED_ALONE]:
            start = time.perf_counter()
            best = self.engine.rank(question.text, self.memories, DOCUMENTS)
            ranked = time.perf_counter()
            documents = [self.memories[one.index] for one in best]
            self.engine.answer(question.text, documents, max_tokens=MAX_TOKENS)
            answering.append(time.perf_counter() - ranked)
            ranking.append(ranked - start)
        count, middle = len(self.memories), len(ranking) // 2
        return {
            "passages a second": round(count / self.compressing, 1),
            "ms to rank all passages": round(sorted(ranking)[middle] * 1e3, 1),
            "ms to answer from five": round(sorted(answering)[middle] * 1e3, 1),
            "bytes a document": round(sum(memory.nbytes for memory in self.memories) / count),
            "text tokens a document": round(sum(memory.source_tokens for memory in self.memories) / count, 1),
            "memory tokens a document": round(sum(m.n_windows for m in self.memories) * self.engine.n_mem / count, 1),
        }


def _compared(name: str, values: Sequence[float], target: float | None = None, floor: float | None = None) -> Figure:
    memory, both, words, reranked = values
    beside = {"hybrid": both, "BM25": words, f"BM25 top {RERANKED} reranked": reranked}
    return Figure(name, memory, target, floor, beside)


def _answered(name: str, reading: Reading, target: float | None = None, floor: float | None = None) -> Figure:
    scores = score_answers(reading.answers, [question.answer for question in reading.questions])
    return Figure(name, scores["exact_match"], target, floor, {"cover": scores["cover_match"], "F1": scores["f1"]})


def below_floor(figures: Sequence[Figure]) -> list[Figure]:
    """The figures below their floor."""
    return [figure for figure in figures if figure.floor is not None and figure.value < figure.floor]


def show(title: str, value: str, figures: Sequence[Figure]) -> None:
    """A table with each figure, its comparisons, its target and whether that was reached."""
    columns = list(dict.fromkeys(name for figure in figures for name in figure.beside))
    table = Table(title=title)
    for column in ("", value, *columns, "target", "reached"):
        table.add_column(column, justify="right" if column else "left")
    for figure in figures:
        beside = [f"{figure.beside[name]:.3f}" if name in figure.beside else "" for name in columns]
        goal, verdict = "", ""
        if figure.target is not None:
            goal, verdict = f">= {figure.target:g}", "yes" if figure.value >= figure.target else "NO"
        table.add_row(figure.name, f"{figure.value:.3f}", *beside, goal, verdict)
    _print(table)


def show_groups(title: str, value: str, groups: dict[str, float], form: str = ".3f") -> None:
    """A table of one number for each group."""
    table = Table("", title=title)
    table.add_column(value, justify="right")
    for name, number in groups.items():
        table.add_row(name, format(number, form))
    _print(table)


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 120).print(table)


def main(
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = ENCYCLOPEDIA,
    quick: Annotated[bool, typer.Option("--quick", help="200 passages instead of 1,000.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail if a figure is below its floor.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures and wrong answers here.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the held-out corpus.")] = SEED,
) -> None:
    """Measure retrieval and answers of a checkpoint on the held-out part of the encyclopedia."""
    world = make_world(200 if quick else 1000, seed)
    engine = ClaraEngine.from_pretrained(model)
    engine.load()
    start = time.perf_counter()
    evaluation = Evaluation(engine, world)
    retrieval, reading, cost = evaluation.retrieval(), evaluation.reading(), evaluation.cost()
    seconds = time.perf_counter() - start
    relations = evaluation.hard.by(relation_of)
    worst = dict(sorted(relations.items(), key=lambda item: item[1])[:10])
    where = hardware(str(engine.device))
    show(
        f"Retrieval: {len(world.texts)} passages, {len(world.single)} + {len(world.double)} questions",
        "memory",
        retrieval,
    )
    show(f"Reading: {DOCUMENTS} documents a question", "EM", reading)
    show_groups("Worst relations (one passage, best first)", "EM", worst)
    show_groups("Sorts of value (one passage, best first)", "EM", evaluation.hard.by(value_of))
    show_groups(f"Cost ({where}, {engine.dtype})", "", cost, "g")
    facts = {
        "benchmark": "encyclopedia",
        "model": model,
        "seed": seed,
        "hardware": where,
        "torch": torch.__version__,
        "passages": len(world.texts),
        "questions": [len(world.single), len(world.double)],
        "seconds": round(seconds, 1),
        "retrieval": [asdict(figure) for figure in retrieval],
        "reading": [asdict(figure) for figure in reading],
        "cost": cost,
    }
    if json_file is not None:
        wrong = {"single": evaluation.hard.wrong(), "double": evaluation.two_hard.wrong()}
        json_file.write_text(json.dumps({**facts, "relations": relations, "wrong": wrong}, indent=1) + "\n", "utf-8")
    print(json.dumps(facts))
    low = below_floor([*retrieval, *reading])
    if check and low:
        raise SystemExit("below the floor: " + ", ".join(f"{f.name} {f.value:.3f} < {f.floor}" for f in low))


if __name__ == "__main__":
    typer.run(main)
