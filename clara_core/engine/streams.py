"""Streams of answers; a caller that stops listening stops the work on the device."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clara_core.engine.answer_options import Wanted
from clara_core.engine.examining import examine_all, without_unasked
from clara_core.engine.inputs import Chat
from clara_core.engine.requests import GenerateRequest, Request
from clara_core.engine.sampling import Answer, Chunk, Pieces
from clara_core.engine.steps import drive, off_loop

if TYPE_CHECKING:
    from clara_core.engine.runtime import EngineInstance


class AnswerStream(Pieces):
    """The pieces of one answer as they are generated; the last one carries the whole `Answer`, with its evidence.

    Closing it (or leaving its ``with`` block, or losing the last reference) stops the work on the device. A text that
    may still be withheld or replaced comes as one piece once it is final. If the stream is cancelled while the answer
    is examined, the answer has no evidence.
    """

    def __init__(self, engine: EngineInstance, chat: Chat, wanted: Wanted) -> None:
        self._engine, self._chat, self._wanted = engine, chat, wanted
        self._cancelled = threading.Event()
        self._done = False
        self._open: list[Request] = [chat.request]
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        _listen(chat.request, self._chunks.put)
        engine._submit(chat.request)  # noqa: SLF001 - a part of the engine

    def __next__(self) -> Chunk:
        while not self._done:
            chunk = self._chunks.get()
            if chunk is None:
                self._done = True
                self._chat.request.future.result()
            elif chunk.answer is not None:
                self._done = True
                return _last(chunk, self._examined(chunk.answer), self._wanted)
            elif not self._wanted.withholds:
                return _shown(chunk, self._wanted)
        raise StopIteration

    def cancel(self) -> None:
        """Stop generation or examination; pieces so far can still be read, and the last one carries the answer so far.

        Its finish reason is "cancelled" if it was still being generated.
        """
        self._cancelled.set()
        for request in self._open:
            request.cancel()

    def close(self) -> None:
        """Stop generation and examination, and end the stream."""
        self._done = True
        self.cancel()

    def __del__(self) -> None:
        self._chat.request.cancel()

    def _examined(self, answer: Answer) -> Answer:
        if not self._wanted.afterwards:
            return answer
        try:
            return drive(examine_all(self._engine, [self._chat], [answer], self._wanted), self._wait)[0]
        except CancelledError:
            return without_unasked(answer, self._wanted)

    def _wait(self, requests: list[Request]) -> list[Any]:
        self._open = requests
        if self._cancelled.is_set():  # before the requests existed
            raise CancelledError
        results = self._engine._wait(requests)  # noqa: SLF001
        if self._cancelled.is_set():
            raise CancelledError
        return results


async def stream_async(engine: EngineInstance, ask: Callable[[], Chat], wanted: Wanted) -> AsyncIterator[Chunk]:
    """Asynchronous version of `AnswerStream`; `ask` makes the request in a thread."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
    chats: list[Chat] = []

    def deliver(chunk: Chunk | None) -> None:
        if chunk is not None or not loop.is_closed():
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    def start() -> list[GenerateRequest]:
        chats.append(ask())
        request = chats[0].request
        _listen(request, deliver)
        engine._submit(request)  # noqa: SLF001
        return [request]

    [request] = await off_loop(start)
    try:
        while (chunk := await chunks.get()) is not None:
            if chunk.answer is not None:
                answers = [chunk.answer]
                if wanted.afterwards:
                    answers = await engine._adrive(examine_all(engine, chats, answers, wanted))  # noqa: SLF001
                yield _last(chunk, answers[0], wanted)
                return
            if not wanted.withholds:
                yield _shown(chunk, wanted)
        request.future.result()
    finally:
        request.cancel()


def _listen(request: GenerateRequest, deliver: Callable[[Chunk | None], None]) -> None:
    """Deliver the pieces of a request, and None at its end, so that an error of the future reaches the reader."""
    request.on_chunk = deliver
    request.future.add_done_callback(lambda _future: deliver(None))


def _shown(chunk: Chunk, wanted: Wanted) -> Chunk:
    """A piece without log-probabilities that the caller did not ask for."""
    return chunk if wanted.logprobs or chunk.logprobs is None else replace(chunk, logprobs=None)


def _last(chunk: Chunk, answer: Answer, wanted: Wanted) -> Chunk:
    """The last piece; it has the whole text if the stream held the text back."""
    text = answer.text if wanted.withholds else chunk.text
    logprobs = answer.logprobs if wanted.withholds else chunk.logprobs
    return Chunk(text, answer, logprobs if wanted.logprobs else None)
