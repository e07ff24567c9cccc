"""Streams of answers from a server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from clara_core.common.errors import ServerError
from clara_core.engine.remote.http import Connection
from clara_core.engine.remote.wire import answer_from_wire, logprobs_from_wire
from clara_core.engine.sampling import Answer, Chunk, Pieces


class RemoteStream(Pieces):
    """The pieces of one answer from a server; the last one carries the whole `Answer`. Closing it stops the work."""

    def __init__(self, connection: Connection, path: str, payload: dict[str, Any]) -> None:
        self._scope = connection.events(path, payload)
        self._events: Iterator[dict[str, Any]] | None = self._scope.__enter__()
        self._text = ""
        self._cancelled = False

    def __next__(self) -> Chunk:
        if self._events is None:
            raise StopIteration
        if self._cancelled:
            self.close()
            return Chunk("", Answer(self._text, "cancelled", 0, 0, 0, 0))
        try:
            chunk = chunk_of(next(self._events))
        except StopIteration:
            self.close()
            raise ServerError("the server ended a stream without an answer; ask again") from None
        except BaseException:
            self.close()
            raise
        self._text += chunk.text
        if chunk.answer is not None:
            for _ in self._events:  # read to the end, so that the connection can be reused
                pass
            self.close()
        return chunk

    def cancel(self) -> None:
        """Stop generation at the next read, which gives the last piece: "cancelled", the text so far, counts of 0."""
        self._cancelled = True

    def close(self) -> None:
        """Stop generation and end the stream."""
        if self._events is not None:
            self._events = None
            self._scope.__exit__(None, None, None)

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
