"""Answers that are being written: who waits, who has a place in the KV memory, and one token for each of them a turn.

A request waits until there are free pages for its prompt and the beginning of its answer, in the order of arrival. A
row that outgrows its pages takes another; where none is free, the row that came last makes room: it waits at the head
of the queue and later goes on from what it has written. The oldest row never makes room, and nobody is admitted who
could not be finished alone, so every answer ends.

Where a pass over a single row runs out of memory, the KV memory itself is in the way: nobody is admitted any more, and
once the answers that are being written have ended, the row is tried again beside half of the pages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition

import torch
from torch import Tensor

from clara_core.common.errors import ClaraError, ContextOverflow
from clara_core.engine.logprobs import measure
from clara_core.engine.requests import GenerateRequest, Limits, fail, finish, say
from clara_core.engine.threads import DecodeThreads
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import free_bytes, in_halves, is_out_of_memory, release_memory, upload
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.paid_attention import paid_attention
from clara_core.model.sampler import draw

log = logging.getLogger(__name__)

SHARE = 0.8  # of what a GPU has free beside the weights and one batch's numbers between layers


@dataclass(eq=False, slots=True)
class Running:
    """An answer that has a place.

    Attributes:
        request: Whose it is.
        row: Its pages.
        turn: When it was admitted: who came last makes room.
        token: The newest one; None before its prompt has been read.
        spoiled: Its numbers were not finite.
    """

    request: GenerateRequest
    row: KVRow
    turn: int
    token: int | None = None
    spoiled: bool = False


class Answers:
    """The answers of one worker; only its thread calls these methods, but for `submit`.

    Args:
        model: That writes them.
        limits: Sizes of batches.
        lock: Guards `waiting`.
        kv_bytes: Most bytes of keys and values; None: what is free.
    """

    def __init__(self, model: ClaraModel, limits: Limits, lock: Condition, kv_bytes: int | None = None) -> None:
        self.model = model
        self.limits = limits
        self.memory: KVMemory | None = None
        self.waiting: list[GenerateRequest] = []
        self.running: list[Running] = []
        self.preempted = 0
        self._lock = lock
        self._kv_bytes = kv_bytes
        self._threads = DecodeThreads(model)
        self._turn = 0
        self._together = limits.rows  # rows of a step; fewer after it ran out of memory
        self._beside = False  # a batch of the corpus is on the device
        self._fits = True
        self._draining = False  # nobody is admitted until the KV memory has been given back
        self._most_pages: int | None = None  # what left room for the passes, after some ran out of memory

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request (under the lock)."""
        self.waiting.append(request)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running)

    def turn(self, *, between_layers: bool = False) -> bool:
        """Admit and read waiting prompts, then one token for every answer.

        Args:
            between_layers: A batch of the corpus is on the device: what does not fit beside it waits for its end.

        Returns:
            bool: Whether all did fit.
        """
        self._beside, self._fits = between_layers, True
        self._drop_cancelled()
        if not self._draining:
            self._admit()
        while prompts := self._unread():
            self._read(prompts)
        if self.running:
            self._make_room()
            self._step()
        self._give_back()
        return self._fits

    @property
    def draining(self) -> bool:
        """Whether the KV memory will be given back as soon as the answers that are being written have ended."""
        return self._draining

    def drain(self) -> bool:
        """Give the KV memory back, now or when nobody uses it any more; returns whether there is any."""
        if self.memory is None:
            return False
        self._draining = True
        self._give_back()
        return True

    def _give_back(self) -> None:
        if self._draining and not self.running:
            self.memory, self._draining = None, False
            release_memory()

    def take_all(self) -> list[GenerateRequest]:
        """Everyone who waits or writes, forgotten here (under the lock)."""
        requests = [*self.waiting, *(one.request for one in self.running)]
        self.waiting, self.running, self.memory = [], [], None
        return requests

    # --- places ------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        if self.memory is None and self.waiting and not self._allocated():
            return
        while len(self.running) < self.limits.rows and (request := self._next()) is not None:
            row = self._place(request)
            if row is None:
                return
            self._turn += 1
            with self._lock:
                self.running.append(Running(request, row, self._turn))
                self.waiting.remove(request)

    def _next(self) -> GenerateRequest | None:
        """Who waits longest, without those that nobody waits for or that can never be served."""
        while True:
            with self._lock:
                request = self.waiting[0] if self.waiting else None
            if request is None:
                return None
            if request.cancelled or request.future.done():
                refusal = None
            elif self.memory is not None and len(request.ids) + request.writer.limit > self.memory.columns:
                if self._all_pages_again():  # it may fit all the same where others did not
                    return None
                refusal = _too_large(request, self.memory)
            else:
                return request
            with self._lock:
                self.waiting.remove(request)
            if refusal is None:
                finish(request)
            else:
                fail(request.future, refusal)

    def _place(self, request: GenerateRequest) -> KVRow | None:
        """Pages for a request; None: it waits."""
        written = len(request.ids) + len(request.writer.ids)
        return self._memory.open(min(len(request.ids) + request.writer.limit, written + PAGE))

    def _allocated(self) -> bool:
        """Make the KV memory; where that fails, whoever waits longest gets the error."""
        try:
            self.memory = self._allocate()
        except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
            if self._beside and is_out_of_memory(exc):
                self._fits = False
            else:
                with self._lock:
                    request = self.waiting.pop(0)
                fail(request.future, exc)
            return False
        return True

    def _allocate(self) -> KVMemory:
        """As large as it is to be, or as large as can be had.

        Raises:
            Exception: Not even one page fits.
        """
        shape = self.model.kv_shape()
        wanted = self._kv_bytes
        if wanted is None:
            free = free_bytes(shape.device)
            batch = self.limits.tokens * self.model.activation_bytes()
            wanted = int(SHARE * max(free - batch, free // 2))
        # No more than all rows could fill.
        pages = min(max(wanted // shape.page_bytes, 1), self.limits.rows * -(-self.model.context // PAGE))
        pages = min(pages, self._most_pages or pages)
        while True:
            try:
                return self.model.kv_memory(pages)
            except Exception as exc:
                if not is_out_of_memory(exc) or pages == 1:
                    raise
            log.warning("out of memory with %d bytes for keys and values: going on with half", pages * shape.page_bytes)
            release_memory()
            pages //= 2

    def _make_room(self) -> None:
        """A page for every row that has none for its next token."""
        for one in sorted(self.running, key=lambda running: running.turn):
            while one in self.running and one.row.length == one.row.room and not self._memory.grow(one.row):
                self._preempt(max(self.running, key=lambda running: running.turn))

    def _preempt(self, one: Running) -> None:
        log.debug("no free page: an answer of %d tokens waits", len(one.request.writer.ids))
        self.preempted += 1
        self._memory.close(one.row)
        with self._lock:
            self.running.remove(one)
            self.waiting.insert(0, one.request)

    @property
    def _memory(self) -> KVMemory:
        if self.memory is None:
            msg = "answers that are being written have a KV memory"
            raise RuntimeError(msg)
        return self.memory

    # --- passes ------------------------------------------------------------------------------------------

    def _unread(self) -> list[Running]:
        """Prompts for one pass."""
        batch: list[Running] = []
        longest = total = 0
        for one in self.running:
            if one.token is not None or (batch and one.request.role is not batch[0].request.role):
                continue
            length = len(one.request.ids) + len(one.request.writer.ids)
            longest, total = max(longest, length), total + length
            if batch and (total if self.model.packs else longest * (len(batch) + 1)) > self.limits.tokens:
                break
            batch.append(one)
        return batch

    def _read(self, prompts: list[Running]) -> None:
        returned: list[Running] = []

        def failed(one: Running, exc: Exception) -> None:
            if self._waits(one, exc):
                returned.append(one)
            else:
                self._leave(one, exc)

        in_halves(prompts, self._prefill, failed, self.model.device, "prompts")
        for one in reversed(returned):
            self._preempt(one)
        # By their pages, so that the pages of a step come in the order of its rows.
        self.running.sort(key=lambda one: one.row.pages[0])

    def _prefill(self, part: Sequence[Running]) -> None:
        requests = [one.request for one in part]
        # An answer that had to make room comes back with what it has written so far.
        sequences = [request.ids + request.writer.ids for request in requests]
        filled = [request.memories for request in requests if len(request.memories)]
        memories = torch.cat(filled or [torch.zeros(0, self.model.hidden)])  # [slots, hidden]
        cache = self._cache(part)
        slots = [request.slots for request in requests]
        logits = self.model.prefill(sequences, upload(memories, self.model.device), slots, cache)
        self._take(part, logits, cache)

    def _cache(self, part: Sequence[Running]) -> KVCache:
        queries = self.model.queries() if any(one.request.watched for one in part) else None
        return KVCache(self._memory, [one.row for one in part], part[0].request.role, queries)

    def _waits(self, one: Running, exc: Exception) -> bool:
        """Whether a row that failed alone is tried again, with more memory than it had."""
        if not is_out_of_memory(exc):
            return False
        if self._beside:
            self._fits = False
            return True
        if self._draining:
            return True
        half = self._memory.pages // 2
        if half * PAGE < len(one.request.ids) + one.request.writer.limit:
            self._all_pages_again()  # the KV memory was not in the way
            return False
        log.warning("out of memory with a single row: going on with %d pages for keys and values", half)
        self._most_pages = half
        self.drain()
        return True

    def _all_pages_again(self) -> bool:
        """Undo what ran out of memory has taken from the KV memory; returns whether there was anything."""
        if self._most_pages is None:
            return False
        self._most_pages = None
        return self.drain()

    def _step(self) -> None:
        rows, most, tried, largest = list(self.running), self._together, 0, 0
        for role in dict.fromkeys(one.request.role for one in rows):
            alike = [one for one in rows if one.request.role is role]
            for start in range(0, len(alike), most):
                part = alike[start : start + most]
                tried = max(tried, len(part))
                largest = max(largest, in_halves(part, self._advance, self._step_failed, self.model.device, "answers"))
        if 0 < largest < tried:
            self._together = largest
        if not self.running:
            self._together = self.limits.rows  # what did not fit together may fit another time

    def _advance(self, part: Sequence[Running]) -> None:
        cache = self._cache(part)
        tokens = [one.token for one in part if one.token is not None]
        with self._threads.step(len(tokens)):
            logits = self.model.step(tokens, cache)
        self._take(part, logits, cache)

    def _step_failed(self, one: Running, exc: Exception) -> None:
        if not self._waits(one, exc):
            self._leave(one, exc)
        elif not self._beside:
            self._preempt(one)
        # Else it keeps its place, and its turn comes again.

    # --- tokens ------------------------------------------------------------------------------------------

    def _take(self, part: Sequence[Running], logits: Tensor, cache: KVCache) -> None:
        """Give rows their next token, ``logits [rows, vocab]``, and let finished ones go."""
        best = logits.max(-1)  # NaN counts as the largest, so that it shows
        tokens = _drawn(part, logits, best.indices)
        numbers = torch.stack([tokens, best.values.isfinite().long()], dim=1)  # one wait for both
        measured = measure(logits, [one.request.writer.log for one in part], tokens)
        chosen = numbers.tolist()
        queries = None if cache.queries is None else cache.queries.rows()  # [rows, layers, heads, dim]
        cache.commit()  # nothing behind this computes on the device: what fails now is a fault of a single row
        for row, (one, (token, finite)) in enumerate(zip(part, chosen, strict=True)):
            writer = one.request.writer
            try:
                if not finite:
                    one.spoiled = True
                    raise not_finite("logits", self.model.dtype)  # noqa: TRY301 - like any other fault of this row
                one.token = token
                if row in measured:
                    writer.record(token, measured[row])
                if queries is not None and one.request.watched:
                    one.request.queries.append(queries[row])
                say(one.request, writer.feed(token))
            except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
                self._leave(one, exc)
            else:
                if writer.finish_reason is not None:
                    self._leave(one)

    def _drop_cancelled(self) -> None:
        for one in [one for one in self.running if one.request.cancelled or one.request.future.done()]:
            self._leave(one)

    def _show_attention(self, one: Running) -> Exception | None:
        """What the tokens of a finished answer paid attention to, while its keys are there; returns what went wrong."""
        request, said = one.request, len(one.request.writer.ids)
        queries, request.queries = request.queries[:said], []
        if request.writer.finish_reason is None or not queries:
            return None
        try:
            request.paid = paid_attention(
                self._memory, one.row, torch.stack(queries), request.watched, len(request.ids)
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
            return exc
        return None

    def _leave(self, one: Running, exc: Exception | None = None) -> None:
        """An answer ends: whoever waits hears of it before anything else can go wrong."""
        self.running.remove(one)
        if exc is None and one.request.watched:
            exc = self._show_attention(one)
        if exc is None:
            finish(one.request)
        else:
            fail(one.request.future, exc)
        self._memory.close(one.row, wipe=one.spoiled)


def _drawn(part: Sequence[Running], logits: Tensor, best: Tensor) -> Tensor:
    """The next token of each row, ``[rows]``: the best one, or a drawn one where that is asked for."""
    draws = [(row, one) for row, running in enumerate(part) if (one := running.request.writer.draw()) is not None]
    if not draws:
        return best
    rows = upload([row for row, _ in draws], logits.device)
    return best.index_copy(0, rows, draw(logits.index_select(0, rows), [one for _, one in draws]))


def not_finite(what: str, dtype: torch.dtype) -> ClaraError:
    """The error of numbers that are none."""
    return ClaraError(
        f"the model gave {what} that are not finite in {dtype}: damaged weights, or numbers too large for the type; "
        "try dtype='bfloat16' or 'float32'"
    )


def _too_large(request: GenerateRequest, memory: KVMemory) -> ContextOverflow:
    prompt, limit = len(request.ids), request.writer.limit
    return ContextOverflow(
        f"the prompt of {prompt} positions and an answer of up to {limit} tokens take {prompt + limit} positions, but "
        f"the KV memory holds {memory.columns} ({memory.total_bytes:,} bytes); lower max_tokens, give fewer documents, "
        "or raise kv_cache_bytes"
    )
