"""Answers that arrive in pieces, and futures that are awaited: whoever stops listening stops the work."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from clara_core.engine.requests import EncodeRequest, GenerateRequest, JudgeRequest, Request
from clara_core.engine.sampling import Chunk

R = TypeVar("R", bound=EncodeRequest | GenerateRequest | JudgeRequest)


class AnswerStream(Iterator[Chunk]):
    """The pieces of one answer; the last one carries the whole `Answer`.

    Closing it (or leaving its ``with`` block, or losing the last reference) stops the work on the device.
    """

    def __init__(self, request: GenerateRequest, submit: Callable[[GenerateRequest], None]) -> None:
        self._request = request
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        request.on_chunk = self._chunks.put
        # An error reaches the listener behind the last piece.
        chunks = self._chunks
        request.future.add_done_callback(lambda _future: chunks.put(None))
        self._done = False
        submit(request)

    def __next__(self) -> Chunk:
        if self._done:
            raise StopIteration
        chunk = self._chunks.get()
        if chunk is None:
            self._done = True
            self._request.future.result()
            raise StopIteration
        self._done = chunk.answer is not None
        return chunk

    def cancel(self) -> None:
        """Stop writing; the pieces so far can still be read, and the last one says "cancelled"."""
        self._request.cancel()

    def close(self) -> None:
        """Stop writing and listening."""
        self._done = True
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._request.cancel()


async def stream_async(
    prepare: Callable[[], GenerateRequest], submit: Callable[[GenerateRequest], None]
) -> AsyncIterator[Chunk]:
    """The pieces of one answer on an event loop that is never blocked."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

    def say(chunk: Chunk | None) -> None:
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    def start() -> list[GenerateRequest]:
        request = prepare()
        request.on_chunk = say
        request.future.add_done_callback(lambda _future: None if loop.is_closed() else say(None))
        submit(request)
        return [request]

    [request] = await off_loop(start)
    try:
        while (chunk := await chunks.get()) is not None:
            yield chunk
            if chunk.answer is not None:
                return
        request.future.result()
    finally:
        request.cancel()


async def off_loop(start: Callable[[], Sequence[R]]) -> Sequence[R]:
    """Prepare and submit requests in a thread (tokenizing and loading take time).

    When the caller is cancelled meanwhile, what was submitted is cancelled as soon as it is known.
    """
    task = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_cancel_all)
        raise


async def results(requests: Sequence[Request]) -> list[Any]:
    """Await all futures; if that is cancelled or one fails, the others stop."""
    try:
        return [await asyncio.wrap_future(request.future) for request in requests]
    except BaseException:
        for request in requests:
            request.cancel()
        raise


def _cancel_all(task: asyncio.Task[Sequence[R]]) -> None:
    if not task.cancelled() and task.exception() is None:
        for request in task.result():
            request.cancel()
