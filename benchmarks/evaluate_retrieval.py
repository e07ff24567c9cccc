"""Measures search of a store by memory, by words and by both (``make eval-retrieval``).

    python -m benchmarks.evaluate_retrieval                        # 1,000, 10,000 and 50,000 passages
    python -m benchmarks.evaluate_retrieval --sizes 1000           # minutes instead of an hour
    python -m benchmarks.evaluate_retrieval --json figures.json --plot docs/retrieval.png

Each corpus is from the held-out part of the synthetic encyclopedia (`benchmarks.encyclopedia_tasks`). It is compressed
once into a `MemoryStore` in bfloat16 and one in int8 in the folder ``--run``, which later runs use again. Every ranking
comes from the public calls of the store, except plain BM25, which is bm25s over the same passages. Milliseconds are
those of questions that run one by one, including the query reasoner.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from benchmarks.curves import KeyCurve, draw_curves, make_figure
from benchmarks.encyclopedia_tasks import DOCUMENTS, MAX_TOKENS, SEED, make_world
from benchmarks.evaluate_encyclopedia import show_groups
from benchmarks.report import hardware
from clara_core import ClaraEngine
from clara_core.evaluation import score_rankings
from clara_core.retrieval.ranking import fuse_ranks, rank_memories
from clara_core.store import MemoryStore
from tools.pocket_factory.world import ENCYCLOPEDIA, Question

DEPTH = 50  # documents of a ranking, and of BM25's candidates that memory reranks
TIMED = 21  # questions that are asked one by one
NEAREST = 10  # true neighbours, all of which short keys should find
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)  # weights of the word ranking in a fused ranking
KEY_LENGTHS = (128, 256, 512, 1024, 2048)
SHOWN = ("recall@1", "recall@5", "recall@20", "mrr", "ndcg@10")

Rankings = list[list[int]]


@dataclass
class Corpus:
    """Held-out passages in two stores, and questions about them.

    Attributes:
        texts: Passages; the id of each in the stores is its number.
        questions: Questions about one and about two passages.
        stores: Stores by the type of their memories.
        vectors: Vectors of the questions, ``[Q, n_mem, hidden]``.
    """

    engine: ClaraEngine
    texts: list[str]
    questions: list[Question]
    stores: dict[str, MemoryStore]
    vectors: Tensor

    @classmethod
    def make(cls, engine: ClaraEngine, size: int, asked: int, run: Path) -> Corpus:
        """Draw passages and questions, and compress the passages unless `run` has them already."""
        world = make_world(size)
        double = world.double[: asked // 3]
        questions = [*world.single[: asked - len(double)], *double]
        place = run / f"{engine.fingerprint[:12]}-{SEED}-{size}"
        full = MemoryStore.open(place / "bfloat16", engine)
        small = MemoryStore.open(place / "int8", memory_type="int8")
        ids = [str(index) for index in range(size)]
        if full.count() < size:
            full.add(world.texts, ids=ids, show_progress=True)
            full.optimize(show_progress=True)
        if small.count() < size:
            for start in tqdm(range(0, size, 1024), desc="in int8"):
                part = ids[start : start + 1024]
                small.add(memories=full.memories(part), ids=part)
            small.optimize()
        return cls(engine, world.texts, questions, {"bfloat16": full, "int8": small},
                   engine.reason([question.text for question in questions]))  # fmt: skip

    @property
    def store(self) -> MemoryStore:
        """The store in bfloat16."""
        return self.stores["bfloat16"]


@dataclass
class Method:
    """A method of ranking the passages for a question.

    Attributes:
        name: Name of the method.
        rankings: Ranking for each question, best first.
        ms: Median milliseconds of a question.
        bytes: Bytes that the method needs for each document; None if unknown.
    """

    name: str
    rankings: Rankings
    ms: float | None = None
    bytes: float | None = None

    def scores(self, questions: Sequence[Question]) -> dict[str, float]:
        """Measures over questions about one passage, recall@5 over those about two, nDCG over both."""
        pairs = list(zip(self.rankings, questions, strict=True))
        groups = {n: [(r, q.gold) for r, q in pairs if len(q.gold) == n] for n in (1, 2)}
        found: dict[str, float] = {}
        if groups[1]:
            single = score_rankings(*zip(*groups[1], strict=True), ks=(1, 5, 20))
            found |= {name: single[name] for name in SHOWN}
        if groups[2]:
            found["recall@5, two passages"] = score_rankings(*zip(*groups[2], strict=True), ks=(5,))["recall@5"]
        found["ndcg@10, all"] = score_rankings(self.rankings, [q.gold for q in questions], ks=(5,))["ndcg@10"]
        return found


class Words:
    """Plain BM25 over the passages: words in lower case without English stop words."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self.tokenize = lambda given: bm25s.tokenize(given, show_progress=False)
        self.index = bm25s.BM25()
        self.index.index(self.tokenize(list(texts)), show_progress=False)
        self.bytes = sum(array.nbytes for array in self.index.scores.values() if hasattr(array, "nbytes"))

    def rank(self, questions: Sequence[str]) -> Rankings:
        """The first `DEPTH` passages for each question."""
        found, _ = self.index.retrieve(self.tokenize(list(questions)), k=DEPTH, show_progress=False, n_threads=1)
        rankings: Rankings = found.tolist()
        return rankings


