"""Work that waits for the device several times, written once for callers that block and for those on an event loop.

Steps are a generator: it yields requests, is given their results, and returns what it found. A driver submits and
waits; `together` runs several side by side, so that their requests share passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from clara_core.engine.requests import Request

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Request], list[Any], T]


def together(several: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Several pieces of work as one: what they ask for at the same time is asked for together."""
    found: dict[int, T] = {}
    waiting = dict(enumerate(several))
    answers: dict[int, list[Any] | None] = dict.fromkeys(waiting)
    while waiting:
        asked: dict[int, list[Request]] = {}
        for at, steps in list(waiting.items()):
            try:
                given = answers[at]
                asked[at] = next(steps) if given is None else steps.send(given)
            except StopIteration as done:
                found[at] = done.value
                del waiting[at]
        if not waiting:
            break
        results = iter((yield [request for requests in asked.values() for request in requests]))
        answers = {at: [next(results) for _ in requests] for at, requests in asked.items()}
    return [found[at] for at in range(len(several))]
