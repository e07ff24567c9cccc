"""Compares the engine with a plain baseline on the same random weights in one run (``make bench``).

    python -m benchmarks.engine                 # a Mistral of 60 M parameters on this machine
    python -m benchmarks.engine --quick         # a tiny model, to test the benchmark itself
    python -m benchmarks.engine --shape 7b      # 7B-shaped in bfloat16, for a large GPU

Times are the shortest of a few runs. Each side has its own process, and they run in turns. The program compares the
results of both sides while it measures; if they differ, it reports the difference and ends with an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from benchmarks import bounds
from benchmarks.apart import Apart
from benchmarks.baseline import Baseline
from benchmarks.report import Row, hardware, has_bfloat16, has_int8, seconds, show
from benchmarks.workload import SHAPES, Workload, prepare, token_counts
from clara_core import ClaraEngine, Memory
from clara_core.common.threads import one_thread

MEMORY_TOLERANCE = 1e-4  # float32
CANDIDATES = 20
RAGGED = (1, 2, 3, 4, 5, 5, 3, 1)  # documents of the eight questions asked together


@dataclass
class Bench:
    """Both sides, the texts, and results that later measurements use."""

    work: Workload
    engine: ClaraEngine
    baseline: Apart
    passages: list[str]
    questions: list[str]
    measured: int  # passages that the baseline also compresses
    new_tokens: int
    repeats: int
    device: bounds.Device | None

    def __post_init__(self) -> None:
        self.memories: list[Memory] = self.engine.compress(self.passages)
        few = self.passages[: self.measured]
        self.plain = self.baseline.compress(few)  # [measured, n_mem, hidden]
        self.speed = 0.0  # passages per second, measured by `compression`
        self.plain_answer = 0.0  # seconds of the baseline, measured by `one_answer`
        self.best = self._best(self.engine, self.memories)

    # -- the rows --------------------------------------------------------------------------------

    def compression(self) -> Row:
        """Passages per second; the baseline's cost does not depend on their lengths."""
        few = self.passages[: self.measured]
        ours = len(self.passages) / seconds(lambda: self.engine.compress(self.passages), self.repeats)
        self.speed = ours
        plain = len(few) / seconds(lambda: self.baseline.compress(few), min(2, self.repeats))
        bound = None
        if self.device:
            counts = token_counts(self.work.language, self.passages)
            tokens = 3 + self.work.shape.n_mem + sum(counts) / len(counts)
            least = bounds.compress_seconds(self.work.shape, tokens, 1, self.device)
            bound = ours * least
        return Row("compress passages", f"{ours:.1f}/s", f"{plain:.1f}/s", ours / plain, 3.2, bound=bound)

    def reranking(self) -> Row:
        """One question and candidates that are compressed already."""
        texts, ready = self.passages[:CANDIDATES], self.memories[:CANDIDATES]
        question = self.questions[0]
        ours = seconds(lambda: self.engine.rank(question, ready), 5 * self.repeats)
        plain = seconds(lambda: self.baseline.rank(question, texts), 1)
        bound = None
        if self.device:
            [count] = token_counts(self.work.language, [question])
            tokens = 3 + self.work.shape.n_mem + count
            bound = bounds.encode_seconds(self.work.shape, tokens, self.device) / ours
        measure = f"rerank {len(texts)} known candidates"
        return Row(measure, ms(ours), ms(plain), plain / ours, 50, bound=bound)

    def one_answer(self) -> Row:
        """One answer from five memories that both sides have ready."""
        question, k = self.questions[0], 5
        ours = seconds(lambda: self._answer(question, k), self.repeats)
        plain = seconds(lambda: self.baseline.answer(question, self.plain[:k], self.new_tokens), self.repeats)
        self.plain_answer = plain
        measure = f"one answer, {k} memories, {self.new_tokens} tokens"
        bound = self._answer_bound([k], ours)
        return Row(measure, ms(ours), ms(plain), plain / ours, 1.5, bound=bound)

    def whole_question(self) -> list[Row]:
        """The steps of the published call: rank the candidates, known or new, and answer from the best five."""
        question, texts = self.questions[0], self.passages[:CANDIDATES]

        def ours(memories: Sequence[Memory]) -> None:
            best = [memories[hit.index] for hit in self.engine.rank(question, memories, top_k=5)]
            self.engine.answer(question, best, max_tokens=self.new_tokens)

        def plain() -> None:
            best = self.plain[self.baseline.rank(question, texts)[:5]]
            self.baseline.answer(question, best, self.new_tokens)

        known = seconds(lambda: ours(self.memories[: len(texts)]), self.repeats)
        new = seconds(lambda: ours(self.engine.compress(texts)), self.repeats)
        slow = seconds(plain, 1)  # it compresses the candidates in either case
        return [
            Row(f"one question: rank {len(texts)}, answer from 5", ms(known), ms(slow), slow / known),
            Row(f"… with {len(texts)} new documents", ms(new), ms(slow), slow / new),
        ]

    def eight_answers(self) -> list[Row]:
        """Eight questions with different numbers of documents, in one batch and one by one."""
        asked = list(zip(self.questions, RAGGED, strict=False))
        pairs = [(question, self.memories[:k]) for question, k in asked]
        together = seconds(lambda: self.engine.answer_batch(pairs, max_tokens=self.new_tokens), self.repeats)
        in_a_row = seconds(lambda: [self._answer(*case) for case in asked], self.repeats)
        plain = seconds(lambda: self._plain_answers(asked), self.repeats)
        bound = self._answer_bound([k for _, k in asked], together)
        return [
            Row(
                "eight ragged answers together",
                ms(together),
                ms(plain),
                plain / together,
                4.0,
                bound=bound,
            ),
            Row(
                "… against the engine's own eight in a row",
                ms(together),
                f"{ms(in_a_row)} (engine)",
                in_a_row / together,
                4.0,
            ),
        ]

    def equal_answers(self) -> Row:
        """Eight questions with five documents each in one batch, which the published code can do, too."""
        questions, k = self.questions[: len(RAGGED)], 5
        pairs = [(question, self.memories[:k]) for question in questions]
        memories = self.plain[:k].expand(len(questions), -1, -1, -1)
        together = seconds(lambda: self.engine.answer_batch(pairs, max_tokens=self.new_tokens), self.repeats)
        plain = seconds(lambda: self.baseline.answers(questions, memories, self.new_tokens), self.repeats)
        measure = f"eight answers, {k} memories each, against its batch"
        return Row(measure, ms(together), ms(plain), plain / together, 1.5)

    def role_switch(self) -> Row:
        """The same calls, grouped by role and alternating; the difference is the cost of a switch."""
        texts = [question for question in self.questions[:8] for _ in range(2)]
        ours, whole = switch_seconds(self.engine, texts, self.repeats)
        plain, _ = switch_seconds(self.baseline, texts, 1)
        return Row(
            "a switch of role, as a share of the call",
            ms(ours),
            ms(plain),
            ours / whole,
            0.05,
            at_most=True,
        )

    def narrow(self, engine: ClaraEngine, kind: str) -> list[Row]:
        """Speed of an engine with narrower weights, and the overlap of its ten best results with those in float32."""
        here = engine.compress(self.passages)
        fast = len(self.passages) / seconds(lambda: engine.compress(self.passages), self.repeats)
        question = self.questions[0]
        one = seconds(lambda: engine.answer(question, here[:5], max_tokens=self.new_tokens), self.repeats)
        k = len(self.best[0])
        common = [len(set(a) & set(b)) / k for a, b in zip(self.best, self._best(engine, here), strict=True)]
        recall = sum(common) / len(common)
        return [
            Row(
                f"compress in {kind}",
                f"{fast:.1f}/s",
                f"{self.speed:.1f}/s (float32)",
                fast / self.speed,
            ),
            Row(
                f"one answer in {kind}",
                ms(one),
                f"{ms(self.plain_answer)} (float32)",
                self.plain_answer / one,
                2.5 if kind == "int8" else None,
            ),
            Row(f"recall@{k} of {kind} against float32", f"{recall:.3f}", value=recall),
        ]

    # -- comparing results -----------------------------------------------------------------------

    @one_thread()
    def parity(self) -> dict[str, Any]:
        """Largest difference of a memory, and whether rankings and greedy answers are equal."""
        ready = torch.stack([memory.tokens[0] for memory in self.memories[: self.measured]])
        difference = (ready.float().cpu() - self.plain.float().cpu()).abs().max().item()
        question, texts = self.questions[0], self.passages[:CANDIDATES]
        ranked = self.engine.rank(question, self.memories[: len(texts)], top_k=5)
        asked = list(zip(self.questions, RAGGED, strict=False))
        pairs = [(question, self.memories[:k]) for question, k in asked]
        together = self.engine.answer_batch(pairs, max_tokens=self.new_tokens)
        expected = self._plain_answers(asked)
        return {
            "memory_difference": difference,
            "same_top_5": [hit.index for hit in ranked] == self.baseline.rank(question, texts)[:5],
            "same_answers": sum(a.text == b for a, b in zip(together, expected, strict=True)),
            "answers": len(expected),
            "answer_tokens": [answer.completion_tokens for answer in together],
        }

    def _best(self, engine: ClaraEngine, memories: list[Memory]) -> list[list[int]]:
        """The ten best passages for each question."""
        best: list[list[int]] = engine.score(self.questions, memories).topk(min(10, len(memories))).indices.tolist()
        return best

    def _answer(self, question: str, k: int) -> str:
        return self.engine.answer(question, self.memories[:k], max_tokens=self.new_tokens).text

    def _plain_answers(self, asked: Sequence[tuple[str, int]]) -> list[str]:
        return [self.baseline.answer(question, self.plain[:k], self.new_tokens) for question, k in asked]

    def _answer_bound(self, documents: list[int], measured: float) -> float | None:
        if self.device is None:
            return None
        prompts = [
            self.engine.answer(question, self.memories[:k], max_tokens=1)
            for question, k in zip(self.questions, documents, strict=False)
        ]
        lengths = [answer.prompt_tokens + answer.memory_tokens for answer in prompts]
        least = bounds.answer_seconds(self.work.shape, lengths, self.new_tokens, self.device)
        return least / measured


