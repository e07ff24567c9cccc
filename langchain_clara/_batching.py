"""Runs the conversations of one `batch` as one batch of the engine.

LangChain runs a batch as single calls, each with its own callbacks, cache look-up and trace. The calls keep these and
only wait for each other before the engine: each adds its conversation at the barrier, and once all have come, or have
given up their slot because a cache had the answer, the engine gets them together.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchBarrier(Generic[Item, Result]):
    """Collects the calls of one batch. Belongs to one event loop.

    Args:
        expected: Number of calls.
        answer: Answers all items at once; the result of an item that fails is its exception.
    """

    def __init__(self, expected: int, answer: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]]) -> None:
        self._missing = expected
        self._answer = answer
        self._items: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self, item: Item) -> Result:
        """Add an item and wait for its answer; the work stops if no caller waits any more."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._items.append((item, future))
        self.leave()
        try:
            return await future
        finally:
            if self._task is not None and all(waiting.done() for _, waiting in self._items):
                self._task.cancel()

    def leave(self) -> None:
        """Expect one call less."""
        self._missing -= 1
        if self._missing == 0 and self._items:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        waiting = [pair for pair in self._items if not pair[1].done()]
        try:
            results = await self._answer([item for item, _ in waiting])
        except Exception as exc:  # noqa: BLE001 - raised in the waiting calls
            results = [exc] * len(waiting)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class BatchSlot:
    """The slot of one call at a barrier, which is taken once or given up."""

    def __init__(self, owner: object, barrier: BatchBarrier[Any, Any]) -> None:
        self._owner = owner
        self._barrier: BatchBarrier[Any, Any] | None = barrier

    def take(self, owner: object) -> BatchBarrier[Any, Any] | None:
        """Return the barrier to the model that owns the slot, the first time only."""
        if owner is not self._owner:
            return None
        barrier, self._barrier = self._barrier, None
        return barrier

    def give_up(self) -> None:
        """Give up the slot: the answer came from elsewhere, or the call failed."""
        barrier, self._barrier = self._barrier, None
        if barrier is not None:
            barrier.leave()


BATCH_SLOT: contextvars.ContextVar[BatchSlot | None] = contextvars.ContextVar("clara_batch_slot", default=None)
"""The slot of the running call."""


async def in_slot(slot: BatchSlot, call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call that has a slot at a barrier. Must run in its own task, because it changes the context."""
    BATCH_SLOT.set(slot)
    try:
        return await call()
    finally:
        slot.give_up()


def run_apart(start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine in a thread with its own event loop, whether or not this thread has a running loop.

    An interruption while waiting (ctrl-C) cancels it.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []
    ready = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def main() -> None:
        task = asyncio.ensure_future(start())
        loop = asyncio.get_running_loop()
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        ready.set()
        outcome.append(await task)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as exc:  # noqa: BLE001 - raised again in the calling thread
            failure.append(exc)
        finally:
            ready.set()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="clara-batch")
    thread.start()
    try:
        thread.join()
    except BaseException:
        ready.wait()
        for stop in cancel:
            stop()
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
