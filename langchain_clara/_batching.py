"""Runs the conversations of one `batch` as one batch of the engine.

LangChain runs a batch as single calls, each with its own callbacks, cache look-up and trace. The calls keep these and
only wait for each other before the engine: each adds its conversation at the barrier, and once all have come, or have
given up their slot because a cache had the answer, the engine gets them together.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_clara._engine import EngineFields
from langchain_clara._messages import Request

if TYPE_CHECKING:
    from clara_core import Answer

Result = TypeVar("Result")


class BatchBarrier:
    """Collects the calls of one batch. Belongs to one event loop.

    Args:
        model: The model that answers, all calls with the same options.
        expected: Number of calls.
    """

    def __init__(self, model: EngineFields, expected: int) -> None:
        self.model = model
        self._missing = expected
        self._items: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self, request: Request) -> Answer:
        """Add a conversation and wait for its answer; the work stops if no caller waits any more."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._items.append((request, future))
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
            results = await self._answer([request for request, _ in waiting])
        except Exception as exc:  # noqa: BLE001 - raised in the waiting calls
            results = [exc] * len(waiting)
        for (_, future), result in zip(waiting, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _answer(self, requests: list[Request]) -> Sequence[Answer | Exception]:
        """Answer conversations together; an error in one does not affect the others."""
        engine = await self.model.ashared_engine()
        known = iter(await engine.aremember([document.text for _, read, _ in requests for document in read]))
        conversations = [(turns, [next(known) for _ in read]) for turns, read, _ in requests]
        options = requests[0][2]
        try:
            return await engine.achat_batch(conversations, **options)
        except Exception as exc:  # noqa: BLE001 - answering one by one shows whose error it is
            if len(requests) == 1:
                return [exc]
        alone = (engine.achat(turns, memories, **options) for turns, memories in conversations)
        results = await asyncio.gather(*alone, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
        return cast("list[Answer | Exception]", results)


class BatchSlot:
    """The slot of one call at a barrier, which is taken once or given up."""

    def __init__(self, barrier: BatchBarrier) -> None:
        self._barrier: BatchBarrier | None = barrier

    def take(self, model: object) -> BatchBarrier | None:
        """Return the barrier to its model, the first time only."""
        if self._barrier is None or self._barrier.model is not model:
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
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def main() -> Result:
        begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await start()

    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, "clara-batch") as pool:
        outcome = pool.submit(lambda: context.run(asyncio.run, main()))
        try:
            return outcome.result()
        finally:
            if not outcome.done():  # interrupted
                loop, task = begun.result()
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
