"""Streams of answers from a server."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from clara_core.common.errors import ServerError, ServerUnreachable
from clara_core.engine.remote.http import Connection
from clara_core.engine.remote.wire import answer_from_wire, logprobs_from_wire
from clara_core.engine.sampling import Answer, Chunk, Pieces


class RemoteStream(Pieces):
    """The pieces of one answer from a server; the last one carries the whole `Answer`. Closing it stops the work."""

    def __init__(self, connection: Connection, path: str, payload: dict[str, Any]) -> None:
        self._text = ""
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._scope = connection.events(path, payload)
        self._events: Iterator[dict[str, Any]] | None
        self._events, self._hang_up = self._scope.__enter__()
        self._running = True  # whether the connection is still used by this stream alone

    def __next__(self) -> Chunk:
        if self._events is None:
            raise StopIteration
        if self._cancelled.is_set():
            return self._cancelled_piece()
        try:
            chunk = chunk_of(next(self._events))
        except BaseException as exc:
            if self._cancelled.is_set() and isinstance(exc, Exception):
                return self._cancelled_piece()
            self.close()
            if isinstance(exc, StopIteration):
                raise ServerError("the server ended a stream without an answer; ask again") from None
            raise
        self._text += chunk.text
        if chunk.answer is not None:
            self._end()
            with suppress(ServerUnreachable):  # read to the end, so that the connection can be reused
                for _ in self._events:
                    pass
            self.close()
        return chunk

    def cancel(self) -> None:
        """Close the connection now, which stops generation, also while another thread waits for the next piece.

        The next read gives the last piece: "cancelled", the text so far, counts of 0.
        """
        with self._lock:
            if self._running:
                self._cancelled.set()
                self._hang_up()

    def close(self) -> None:
        """Stop generation and end the stream."""
        self._end()
        if self._events is not None:
            self._events = None
            self._scope.__exit__(None, None, None)

    def _end(self) -> None:
        """From now on `cancel` does nothing: another request may use the connection next."""
        with self._lock:
            self._running = False

    def _cancelled_piece(self) -> Chunk:
        self.close()
        return Chunk("", Answer(self._text, "cancelled", 0, 0, 0, 0))

    def __del__(self) -> None:
        if getattr(self, "_events", None) is not None:
            self.close()


def chunk_of(event: dict[str, Any]) -> Chunk:
    """The piece of an answer in an event of a stream."""
    answer = event.get("answer")
    chunk = Chunk(
        str(event.get("text", "")),
        None if answer is None else answer_from_wire(answer),
        logprobs_from_wire(event.get("logprobs")),
    )
    if chunk.answer is not None:
        warn(chunk.answer)
    return chunk


def warn(answer: Answer) -> None:
    """Warn of documents that were shortened, as a local engine does."""
    if answer.windows_left_out:
        warnings.warn(
            f"the documents do not fit the context: {answer.windows_left_out} windows were not read; split long "
            "documents to choose yourself",
            stacklevel=4,
        )