def ms(duration: float) -> str:
    """Seconds formatted as milliseconds with three significant digits."""
    return f"{duration * 1e3:.3g} ms" if duration < 1 else f"{duration * 1e3:.0f} ms"


def switch_seconds(side: ClaraEngine | Apart, texts: list[str], repeats: int) -> tuple[float, float]:
    """Seconds of one switch between compressor and reasoner, and of a mean call."""

    def sorted_by_role() -> None:
        for text in texts:
            side.compress([text])
        for text in texts:
            side.reason([text])

    def alternating() -> None:
        for text in texts:
            side.compress([text])
            side.reason([text])

    calls = 2 * len(texts)
    apart, mixed = [], []
    for _ in range(repeats):  # alternating, so that a slow moment of the machine affects both
        apart.append(seconds(sorted_by_role, 1))
        mixed.append(seconds(alternating, 1))
    return (min(mixed) - min(apart)) / calls, min(apart) / calls


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "60m",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model and few texts.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "",
) -> None:
    """Compare the engine with the plain baseline."""
    if quick:
        shape = "tiny"
    if shape not in SHAPES:
        raise typer.BadParameter(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
    device = device or ("cuda" if shape == "7b" else "cpu")
    dtype = torch.bfloat16 if shape == "7b" else torch.float32
    count = 32 if quick else 128 if device == "cpu" else 1024
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(SHAPES[shape], Path(folder), device, dtype)
        rows, parity = run(work, device, dtype, count, quick=quick)
    exact = dtype == torch.float32
    good = not exact or (
        parity["memory_difference"] <= MEMORY_TOLERANCE
        and parity["same_top_5"]
        and parity["same_answers"] == parity["answers"]
    )
    facts: dict[str, object] = {
        "benchmark": "engine",
        "hardware": hardware(device),
        "shape": shape,
        "parameters": SHAPES[shape].parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parity": parity,
    }
    title = f"random Mistral, {SHAPES[shape].parameters / 1e6:.0f} M, {hardware(device)}"
    show(title, rows, facts, other="plain baseline")
    if not good:
        raise SystemExit(f"the two sides differ: {parity}")


def run(
    work: Workload, device: str, dtype: torch.dtype, count: int, *, quick: bool
) -> tuple[list[Row], dict[str, Any]]:
    """All measurements on one workload."""
    engine = open_engine(work, device, str(dtype).removeprefix("torch."))
    bench = Bench(
        work,
        engine,
        Apart(Baseline, work.checkpoint, work.base, device, dtype),
        passages=work.language.passages(count),
        questions=work.language.questions(32),
        measured=24 if quick else 32,
        new_tokens=8 if quick else 32,
        repeats=1 if quick else 3,
        device=bounds.known_device(hardware(device)) if device != "cpu" else None,
    )
    parity = bench.parity()
    rows = [
        bench.compression(),
        bench.reranking(),
        bench.one_answer(),
        *bench.eight_answers(),
        bench.equal_answers(),
        *bench.whole_question(),
        bench.role_switch(),
    ]
    if dtype != torch.float32:
        return rows, parity
    engine.unload()  # the threads of an engine slow down another one
    if has_bfloat16(device):
        narrow = open_engine(work, device, "bfloat16")
        rows += bench.narrow(narrow, "bfloat16")
        narrow.unload()
    if has_int8(device):
        rows += bench.narrow(open_engine(work, device, "float32", "int8"), "int8")
    return rows, parity


def open_engine(work: Workload, device: str, dtype: str, quantization: str | None = None) -> ClaraEngine:
    """An engine over the workload's checkpoint, loaded."""
    engine = ClaraEngine.from_pretrained(
        str(work.checkpoint), base_model=str(work.base), device=device, dtype=dtype, quantization=quantization
    )
    engine.load()
    return engine


if __name__ == "__main__":
    typer.run(main)
