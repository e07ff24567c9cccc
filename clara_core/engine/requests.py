"""Requests to the worker, and how they are cut into batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.engine.sampling import Answer, Chunk, SequenceState
from clara_core.model.checkpoint.config import Role
from clara_core.model.forked import ForkedPrompt, Span
from clara_core.model.kv_memory import KVHead, KVMemory

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of forward passes."""

    tokens: int  # positions, including padding, of an encoding or prefill batch; a longer prompt is read in such pieces
    rows: int  # most answers that run at the same time

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        """Sizes that use the device well and keep a pass short, because other requests wait until it ends."""
        return cls(tokens=4_096, rows=128) if device.type == "cuda" else cls(tokens=512, rows=16)


@dataclass(eq=False, slots=True)
class EncodeRequest:
    """Sequences to encode; `future` gives their memory tokens ``[rows, n_mem, hidden]`` on the CPU."""

    sequences: Sequence[Sequence[int]]
    role: Role
    urgent: bool
    future: Future[Tensor] = field(default_factory=Future)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def cancel(self) -> None:
        """Cancel the rows that have not been computed."""
        self.future.cancel()


@dataclass(eq=False, slots=True)
class GenerateRequest:
    """A prompt to be answered."""

    ids: list[int]  # token ids of the prompt
    slots: list[bool]  # which of them are memory slots
    memories: Tensor  # ``[n_slots, hidden]``
    source_tokens: int  # text tokens of the documents, for the usage of the answer
    sequence: SequenceState  # state of the answer: options, tokens, text
    on_chunk: Callable[[Chunk], None] | None = None  # called in the worker's thread with each piece of the answer
    future: Future[Answer] = field(default_factory=Future)  # gives the answer
    cancelled: bool = False  # set to stop the work; the answer is then the text so far
    windows_left_out: int = 0  # number of windows of long documents that were left out of the prompt
    documents: Sequence[Memory] = ()  # the documents whose memories fill the slots, in order
    role: Role | None = Role.GENERATOR  # role whose adapter is used; None: the base decoder without adapters
    # positions of the prompt whose keys and values are kept for a pass that judges the finished answer
    judged_head: int = 0
    kept: KVHead | None = None  # these, as long as the KV cache has them
    # spans of the windows in the prompt, if the attention to them is recorded; otherwise empty
    watched: Sequence[Span] = ()
    # attention queries ``[layers, heads, dim]`` of each generated token, if `watched`
    queries: list[Tensor] = field(default_factory=list)
    # ``[tokens, windows]``: share of the attention of each token of the finished answer, if `watched`
    paid: Tensor | None = None

    def cancel(self) -> None:
        """Stop the work before its next step."""
        self.cancelled = True

    def answer(self) -> Answer:
        """The finished answer."""
        memory_tokens = sum(self.slots)
        return Answer(
            text=self.sequence.text,
            finish_reason=self.sequence.finish_reason or "cancelled",
            prompt_tokens=len(self.ids) - memory_tokens,
            memory_tokens=memory_tokens,
            source_tokens=self.source_tokens,
            completion_tokens=len(self.sequence.ids),
            windows_left_out=self.windows_left_out,
            logprobs=None if self.sequence.log is None else tuple(self.sequence.log.entries),
        )


@dataclass(eq=False, slots=True)
class JudgeRequest:
    """The log-probabilities of a continuation of a prompt, once for each set of hidden windows."""

    ids: list[int]  # the prompt
    slots: list[bool]  # which of its positions are memory slots
    memories: Tensor  # ``[n_slots, hidden]``
    windows: Sequence[Span]  # span of each window in the prompt: its slots and the separator after them
    continuation: list[int]  # token ids of the continuation; at least one
    # for each row the indexes of the windows that positions after the last window do not see
    hidden: Sequence[frozenset[int]]
    kept: KVHead | None = None  # the head, if the prompt has just been answered
    positions: int = 0  # number of positions that were computed for it
    # gives the log-probabilities ``[rows, continuation]``, float32 on the CPU
    future: Future[Tensor] = field(default_factory=Future)
    rows: dict[int, Tensor] = field(default_factory=dict)  # the rows that have been computed

    def __post_init__(self) -> None:
        if not self.continuation or not self.hidden:
            tokens, rows = len(self.continuation), len(self.hidden)
            raise ValueError(f"a judge request needs tokens and rows, got {tokens} tokens and {rows} rows")
        missing = frozenset().union(*self.hidden) - set(range(len(self.windows)))
        if missing:
            raise ValueError(f"windows {sorted(missing)} cannot be hidden: the prompt has {len(self.windows)}")

    @property
    def head(self) -> int:
        """Positions up to the end of the last window, fewer than the prompt has."""
        return head_of(self.ids, self.windows)

    def cancel(self) -> None:
        """Cancel the rows that have not been computed."""
        self.future.cancel()

    def forked(self, rows: Iterable[int], memory: KVMemory | None = None) -> ForkedPrompt:
        """Some of the rows as one prompt; the KV memory may keep its head."""
        read = self.continuation[:-1]  # the last token predicts nothing that is asked for
        spans = [sorted(self.windows[window] for window in self.hidden[row]) for row in rows]
        slots = self.slots + [False] * len(read)
        kept = None if memory is None or self.kept is None else memory.read_head(self.kept)
        return ForkedPrompt(self.ids + read, slots, self.head, self.continuation, spans, kept)


