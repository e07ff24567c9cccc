"""Measures the overhead of HTTP over the engine in the same process.

    python -m benchmarks.serve_overhead            # the bundled model, whose calls are short, so that HTTP weighs most
    python -m benchmarks.serve_overhead --quick    # few runs

The server is another process on the same machine, so both sides share its processor. First one client makes one call at
a time, on both sides in turns, and the median counts. Then sixteen threads call concurrently. Results are compared; if
they differ, the program ends with an error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import Row, hardware, show
from benchmarks.server_process import serving
from clara_core import ClaraEngine, Engine, open_engine

MOST_MS = 10.0  # maximum overhead of HTTP when ranking twenty compressed documents
CLIENTS = 16
TEXTS = [
    f"The lighthouse of Port {n} was built in {1700 + n} by Ada Quill {n}, is {20 + n} metres high and shows a light "
    f"every {2 + n % 9} seconds. Its keeper writes a log of every ship that passes, and a copy goes to the harbour."
    for n in range(20)
]


@dataclass(frozen=True)
class Call:
    """A call, whose number makes each question different."""

    name: str
    ask: Callable[[Engine, int], Any]


def question(number: int) -> str:
    """A question that no call had before."""
    return f"When was the lighthouse of Port {number % 20} built, asked for the time number {number}?"


CALLS = [
    Call("rank 20 known documents", lambda engine, n: engine.rank(question(n), engine.remember(TEXTS), 5)),
    Call("embed a question", lambda engine, n: engine.reason([question(n)])),
    Call(
        "log-probability of a text", lambda engine, n: engine.logprob(question(n), engine.remember(TEXTS[:5]), "1701")
    ),
    Call(
        "answer from 5 known documents, 32 tokens at most",
        lambda engine, n: engine.answer(question(n), engine.remember(TEXTS[:5]), max_tokens=32).text,
    ),
    Call(
        "the same as a stream",
        lambda engine, n: [
            piece.text for piece in engine.stream(question(n), engine.remember(TEXTS[:5]), max_tokens=32)
        ],
    ),
]


def alike(one: Any, other: Any) -> bool:
    """Whether results are equal up to the last digits of numbers."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, atol=1e-5)
    if isinstance(one, float):
        return abs(one - other) < 1e-5
    if isinstance(one, list) and one and hasattr(one[0], "score"):
        return [each.index for each in one] == [each.index for each in other]
    return bool(one == other)


def one_client(call: Call, here: Engine, there: Engine, repeats: int) -> Row:
    """One call at a time, on both sides in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-2, repeats):  # the first two fill caches and open connections
        results = []
        for engine, spent in zip((here, there), times, strict=True):
            start = time.perf_counter()
            results.append(call.ask(engine, number))
            spent.append(time.perf_counter() - start)
        if not alike(*results):
            raise SystemExit(f"{call.name}: {results[0]!r} here, {results[1]!r} over HTTP")
    inside, over = (1000 * statistics.median(spent[2:]) for spent in times)
    target = MOST_MS if call is CALLS[0] else None
    return Row(call.name, f"{inside:.1f} ms", f"{over:.1f} ms", over - inside, target, at_most=True)


def many_clients(call: Call, here: Engine, there: Engine, each: int) -> Row:
    """Calls per second of sixteen concurrent threads."""

    def rate(engine: Engine) -> float:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda n: call.ask(engine, n), range(CLIENTS)))
            start = time.perf_counter()
            list(pool.map(lambda n: call.ask(engine, n), range(CLIENTS, CLIENTS * (each + 1))))
            return CLIENTS * each / (time.perf_counter() - start)

    inside, over = rate(here), rate(there)
    return Row(f"{CLIENTS} clients: {call.name}", f"{inside:.1f} /s", f"{over:.1f} /s", over / inside)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few runs.")] = False,
) -> None:
    """Compare an engine in this process with the same model behind a server."""
    here = ClaraEngine.from_pretrained("pocket")
    repeats, each = (3, 1) if quick else (40, 8)
    with serving() as server:
        there = open_engine(server.url)
        rows: Sequence[Row] = [
            *(one_client(call, here, there, repeats) for call in CALLS),
            *(many_clients(call, here, there, each) for call in CALLS),
        ]
    facts: dict[str, object] = {
        "benchmark": "serve_overhead",
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "runs": repeats,
    }
    show(f"In this process and over HTTP, pocket, {hardware('cpu')}", rows, facts, other="over HTTP")


if __name__ == "__main__":
    typer.run(main)
