"""Tests that many requests in a small KV cache get the same answers as each request alone.

    python -m benchmarks.pressure                 # 2,000 requests from 16 threads, a random tiny model
    python -m benchmarks.pressure --requests 100

A request is drawn from a pool: a question over 1 to 60 documents, an answer of 1 to 900 tokens, greedy or by a seed,
about 50 to 2,000 positions together. Each request of the pool is first answered alone, in an engine with a KV cache for
all of them. Some callers cancel. The used bytes are read at each pass of the model, so that no peak is missed.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.workload import SHAPES, prepare
from clara_core import Answer, ClaraEngine, Memory
from clara_core.model.decoder import ClaraModel
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache

LONGEST = 2_000  # positions of a request
DOCUMENTS = 60
LEAVES = 0.1  # share of callers that cancel after a few pieces


@dataclass(frozen=True)
class Asked:
    """A request of the pool."""

    question: str
    documents: int
    options: dict[str, Any]


@dataclass
class Outcome:
    """Results of all requests."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    preempted: int = 0
    lengths: list[int] = field(default_factory=list)  # positions of the requests of the pool
    passes: int = 0
    most_rows: int = 0
    most_bytes: int = 0
    total_bytes: int = 0
    bound: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> list[str]:
        """Failed checks."""
        faults = list(self.wrong)
        if self.most_bytes > self.bound or self.total_bytes > self.bound:
            faults.append(f"{self.most_bytes:,} bytes used, {self.total_bytes:,} allocated, {self.bound:,} allowed")
        if errors := {how: count for how, count in self.ended.items() if how not in ("answered", "left")}:
            faults.append(f"errors: {errors}")
        return faults


def pool_of(words: list[str], size: int, seed: int) -> list[Asked]:
    """Requests of up to `LONGEST` positions; short ones are more frequent."""
    rng = random.Random(seed)
    pool = []
    for number in range(size):
        documents = min(DOCUMENTS, int(rng.paretovariate(0.5)))
        options: dict[str, Any] = {"max_tokens": rng.choice((1, 4, 16, 16, 40, 300, 900))}
        if rng.random() < 0.3:
            options |= {"temperature": 0.8, "seed": number}
        pool.append(Asked(" ".join(rng.choices(words, k=rng.choice((1, 5, 12, 60)))) + "?", documents, options))
    return pool


def watch(model: ClaraModel, outcome: Outcome) -> None:
    """Record the used bytes of the KV cache at each pass; pages change only between passes."""

    def look(cache: KVCache) -> None:
        outcome.passes += 1
        outcome.most_rows = max(outcome.most_rows, len(cache.rows))
        outcome.most_bytes = max(outcome.most_bytes, cache.memory.used_bytes)
        outcome.total_bytes = max(outcome.total_bytes, cache.memory.total_bytes)

    def watched(name: str) -> None:
        original: Callable[..., Tensor] = getattr(model, name)

        def run(*args: Any, **kwargs: Any) -> Tensor:
            look(next(arg for arg in args if isinstance(arg, KVCache)))
            return original(*args, **kwargs)

        setattr(model, name, run)

    for name in ("step", "prefill", "read_on"):
        watched(name)


def press(
    engine: ClaraEngine, pool: list[Asked], memories: list[Memory], alone: list[Answer], requests: int, threads: int
) -> Outcome:
    """Send requests from many threads."""
    outcome, lock = Outcome(), threading.Lock()
    watch(engine.load().model, outcome)

    def one(rng: random.Random) -> tuple[str, str]:
        at = rng.randrange(len(pool))
        asked, expected = pool[at], alone[at]
        leaves = rng.random() < LEAVES
        with engine.stream(asked.question, memories[: asked.documents], **asked.options) as stream:
            text = ""
            for pieces, chunk in enumerate(stream):
                text += chunk.text
                if leaves and pieces >= 2:
                    right = expected.text.startswith(text)
                    return "left", "" if right else f"{at}: {text!r} does not begin {expected.text!r}"
                if chunk.answer is not None and chunk.answer != expected:
                    return "answered", f"{at}: {chunk.answer}, alone {expected}"
        return "answered", ""

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(seed, requests, threads):
            try:
                how, wrong = one(rng)
            except Exception as error:  # noqa: BLE001 - every error is a result
                how, wrong = type(error).__name__, str(error)
            with lock:
                outcome.ended[how] += 1
                outcome.wrong += [wrong] if wrong else []

    start = time.monotonic()
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outcome.preempted = engine.stats().preempted
    outcome.seconds = time.monotonic() - start
    return outcome


def run(requests: int, threads: int, pool_size: int, places: int, seed: int = 0) -> Outcome:
    """Run a random tiny model: the pool alone, then all requests in a KV cache for `places` of the longest ones."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(SHAPES["tiny"], Path(folder), "cpu", torch.float32)

        def engine_with(kv_cache_bytes: int | None) -> ClaraEngine:
            return ClaraEngine.from_pretrained(
                str(work.checkpoint),
                base_model=str(work.base),
                device="cpu",
                dtype="float32",
                kv_cache_bytes=kv_cache_bytes,
            )

        engine = engine_with(None)
        memories = engine.compress(work.language.passages(DOCUMENTS))
        pool = pool_of(work.language.words, pool_size, seed)
        alone = [engine.answer(one.question, memories[: one.documents], **one.options) for one in pool]
        bound = places * -(-LONGEST // PAGE) * engine.load().model.kv_shape().page_bytes
        engine.unload()
        engine_with(bound)  # the same engine, with a smaller KV cache from now on
        outcome = press(engine, pool, memories, alone, requests, threads)
        outcome.bound = bound
        outcome.lengths = [one.prompt_tokens + one.memory_tokens + one.completion_tokens for one in alone]
        engine.unload()
        return outcome


def main(
    requests: Annotated[int, typer.Option(help="Number of requests.")] = 2_000,
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 16,
    pool: Annotated[int, typer.Option(help="Number of different requests.")] = 150,
    places: Annotated[int, typer.Option(help="Longest requests that fit the KV cache together.")] = 6,
) -> None:
    """Run many requests in a small KV cache."""
    outcome = run(requests, threads, pool, places)
    print(f"{sum(outcome.ended.values())} of {requests} ended in {outcome.seconds:.0f} s: {dict(outcome.ended)}")
    print(f"{len(outcome.lengths)} different requests of {min(outcome.lengths)} to {max(outcome.lengths)} positions")
    print(f"unlike alone: {len(outcome.wrong)}; preempted {outcome.preempted} times")
    print(f"{outcome.passes:,} passes of at most {outcome.most_rows} rows")
    print(f"KV bytes: at most {outcome.most_bytes:,} used and {outcome.total_bytes:,} allocated of {outcome.bound:,}")
    if outcome.faults or sum(outcome.ended.values()) != requests:
        raise SystemExit(f"not as it should be: {outcome.faults[:3]}")


if __name__ == "__main__":
    typer.run(main)
