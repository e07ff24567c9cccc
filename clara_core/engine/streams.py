"""Streams of answers; a caller that stops listening stops the work on the device."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from clara_core.engine.answer_options import Wanted
from clara_core.engine.examining import Chat, examine_all
from clara_core.engine.requests import GenerateRequest, Request
from clara_core.engine.sampling import Answer, Chunk, Pieces
from clara_core.engine.steps import drive, off_loop

if TYPE_CHECKING:
    from clara_core.engine.runtime import EngineInstance


class AnswerStream(Pieces):
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

    def __del__(self) -> None:
        self._request.cancel()


class ExaminedStream(AnswerStream):
    """The pieces of one answer; the last one carries the answer with its evidence.

    A text that may still be withheld or replaced comes as one piece once it is final. If the stream is cancelled during
    the examination, the answer has no evidence.

    Args:
        engine: The engine that generates the answer.
        chat: The conversation and its first request.
        wanted: The options of the answer.
    """

    def __init__(self, engine: EngineInstance, chat: Chat, wanted: Wanted) -> None:
        self._engine, self._chat, self._wanted = engine, chat, wanted
        self._cancelled = False
        self._open: list[Request] = []
        super().__init__(chat.request, engine._submit)  # noqa: SLF001 - a part of the engine

    def __next__(self) -> Chunk:
        while True:
            chunk = super().__next__()
            if chunk.answer is not None:
                return _last(chunk, self._examine(chunk.answer), self._wanted)
            if not self._wanted.withholds:
                return chunk if self._wanted.logprobs else replace(chunk, logprobs=None)

    def cancel(self) -> None:
        """Stop generation or examination; the last piece carries the answer so far."""
        self._cancelled = True
        super().cancel()
        for request in self._open:
            request.cancel()

    def close(self) -> None:
        """Stop generation and examination, and end the stream."""
        self.cancel()
        super().close()

    def _examine(self, answer: Answer) -> Answer:
        steps = examine_all(self._engine, [self._chat], [answer], self._wanted)
        try:
            return drive(steps, self._wait)[0]
        except CancelledError:
            return answer if self._wanted.logprobs else replace(answer, logprobs=None)

    def _wait(self, requests: list[Request]) -> list[Any]:
        self._open = requests
        if self._cancelled:  # before the requests existed
            raise CancelledError
        results = self._engine._wait(requests)  # noqa: SLF001
        if self._cancelled:
            raise CancelledError
        return results


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


async def examined_stream(engine: EngineInstance, ask: Callable[[], Chat], wanted: Wanted) -> AsyncIterator[Chunk]:
    """Asynchronous version of `ExaminedStream`."""
    made: list[Chat] = []

    def prepare() -> GenerateRequest:
        made.append(ask())
        return made[0].request

    stream = cast("AsyncGenerator[Chunk, None]", stream_async(prepare, engine._submit))  # noqa: SLF001
    async with aclosing(stream) as pieces:
        async for chunk in pieces:
            if chunk.answer is not None:
                [examined] = await engine._adrive(examine_all(engine, made, [chunk.answer], wanted))  # noqa: SLF001
                yield _last(chunk, examined, wanted)
                return
            if not wanted.withholds:
                yield chunk if wanted.logprobs else replace(chunk, logprobs=None)


def _last(chunk: Chunk, answer: Answer, wanted: Wanted) -> Chunk:
    """The last piece; it has the whole text if the stream held the text back."""
    text = answer.text if wanted.withholds else chunk.text
    logprobs = answer.logprobs if wanted.withholds else chunk.logprobs
    return Chunk(text, answer, logprobs if wanted.logprobs else None)
