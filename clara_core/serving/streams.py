"""Sends answers as server-sent events, with comments that keep a silent connection open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import StreamingResponse

from clara_core.engine.sampling import Chunk
from clara_core.serving.failures import envelope, refused_of

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState

PING_SECONDS: Final = 15.0
FIRST_SECONDS: Final = 10.0  # maximum wait for the first piece; an error within it has its own HTTP status
_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Event = dict[str, Any] | None
Events = Callable[[AsyncIterator[Chunk]], AsyncIterator[dict[str, Any]]]


class EventStream:
    """One answer that is streamed to a client. The answer is cancelled when the client disconnects.

    Args:
        state: State of the server.
        chunks: Pieces of the answer.
        request_id: Id of the request, for the log.
        ending: Text after the last event of a complete answer.
    """

    def __init__(
        self, state: ServerState, chunks: AsyncGenerator[Chunk, None], *, request_id: str = "", ending: str = ""
    ) -> None:
        self._state = state
        self._chunks = chunks
        self._id = request_id
        self._ending = ending
        self._began = self._last = time.monotonic()

    async def response(self, events: Events) -> StreamingResponse:
        """Create the response. It waits for the first piece, so that an invalid request gets an error status."""
        told = events(self._counted())
        first = asyncio.ensure_future(_next(told))
        try:
            await asyncio.wait({first}, timeout=FIRST_SECONDS)
            if first.done():
                first.result()
        except BaseException:
            await self._stop(first)
            raise
        return StreamingResponse(self._lines(told, first), headers=_HEADERS, media_type="text/event-stream")

    async def _lines(self, told: AsyncIterator[dict[str, Any]], task: asyncio.Future[Event]) -> AsyncIterator[str]:
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=PING_SECONDS)
                if not done:
                    yield ": ping\n\n"
                    continue
                event = task.result()
                if event is None:
                    break
                yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
                task = asyncio.ensure_future(_next(told))
            if self._ending:
                yield self._ending
        except Exception as exc:  # noqa: BLE001 - the client gets it as an event
            refused = refused_of(exc, self._id)
            yield f"data: {json.dumps(envelope(refused.code, refused.message))}\n\n"
        finally:
            await self._stop(task)

    async def _stop(self, task: asyncio.Future[Event]) -> None:
        task.cancel()
        await asyncio.wait({task})  # a generator that still runs cannot be closed
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it
        await self._chunks.aclose()

    async def _counted(self) -> AsyncIterator[Chunk]:
        metrics = self._state.metrics
        first = True
        async for chunk in self._chunks:
            now = time.monotonic()
            (metrics.first_token if first else metrics.between_tokens).observe(now - self._last)
            self._last, first = now, False
            if chunk.answer is not None:
                metrics.answered(chunk.answer)
            yield chunk


async def _next(told: AsyncIterator[dict[str, Any]]) -> Event:
    return await anext(told, None)
