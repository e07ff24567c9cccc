"""Tests that many threads on one engine get the same results as one thread.

    python -m benchmarks.soak                  # sixteen threads for a minute, on 60 M parameters
    python -m benchmarks.soak --quick          # a tiny model for a few seconds

First every call runs once alone. Then all threads make the same calls in random order. Tensors must agree with the
serial ones within 1e-5, and texts must be equal.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.engine import open_engine
from benchmarks.report import Row, hardware, show
from benchmarks.workload import SHAPES, Language, prepare
from clara_core import ClaraEngine

TOLERANCE = 1e-5
Result = Tensor | str


@dataclass(frozen=True)
class Call:
    """One call of the engine, whose result is a tensor or a text."""

    name: str
    ask: Callable[[], Result]


@dataclass
class Findings:
    """Results of the threads, collected under a lock."""

    calls: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: Call, result: Result, expected: Result) -> None:
        """Compare a result with the serial one."""
        if isinstance(expected, Tensor) and isinstance(result, Tensor):
            difference = (result - expected).abs().max().item()
            fault = not difference <= TOLERANCE  # NaN is a fault as well
            note = f"{call.name}: differs by {difference:.2e}"
        else:
            difference, fault = 0.0, result != expected
            note = f"{call.name}: {result!r}, alone {expected!r}"
        with self.lock:
            self.calls[call.name] += 1
            self.worst[call.name] = max(self.worst.get(call.name, 0.0), difference)
            if fault:
                self.faults.append(note)

    def fail(self, call: Call, error: BaseException) -> None:
        """Record a call that raised an error."""
        with self.lock:
            self.faults.append(f"{call.name}: {type(error).__name__}: {error}")


def every_call(engine: ClaraEngine, language: Language, tokens: int) -> list[Call]:
    """Every public call of the engine, each with several arguments."""
    passages = language.passages(24)
    questions = language.questions(6)
    memories = engine.compress(passages)

    def packed(texts: list[str]) -> Tensor:
        return torch.cat([memory.tokens for memory in engine.compress(texts)])

    def ranks(question: str) -> Tensor:
        by_index = sorted(engine.rank(question, memories), key=lambda hit: hit.index)
        return torch.tensor([hit.score for hit in by_index])

    def batch(start: int) -> str:
        asked = [(questions[i], memories[i : i + 1 + (start + i) % 4]) for i in range(3)]
        return "\n".join(answer.text for answer in engine.answer_batch(asked, max_tokens=tokens))

    def streamed(question: str, k: int) -> str:
        chunks = engine.stream(question, memories[:k], max_tokens=tokens)
        return "".join(chunk.text for chunk in chunks)

    async def streamed_async(question: str, k: int) -> str:
        chunks = engine.astream(question, memories[:k], max_tokens=tokens)
        return "".join([chunk.text async for chunk in chunks])

    def chat(question: str, k: int) -> str:
        messages = [{"role": "user", "content": question}]
        return engine.chat(messages, memories=memories[:k], max_tokens=tokens).text

    calls: list[Call] = []
    for index, question in enumerate(questions):
        k = 1 + index % 4
        few = memories[:k]
        texts = passages[index : index + 1 + 3 * index]
        calls += [
            Call("compress", lambda t=texts: packed(t)),
            Call("acompress", lambda t=texts: _stacked(asyncio.run(engine.acompress(t)))),
            Call("reason", lambda n=index: engine.reason(questions[: n + 1])),
            Call("areason", lambda q=question: asyncio.run(engine.areason([q]))),
            Call("score", lambda n=index: engine.score(questions[: n + 1], memories)),
            Call("rank", lambda q=question: ranks(q)),
            Call("answer", lambda q=question, f=few: _text(engine, q, f, tokens)),
            Call("aanswer", lambda q=question, f=few: _atext(engine, q, f, tokens)),
            Call("answer_batch", lambda n=index: batch(n)),
            Call("stream", lambda q=question, n=k: streamed(q, n)),
            Call("astream", lambda q=question, n=k: asyncio.run(streamed_async(q, n))),
            Call("chat", lambda q=question, n=k: chat(q, n)),
            Call(
                "paraphrase",
                lambda n=index: engine.paraphrase(memories[n], max_tokens=tokens).text,
            ),
        ]
    return calls


def _stacked(memories: list) -> Tensor:
    return torch.cat([memory.tokens for memory in memories])


def _text(engine: ClaraEngine, question: str, memories: list, tokens: int) -> str:
    return engine.answer(question, memories, max_tokens=tokens).text


def _atext(engine: ClaraEngine, question: str, memories: list, tokens: int) -> str:
    return asyncio.run(engine.aanswer(question, memories, max_tokens=tokens)).text


def mix(calls: list[Call], serial: list[Result], threads: int, duration: float) -> Findings:
    """Make random calls in ``threads`` threads for ``duration`` seconds."""
    findings = Findings()
    end = time.monotonic() + duration

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            at = rng.randrange(len(calls))
            try:
                findings.add(calls[at], calls[at].ask(), serial[at])
            except Exception as error:  # noqa: BLE001 - every error is reported
                findings.fail(calls[at], error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return findings


def main(
    seconds: Annotated[float, typer.Option(help="How long the threads run.")] = 60,
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 16,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "60m",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model, a few seconds.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Make all calls from many threads."""
    if quick:
        shape, seconds = "tiny", min(seconds, 5)
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(SHAPES[shape], Path(folder), device, torch.float32)
        engine = open_engine(work, device, "float32")
        calls = every_call(engine, work.language, tokens=8)
        serial = [call.ask() for call in calls]
        findings = mix(calls, serial, threads, seconds)
    rows = [
        Row(name, f"{count} calls", value=findings.worst[name], target=TOLERANCE, at_most=True)
        for name, count in sorted(findings.calls.items())
    ]
    rows.append(
        Row(
            "results unlike the serial ones",
            str(len(findings.faults)),
            value=len(findings.faults),
            target=0,
            at_most=True,
        )
    )
    facts: dict[str, object] = {
        "benchmark": "soak",
        "hardware": hardware(device),
        "shape": shape,
        "threads": threads,
        "seconds": seconds,
        "faults": findings.faults[:10],
    }
    show(f"{threads} threads for {seconds:g} s, {hardware(device)}", rows, facts, other="idle")
    if findings.faults:
        raise SystemExit(f"{len(findings.faults)} results differ, the first: {findings.faults[0]}")


if __name__ == "__main__":
    typer.run(main)