@dataclass
class Evaluation:
    """One corpus, searched with every method."""

    corpus: Corpus
    methods: list[Method] = field(default_factory=list)

    def run(self) -> None:
        """Rank all questions with every method."""
        corpus, store = self.corpus, self.corpus.store
        texts = [question.text for question in corpus.questions]
        words = Words(corpus.texts)
        memory = self._rank("memory", store, corpus.vectors)
        plain = words.rank(texts)
        text_bytes = statistics.fmean(len(text.encode()) for text in corpus.texts)
        per_word = words.bytes / len(corpus.texts)
        stored = store.stats().bytes_per_document
        self.methods = [
            Method("memory", memory, self._time(lambda q: store.search(q, DOCUMENTS, mode="memory")), stored),
            Method("memory, exact", self._rank("memory", store, corpus.vectors, exact=True),
                   self._time(lambda q: store.search(q, DOCUMENTS, mode="memory", exact=True)), stored),
            Method("memory in int8", self._rank("memory", corpus.stores["int8"], corpus.vectors),
                   None, corpus.stores["int8"].stats().bytes_per_document),
            Method("BM25 (bm25s)", plain, self._time(lambda q: words.rank([q])), per_word + text_bytes),
            Method(f"BM25 top {DEPTH} by memory", self._reranked(plain), self._time(self._rerank_one(words))),
        ]  # fmt: skip
        by_words = self._rank("text", store, texts)
        self.methods += [
            Method("text mode of the store", by_words, self._time(lambda q: store.search(q, DOCUMENTS, mode="text"))),
            Method("hybrid mode of the store", self._rank("hybrid", store, texts),
                   self._time(lambda q: store.search(q, DOCUMENTS, mode="hybrid")), stored),
            *(
                Method(
                    f"memory and text, {weight} of text",
                    self._rank("hybrid", store, texts, vectors=corpus.vectors, text_weight=weight),
                )
                for weight in WEIGHTS
            ),
            Method("both by reciprocal ranks", _by_ranks(memory, by_words)),
        ]  # fmt: skip

    def nearest(self) -> list[list[str]]:
        """The true neighbours of each question."""
        found = self.corpus.store.search(self.corpus.vectors, NEAREST, mode="memory", exact=True)
        return [[hit.id for hit in hits] for hits in found]

    def curves(self) -> dict[int, dict[int, float]]:
        """Recall of true neighbours by key length and oversampling."""
        store = self.corpus.store
        dimension = self.corpus.vectors[0].numel()
        curve = KeyCurve(dimension, KEY_LENGTHS)
        ids = [str(index) for index in range(len(self.corpus.texts))]
        for start in tqdm(range(0, len(ids), 1024), desc="keys"):
            part = ids[start : start + 1024]
            memories = store.memories(part)
            owners = [id_ for id_, memory in zip(part, memories, strict=True) for _ in range(memory.n_windows)]
            curve.add(torch.cat([memory.tokens for memory in memories]), owners)
        return curve.recall(self.corpus.vectors, self.nearest())

    def same_answers(self, count: int) -> dict[str, float]:
        """Share of questions with equal answers from bfloat16 and from int8, each from its five best documents."""
        asked = self.corpus.questions[:: max(1, len(self.corpus.questions) // count)][:count]
        places = [self.corpus.questions.index(question) for question in asked]
        best = self.corpus.store.search(self.corpus.vectors[places], DOCUMENTS, mode="memory")
        said = {}
        for name, store in self.corpus.stores.items():
            items = [(q.text, store.memories(hit.id for hit in hits)) for q, hits in zip(asked, best, strict=True)]
            answers = self.corpus.engine.answer_batch(items, max_tokens=MAX_TOKENS)
            said[name] = [answer.text for answer in answers]
        alike = [float(one == other) for one, other in zip(said["bfloat16"], said["int8"], strict=True)]
        return {"questions": len(asked), "answers alike": statistics.fmean(alike)}

    def _rank(self, mode: Any, store: MemoryStore, asked: Any, **options: Any) -> Rankings:
        found = store.search(asked, DEPTH, mode=mode, **options)
        return [[int(hit.id) for hit in hits] for hits in found]

    def _reranked(self, first: Rankings) -> Rankings:
        return [
            self._by_memory(vector, few)
            for vector, few in zip(self.corpus.vectors, tqdm(first, desc="reranking"), strict=True)
        ]

    def _by_memory(self, vector: Tensor, few: Sequence[int]) -> list[int]:
        memories = self.corpus.store.memories(str(index) for index in few)
        return [few[ranked.index] for ranked in rank_memories(vector, memories)]

    def _rerank_one(self, words: Words) -> Callable[[str], object]:
        return lambda question: self._by_memory(self.corpus.engine.reason([question])[0], words.rank([question])[0])

    def _time(self, ask: Callable[[str], object]) -> float:
        texts = [question.text for question in self.corpus.questions[:TIMED]]
        ask(texts[0])
        times = []
        for text in texts:
            start = time.perf_counter()
            ask(text)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3


def _by_ranks(memory: Rankings, words: Rankings) -> Rankings:
    """Both rankings fused by rank only, for comparison with the store's fusion of scores."""
    return [[item for item, _ in fuse_ranks(both)] for both in zip(memory, words, strict=True)]


def table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The methods of one corpus with all their figures."""
    return [
        {"method": one.name, **one.scores(evaluation.corpus.questions), "ms": one.ms, "bytes": one.bytes}
        for one in evaluation.methods
    ]


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table of docs/retrieval.md."""
    columns = list(lines[0])
    rows = [[_cell(name, line.get(name)) for name in columns] for line in lines]
    heads = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in heads)


def _cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return {"ms": f"{value:.1f}", "bytes": f"{value:,.0f}"}.get(name, f"{value:.3f}")


def plot(tables: dict[int, list[dict[str, Any]]], curves: dict[int, dict[int, float]], picture: Path) -> None:
    """Plot recall@1 over the size of the corpus, and recall of short keys."""
    figure, (left, right) = make_figure(2)
    shown = ("memory", "BM25 (bm25s)", "hybrid mode of the store", f"BM25 top {DEPTH} by memory")
    for name in shown:
        values = [next(line["recall@1"] for line in lines if line["method"] == name) for lines in tables.values()]
        left.plot(list(tables), values, marker="o", markersize=3, label=name)
    left.set(xscale="log", xlabel="passages", ylabel="recall@1")
    left.set_xticks(list(tables), [f"{size:,}" for size in tables])
    left.minorticks_off()
    left.legend(loc="best", frameon=False, fontsize=8)
    draw_curves(right, curves, f"two steps against exact, {max(tables):,} passages")
    figure.savefig(picture, dpi=120)


def main(
    sizes: Annotated[str, typer.Option(help="Passages of each corpus, separated by commas.")] = "1000,10000,50000",
    questions: Annotated[int, typer.Option(help="Questions on each corpus, a third over two passages.")] = 1500,
    answers: Annotated[int, typer.Option(help="Questions answered from bfloat16 and from int8; 0 skips this.")] = 1500,
    model: Annotated[str, typer.Option(help="Bundled name, folder, or Hub id.")] = ENCYCLOPEDIA,
    run: Annotated[Path, typer.Option(help="Folder of the compressed corpora.")] = Path("runs/retrieval"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="Draw them here.")] = None,
) -> None:
    """Measure search in stores of the held-out encyclopedia."""
    engine = ClaraEngine.from_pretrained(model)
    engine.load()
    tables: dict[int, list[dict[str, Any]]] = {}
    alike: dict[str, float] = {}
    curves: dict[int, dict[int, float]] = {}
    for size in sorted({int(part) for part in sizes.split(",")}):
        evaluation = Evaluation(Corpus.make(engine, size, questions, run))
        evaluation.run()
        tables[size] = table(evaluation)
        print(f"\n{size:,} passages, {len(evaluation.corpus.questions)} questions\n\n{markdown(tables[size])}")
        if answers and not alike:
            alike = evaluation.same_answers(answers)
        curves = evaluation.curves()
        for length, curve in curves.items():
            show_groups(f"{length} numbers a key", f"recall@{NEAREST}", {f"x{t}": v for t, v in curve.items()}, ".4f")
    if picture is not None:
        plot(tables, curves, picture)
    facts = {
        "benchmark": "retrieval",
        "model": model,
        "fingerprint": engine.fingerprint,
        "hardware": hardware(str(engine.device)),
        "tables": tables,
        "int8 and bfloat16": alike,
        "recall by key length and oversampling": curves,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    print(json.dumps(facts))


if __name__ == "__main__":
    typer.run(main)