def head_of(ids: Sequence[int], windows: Sequence[Span]) -> int:
    """Positions of a prompt up to the end of its last window, fewer than it has."""
    return min(windows[-1][1], len(ids) - 1) if windows else 0


Request: TypeAlias = EncodeRequest | GenerateRequest | JudgeRequest


@dataclass(frozen=True, eq=False, slots=True)
class SequenceRow:
    """One sequence of an encode request; a batch may have rows of several requests."""

    request: EncodeRequest
    index: int

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        return self.request.sequences[self.index]

    def deliver(self, tokens: Tensor) -> None:
        """Store the memory tokens ``[n_mem, hidden]``; the last row of the request resolves its future."""
        rows = self.request.rows
        rows[self.index] = tokens
        if len(rows) == len(self.request.sequences):
            resolve(self.request.future, torch.stack([rows[index] for index in range(len(rows))]))


def fill_batch(rows: Sequence[SequenceRow], budget: int, *, packed: bool = False) -> list[SequenceRow]:
    """Choose as many rows as keep the positions of a pass within the budget; the first row is always among them.

    Args:
        rows: Rows in the order of arrival.
        budget: Positions of a pass, including padding.
        packed: Whether rows are packed without padding. If so, rows are taken in order; otherwise the first row and its
            neighbours by length, such that ``rows * longest`` is within the budget.
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


@dataclass(frozen=True, eq=False, slots=True)
class JudgeRow:
    """One row of a judge request; a batch may have rows of several requests."""

    request: JudgeRequest
    index: int

    @property
    def positions(self) -> int:
        """Positions of the row after the shared head."""
        return len(self.request.ids) - self.request.head + len(self.request.continuation) - 1


def take_rows(rows: Sequence[JudgeRow], budget: int) -> list[JudgeRow]:
    """Choose the rows of one pass, in the order of arrival: the first one and those that fit the budget with it.

    Args:
        rows: At least one row.
        budget: Positions of a pass. It is raised to twice the head of a long prompt, so that a pass does not consist
            mostly of the head, which each pass computes again.
    """
    first = rows[0].request
    budget = max(budget, 2 * first.head + rows[0].positions)
    taken: list[JudgeRow] = []
    total, before = 0, None
    for row in rows:
        total += row.positions + (row.request.head if row.request is not before else 0)
        if taken and total > budget:
            break
        taken.append(row)
        before = row.request
    return taken


def emit(request: GenerateRequest, text: str, answer: Answer | None = None) -> None:
    """Send a piece to the listener of a stream, if there is a listener and the piece is not empty."""
    if request.on_chunk is None or (not text and answer is None):
        return
    try:
        logged = request.sequence.log
        request.on_chunk(Chunk(text, answer, None if logged is None else logged.take_new()))
    except Exception:  # the listener is gone, for example its event loop is closed
        log.debug("a listener of a streamed answer failed", exc_info=True)
        request.cancel()


def finish(request: GenerateRequest) -> None:
    """Resolve the future with the answer so far, unless it is done already."""
    if request.future.done():
        return
    if request.sequence.finish_reason is None:
        emit(request, request.sequence.finish("cancelled"))
    answer = request.answer()
    emit(request, "", answer)
    resolve(request.future, answer)


def resolve(future: Future[T], result: T) -> None:
    """Set the result of a future, unless it was cancelled."""
    with suppress(InvalidStateError):
        future.set_result(result)


def fail(future: Future[Tensor] | Future[Answer], exc: BaseException) -> None:
    """Set the error of a future, unless it was cancelled."""
    with suppress(InvalidStateError):
        future.set_exception(exc)
