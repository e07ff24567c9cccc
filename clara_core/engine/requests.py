"""What the worker is asked for, and how requests are cut into batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from clara_core.checkpoint.config import Role
from clara_core.engine.sampling import Answer, Chunk, Writer

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much goes into one forward pass.

    Attributes:
        tokens: Positions, padding counted, of one encoding or prefill batch.
        rows: Answers that are written at the same time.
    """

    tokens: int
    rows: int

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        """What keeps this kind of device busy without making others wait."""
        return cls(tokens=16_384, rows=128) if device.type == "cuda" else cls(tokens=512, rows=16)


@dataclass(eq=False, slots=True)
class EncodeRequest:
    """Sequences to turn into memory tokens; the future gives ``[rows, n_mem, hidden]`` on the processor."""

    sequences: Sequence[Sequence[int]]
    role: Role
    urgent: bool
    future: Future[Tensor] = field(default_factory=Future)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def cancel(self) -> None:
        """Nobody waits any more: what has not been computed will not be."""
        self.future.cancel()


@dataclass(eq=False, slots=True)
class GenerateRequest:
    """A prompt to be answered.

    Attributes:
        ids: Token ids of the prompt.
        slots: Which of them are memory slots.
        memories: ``[n_slots, hidden]``.
        source_tokens: For the usage of the answer.
        writer: Text and end of the answer.
        on_chunk: Called in the worker's thread with each piece of text.
        future: Gives the answer.
        cancelled: Set by whoever no longer waits; the answer so far is then the answer.
        windows_left_out: Windows of long documents that the prompt has no room for.
    """

    ids: list[int]
    slots: list[bool]
    memories: Tensor
    source_tokens: int
    writer: Writer
    on_chunk: Callable[[Chunk], None] | None = None
    future: Future[Answer] = field(default_factory=Future)
    cancelled: bool = False
    windows_left_out: int = 0

    def cancel(self) -> None:
        """Nobody waits any more: the work stops before its next step."""
        self.cancelled = True

    def answer(self) -> Answer:
        """The finished answer."""
        memory_tokens = sum(self.slots)
        return Answer(
            text=self.writer.text,
            finish_reason=self.writer.finish_reason or "cancelled",
            prompt_tokens=len(self.ids) - memory_tokens,
            memory_tokens=memory_tokens,
            source_tokens=self.source_tokens,
            completion_tokens=len(self.writer.ids),
            windows_left_out=self.windows_left_out,
        )


Request: TypeAlias = EncodeRequest | GenerateRequest


@dataclass(frozen=True, eq=False, slots=True)
class SequenceRow:
    """One sequence of an encode request: batches are made of these, whatever request they belong to."""

    request: EncodeRequest
    index: int

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        return self.request.sequences[self.index]

    def deliver(self, tokens: Tensor) -> None:
        """Hand in the memory tokens ``[n_mem, hidden]``; the request's last row completes its future."""
        rows = self.request.rows
        rows[self.index] = tokens
        if len(rows) == len(self.request.sequences):
            settle(self.request.future, torch.stack([rows[index] for index in range(len(rows))]))


def fill_batch(rows: Sequence[SequenceRow], budget: int, *, packed: bool = False) -> list[SequenceRow]:
    """As many rows as keep the positions of a pass within the budget, the first one always among them.

    Args:
        rows: In the order of arrival.
        budget: Positions.
        packed: Nothing is padded: rows are taken in their order. Else the first row and its neighbours by length, such
            that ``rows * longest`` is within the budget.
    """
    if packed:
        ends = accumulate(len(row.ids) for row in rows)
        return list(rows[: max(1, sum(end <= budget for end in ends))])
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    lengths = [len(rows[index].ids) for index in order]
    low = high = order.index(0)
    while True:
        below = lengths[high] * (high - low + 2) if low > 0 else None
        above = lengths[high + 1] * (high - low + 2) if high + 1 < len(rows) else None
        can_below = below is not None and below <= budget
        can_above = above is not None and above <= budget
        if can_above and (not can_below or lengths[high + 1] - lengths[high] <= lengths[high] - lengths[low - 1]):
            high += 1
        elif can_below:
            low -= 1
        else:
            return [rows[index] for index in order[low : high + 1]]


def say(request: GenerateRequest, text: str, answer: Answer | None = None) -> None:
    """Tell the listener of a stream, if there is one and something to tell."""
    if request.on_chunk is None or (not text and answer is None):
        return
    try:
        request.on_chunk(Chunk(text, answer))
    except Exception:  # the listener is gone (a closed event loop): nobody waits any more
        log.debug("a listener of a streamed answer failed", exc_info=True)
        request.cancel()


def finish(request: GenerateRequest) -> None:
    """Hand out the answer as far as it got, unless it failed or nobody waits any more."""
    if request.future.done():
        return
    if request.writer.finish_reason is None:
        say(request, request.writer.finish("cancelled"))
    answer = request.answer()
    say(request, "", answer)
    settle(request.future, answer)


def settle(future: Future[T], result: T) -> None:
    """Give a result, unless nobody waits for it any more."""
    with suppress(InvalidStateError):  # cancelled in the meantime
        future.set_result(result)


def fail(future: Future[Tensor] | Future[Answer], exc: BaseException) -> None:
    """Give an error, unless nobody waits any more."""
    with suppress(InvalidStateError):
        future.set_exception(exc)
