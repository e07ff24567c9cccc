"""Streams of answers that are examined after generation; the last piece carries the evidence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from clara_core.engine.evidence_calls import EvidenceCalls, drive
from clara_core.engine.examining import Chat
from clara_core.engine.requests import GenerateRequest, Request
from clara_core.engine.sampling import Answer, Chunk
from clara_core.engine.streams import AnswerStream, stream_async

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clara_core.engine.answer_options import Wanted


class ExaminedStream(AnswerStream):
    """The pieces of one answer; the last one carries the answer with its evidence.

    A text that may still be withheld or replaced comes as one piece once it is final. If the stream is cancelled during
    the examination, the answer has no evidence.

    Args:
        engine: The engine that generates the answer.
        chat: The conversation and its first request.
        wanted: The options of the answer.
    """

    def __init__(self, engine: EvidenceCalls, chat: Chat, wanted: Wanted) -> None:
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
        steps = self._engine._examined([self._chat], [answer], self._wanted)  # noqa: SLF001
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


async def examined_stream(engine: EvidenceCalls, ask: Callable[[], Chat], wanted: Wanted) -> AsyncIterator[Chunk]:
    """Asynchronous version of `ExaminedStream`."""
    made: list[Chat] = []

    def prepare() -> GenerateRequest:
        made.append(ask())
        return made[0].request

    stream = cast("AsyncGenerator[Chunk, None]", stream_async(prepare, engine._submit))  # noqa: SLF001
    async with aclosing(stream) as pieces:
        async for chunk in pieces:
            if chunk.answer is not None:
                answer = chunk.answer
                [examined] = await engine._adrive(lambda: engine._examined(made, [answer], wanted))  # noqa: B023, SLF001
                yield _last(chunk, examined, wanted)
                return
            if not wanted.withholds:
                yield chunk if wanted.logprobs else replace(chunk, logprobs=None)


def _last(chunk: Chunk, answer: Answer, wanted: Wanted) -> Chunk:
    """The last piece; it has the whole text if the stream held the text back."""
    text = answer.text if wanted.withholds else chunk.text
    logprobs = answer.logprobs if wanted.withholds else chunk.logprobs
    return Chunk(text, answer, logprobs if wanted.logprobs else None)
