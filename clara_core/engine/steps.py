"""Work with several device passes or requests to a server, written once for blocking calls and for asyncio.

Steps are a generator that yields requests, receives their results and returns its own result. `drive` and `adrive` run
it to its end; `together` runs several generators side by side, so that their requests share passes. Imports no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from clara_core.common.threads import one_thread

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Any], list[Any], T]


class Cancellable(Protocol):
    """A request, as far as it matters here."""

    def cancel(self) -> object:
        """Stop the work."""


R = TypeVar("R", bound=Cancellable)


def together(several: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run several steps as one: requests that they yield at the same time are submitted together."""
    found: dict[int, T] = {}
    waiting = dict(enumerate(several))
    answers: dict[int, list[Any] | None] = dict.fromkeys(waiting)
    while waiting:
        pending: dict[int, list[Any]] = {}
        for at, steps in list(waiting.items()):
            try:
                pending[at] = _advance(steps, answers[at])
            except StopIteration as done:
                found[at] = done.value
                del waiting[at]
        if not waiting:
            break
        results = iter((yield [request for requests in pending.values() for request in requests]))
        answers = {at: [next(results) for _ in requests] for at, requests in pending.items()}
    return [found[at] for at in range(len(several))]


def drive(steps: Steps[T], wait: Callable[[list[Any]], list[Any]]) -> T:
    """Run steps to their end; `wait` submits requests and returns their results."""
    results: list[Any] | None = None
    while True:
        try:
            requests = _advance(steps, results)
        except StopIteration as done:
            value: T = done.value
            return value
        results = wait(requests)


async def adrive(
    steps: Steps[T], submit: Callable[[list[Any]], None], results_of: Callable[[Sequence[Any]], Awaitable[list[Any]]]
) -> T:
    """Run steps to their end without blocking the event loop: they and `submit` run in a thread between two waits."""
    given: list[Any] | None = None
    found: list[T] = []

    def advance() -> list[Any]:
        try:
            requests = _advance(steps, given)
        except StopIteration as done:
            found.append(done.value)
            return []
        submit(requests)
        return requests

    while True:
        requests = await off_loop(advance)
        if found:
            return found[0]
        given = await results_of(requests)


def _advance(steps: Steps[T], results: list[Any] | None) -> list[Any]:
    """The next requests of some steps, from the results of their last ones; None if they begin."""
    with one_thread():
        return next(steps) if results is None else steps.send(results)


async def off_loop(start: Callable[[], Sequence[R]]) -> Sequence[R]:
    """Prepare and submit requests in a thread, because tokenizing and loading take time.

    If the caller is cancelled in the meantime, the requests are cancelled once they are submitted.
    """
    task = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_cancel_all)
        raise


def _cancel_all(task: asyncio.Task[Sequence[R]]) -> None:
    if not task.cancelled() and task.exception() is None:
        for request in task.result():
            request.cancel()
