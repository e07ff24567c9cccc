"""Runs the conversations of one `batch` as one batch of the engine.

LangChain runs a batch as single calls, each with its own callbacks, cache look-up and trace. The calls keep these and
only wait for each other before the engine: once each has handed in its request, or has ended without one because a
cache had the answer, the engine gets all requests together.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from clara_core.model.chat_format import Turn
from langchain_clara._engine import EngineFields
from langchain_clara._messages import ReadDocument

if TYPE_CHECKING:
    from clara_core import Answer

Result = TypeVar("Result")
Request: TypeAlias = tuple[list[Turn], list[ReadDocument], dict[str, Any]]
"""A conversation, its documents, and the engine's options."""


class BatchedCall:
    """One call of a batch. Belongs to one event loop.

    Attributes:
        model: The model that is called.
        request: What the call asks of the engine; None if it ended without asking.
        answer: The answer from the batch; None if the call must ask the engine itself.
    """

    def __init__(self, model: EngineFields) -> None:
        self.model = model
        self.request: asyncio.Future[Request | None] = asyncio.get_running_loop().create_future()
        self.answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    async def run(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Make the call. Must run in its own task, because it changes the context."""
        _CALL.set(self)
        try:
            return await call()
        finally:
            if not self.request.done():
                self.request.set_result(None)


_CALL: contextvars.ContextVar[BatchedCall | None] = contextvars.ContextVar("clara_batched_call", default=None)


async def answer_of_batch(model: EngineFields, request: Request) -> Answer | None:
    """Hand in the request of the running call; None if it has none to hand in, or the batch failed."""
    call = _CALL.get()
    if call is None or call.model is not model or call.request.done():
        return None
    call.request.set_result(request)
    return await call.answer


async def run_in_batches(
    model: EngineFields, calls: Sequence[Callable[[], Awaitable[Result]]], size: int | None, *, return_exceptions: bool
) -> list[Any]:
    """Make calls of a model, all with the same options, in batches of `size`, or as one batch.

    Returns:
        list: The results, in order; with `return_exceptions` errors are among them.
    """
    results: list[Any] = []
    for start in range(0, len(calls), size or len(calls) or 1):
        part = calls[start:][:size]
        batched = [BatchedCall(model) for _ in part]
        tasks = [asyncio.ensure_future(one.run(call)) for one, call in zip(batched, part, strict=True)]
        answering = asyncio.ensure_future(_answer(batched))
        try:
            results += await asyncio.gather(*tasks, return_exceptions=return_exceptions)
        finally:
            for task in (answering, *tasks):
                task.cancel()
    return results


async def _answer(calls: Sequence[BatchedCall]) -> None:
    """Answer the requests of calls together, once each call has handed in one or ended."""
    requests = await asyncio.gather(*(call.request for call in calls))
    asking = [
        (call.answer, request)
        for call, request in zip(calls, requests, strict=True)
        if request is not None and not call.answer.done()
    ]
    answers: Sequence[Answer | None] = [None] * len(asking)
    try:
        if len(asking) > 1:
            with suppress(Exception):  # each call then asks the engine itself, which shows whose error it is
                answers = await _answers(calls[0].model, [request for _, request in asking])
    finally:
        for (future, _), answer in zip(asking, answers, strict=True):
            if not future.done():
                future.set_result(answer)


async def _answers(model: EngineFields, requests: Sequence[Request]) -> list[Answer]:
    engine = await model.ashared_engine()
    known = iter(await engine.aremember([document.text for _, read, _ in requests for document in read]))
    conversations = [(turns, [next(known) for _ in read]) for turns, read, _ in requests]
    return await engine.achat_batch(conversations, **requests[0][2])


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
