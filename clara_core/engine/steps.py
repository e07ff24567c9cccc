"""Work with several device passes, written once for blocking calls and for asyncio.

Steps are a generator that yields requests, receives their results and returns its own result. A driver submits the
requests and waits; `together` runs several generators side by side, so that their requests share passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from clara_core.engine.requests import Request

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Request], list[Any], T]


def together(several: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run several steps as one: requests that they yield at the same time are submitted together."""
    found: dict[int, T] = {}
    waiting = dict(enumerate(several))
    answers: dict[int, list[Any] | None] = dict.fromkeys(waiting)
    while waiting:
        pending: dict[int, list[Request]] = {}
        for at, steps in list(waiting.items()):
            try:
                given = answers[at]
                pending[at] = next(steps) if given is None else steps.send(given)
            except StopIteration as done:
                found[at] = done.value
                del waiting[at]
        if not waiting:
            break
        results = iter((yield [request for requests in pending.values() for request in requests]))
        answers = {at: [next(results) for _ in requests] for at, requests in pending.items()}
    return [found[at] for at in range(len(several))]
