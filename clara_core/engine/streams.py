"""Streams of answers, and awaiting of futures; a caller that stops listening stops the work on the device."""

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
    """The pieces of one answer as they are generated; the last one carries the whole `Answer`.

    Closing it (or leaving its ``with`` block, or losing the last reference) stops the work on the device.
    """

    def __init__(self, request: GenerateRequest, submit: Callable[[GenerateRequest], None]) -> None:
        self._request = request
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        request.on_chunk = self._chunks.put
        # None after the last piece, so that an error of the future reaches the reader.
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
        """Stop generation; pieces so far can still be read, and the last one has the finish reason "cancelled"."""
        self._request.cancel()

    def close(self) -> None:
        """Stop generation and end the stream."""
        self._done = True
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._request.cancel()


async def stream_async(
    prepare: Callable[[], GenerateRequest], submit: Callable[[GenerateRequest], None]
) -> AsyncIterator[Chunk]:
    """Asynchronous version of `AnswerStream`: `prepare` makes the request in a thread, `submit` queues it."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

    def deliver(chunk: Chunk | None) -> None:
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    def start() -> list[GenerateRequest]:
        request = prepare()
        request.on_chunk = deliver
        request.future.add_done_callback(lambda _future: None if loop.is_closed() else deliver(None))
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
    """Prepare and submit requests in a thread, because tokenizing and loading take time.

    If the caller is cancelled in the meantime, the requests are cancelled once they are submitted.
    """
    task = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_cancel_all)
        raise


async def results(requests: Sequence[Request]) -> list[Any]:
    """Await the results of all requests; if that is cancelled or one fails, the others are cancelled."""
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
