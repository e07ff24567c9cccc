"""Measures the latency of questions while a corpus is compressed and answers are written.

    python -m benchmarks.mixed                 # 60 M parameters
    python -m benchmarks.mixed --quick         # a tiny model, a few questions

Questions are ranked against finished memories, one after the other: alone, while a corpus is compressed, while answers
are generated, and during both. The loads take turns, so that a slow moment of the machine affects all of them. The
program also prints passages per second with and without the answers.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.engine import open_engine
from benchmarks.report import Row, hardware, show
from benchmarks.workload import SHAPES, Language, prepare
from clara_core import ClaraEngine, Memory
from clara_core.evaluation.cost import percentile

MOST_P50, MOST_P95 = 1.5, 3.0  # times the latency alone, while a corpus is compressed
TURNS = 5
WRITERS = 2
PAUSE = 0.01  # seconds between two questions


Work = Callable[[threading.Event], None]


@dataclass
class Load:
    """Work that runs concurrently with the questions, and its figures.

    Attributes:
        work: Functions, each run in a thread of its own until its event is set.
        times: Seconds of each question during the work.
        seconds: Total running time.
        passages: Number of passages that the work compressed.
    """

    work: list[Work]
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    passages: int = 0

    def beside(self, engine: ClaraEngine, questions: list[str], memories: list[Memory]) -> None:
        """Ask questions while the work runs."""
        stop = threading.Event()
        with ThreadPoolExecutor(max(1, len(self.work))) as pool:
            before, start = engine.stats().compressed, time.perf_counter()
            working = [pool.submit(one, stop) for one in self.work]
            time.sleep(0.3)  # until the work is on the device
            try:
                self.times += latencies(engine, questions, memories)
            finally:
                self.seconds += time.perf_counter() - start
                self.passages += engine.stats().compressed - before - len(questions)
                stop.set()
        for one in working:
            one.result()  # raises the error of a thread that failed


def corpus(engine: ClaraEngine, texts: list[str]) -> Work:
    """Compress texts in a loop."""

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            with closing(engine.compress_stream(texts)) as stream:
                for _ in stream:
                    if stop.is_set():
                        return

    return work


def answers(engine: ClaraEngine, questions: list[str], memories: list[Memory], tokens: int) -> Work:
    """Answer questions one after the other."""

    def work(stop: threading.Event) -> None:
        for question in cycle(questions):
            if stop.is_set():
                return
            engine.answer(question, memories, max_tokens=tokens)

    return work


def latencies(engine: ClaraEngine, questions: list[str], memories: list[Memory]) -> list[float]:
    """Seconds of each question."""
    times = []
    for question in questions:
        start = time.perf_counter()
        engine.rank(question, memories, top_k=5)
        times.append(time.perf_counter() - start)
        time.sleep(PAUSE)
    return times


def run(engine: ClaraEngine, language: Language, asked: int, tokens: int) -> list[Row]:
    """Run all loads in turns."""
    memories = engine.compress(language.passages(100))
    questions = language.questions(asked)
    read = corpus(engine, language.passages(64))
    write = answers(engine, questions, memories[:5], tokens)
    loads = {
        "alone": Load([]),
        "beside a corpus": Load([read]),
        "beside answers": Load([write] * WRITERS),
        "beside a corpus and answers": Load([read, *[write] * WRITERS]),
    }
    latencies(engine, questions[:3], memories)
    for turn in range(TURNS):
        for load in loads.values():
            load.beside(engine, questions[turn::TURNS], memories)
    alone, both = loads["alone"], loads["beside a corpus and answers"]
    rows = [
        row_of(name, load, alone, share, most)
        for name, load in loads.items()
        for share, most in ((50, MOST_P50), (95, MOST_P95))
    ]
    single = loads["beside a corpus"]
    rates = [load.passages / load.seconds for load in (both, single)]
    measure = "passages a second, beside questions and answers"
    return [*rows, Row(measure, f"{rates[0]:.1f}/s", f"{rates[1]:.1f}/s (beside questions)", rates[0] / rates[1])]


def row_of(name: str, load: Load, alone: Load, share: int, most: float) -> Row:
    """A percentile of a load relative to that of the questions alone."""
    here, there = percentile(load.times, share), percentile(alone.times, share)
    target = most if name == "beside a corpus" else None
    measure = f"a question {name}, p{share}"
    return Row(measure, f"{here:.1f} ms", f"{there:.1f} ms", here / there, target, at_most=True)


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "60m",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model, a few questions.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure the latency of a question during other work."""
    shape = "tiny" if quick else shape
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(SHAPES[shape], Path(folder), device, torch.float32)
        engine = open_engine(work, device, "float32")
        rows = run(engine, work.language, asked=20 if quick else 200, tokens=8 if quick else 32)
    facts: dict[str, object] = {"benchmark": "mixed", "hardware": hardware(device), "shape": shape}
    show(f"questions beside other work, {hardware(device)}", rows, facts, other="alone")


if __name__ == "__main__":
    typer.run(main)
