"""Continuous batching of answers: admission, prefill, and one decode step of all running answers a turn.

A request waits until there are free pages for its prompt and the beginning of its answer, in the order of arrival. A
row that outgrows its pages takes another one. If none is free, the row that was admitted last is preempted: it waits at
the head of the queue and later continues from the tokens that it has. The oldest row is never preempted, and a request
that could not finish alone is refused, so every answer ends.

If a pass over a single row runs out of memory, the KV cache is too large: no request is admitted until the running
answers have ended, and then the row is tried again with half of the pages.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition

import torch
from torch import Tensor

from clara_core.engine.capacity import allocate_cache, too_large
from clara_core.engine.requests import GenerateRequest, Limits, emit, fail, finish
from clara_core.engine.running import Chosen, Running, choose_prompts, not_finite, read_prompts
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import attempt, in_halves, is_out_of_memory, release_memory, upload
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.processor import StepThreads

log = logging.getLogger(__name__)


class Answers:
    """The answers of one worker; only its thread calls these methods.

    Args:
        model: The model.
        limits: Sizes of batches.
        lock: Guards `waiting`, to which other threads append.
        kv_bytes: Most bytes of the KV cache; None: a share of the free memory.
        hurry: Tells whether shorter work waits for the device.
        pause: Runs that work; called between the layers of a prompt.

    Attributes:
        memory: The KV cache; None before the first answer and after it was freed.
        waiting: Requests that wait for pages, oldest first.
        running: Admitted answers.
        preempted: Number of preemptions so far.
        draining: Whether no request is admitted until the running answers have ended and the KV cache is freed.
    """

    def __init__(
        self,
        model: ClaraModel,
        limits: Limits,
        lock: Condition,
        kv_bytes: int | None,
        *,
        hurry: Callable[[], bool],
        pause: Callable[[], None],
    ) -> None:
        self.model = model
        self.limits = limits
        self.memory: KVMemory | None = None
        self.waiting: list[GenerateRequest] = []
        self.running: list[Running] = []
        self.preempted = 0
        self._lock = lock
        self._kv_bytes = kv_bytes
        self._hurry, self._pause = hurry, pause
        self._long_next = True  # whether the next pass reads a long prompt, if long and short ones wait
        self._threads = StepThreads(model.processor.single if model.device.type == "cpu" else 0)
        self._turn = 0
        self._step_rows = limits.rows  # most rows of a step; fewer after one ran out of memory
        self._reads_late = model.device.type == "cuda"  # the host reads tokens while the next step runs
        self._newest: Tensor | None = None  # the newest token of each slot, ``[limits.rows]``, on the device
        self._chosen: deque[Chosen] = deque()  # oldest first
        self._beside = False  # whether a corpus batch is on the device
        self._fits = True
        self.draining = False
        self._most_pages: int | None = None  # most pages of the next KV cache, after passes ran out of memory

    @property
    def busy(self) -> bool:
        """Whether an answer waits or is being generated."""
        return bool(self.waiting or self.running)

    def turn(self, *, between_layers: bool = False) -> bool:
        """Admit waiting requests, read some prompts, then generate one token of every answer whose prompt is read.

        Args:
            between_layers: A corpus batch is on the device; work that does not fit beside it waits for its end.

        Returns:
            bool: Whether all work fitted the memory of the device.
        """
        self._beside, self._fits = between_layers, True
        self._drop_cancelled()
        if not self.draining:
            self._admit()
        writing = any(one.read for one in self.running)
        while prompts := choose_prompts(self.running, self.limits.tokens, self._long_next, packed=self.model.packs):
            self._long_next = prompts[0].prompt <= self.limits.tokens
            self._read(prompts)
            if writing or self.waiting or self._hurry():
                break  # one pass a turn if other work waits
            self._drop_cancelled()
        if self.running:
            self._make_room()
            if any(one.request.sequence.quotation is not None for one in self.running):
                self._settle()  # the tokens that may come next depend on those before
            self._step()
        if not self.running:
            self._settle()
        self._free_if_drained()
        return self._fits

    def drain(self) -> bool:
        """Free the KV cache now or once no answer uses it; returns whether there is one."""
        if self.memory is None:
            return False
        self.draining = True
        self._free_if_drained()
        return True

    def _free_if_drained(self) -> None:
        if self.draining and not self.running:
            self.memory, self.draining = None, False
            release_memory()

    def take_all(self) -> list[GenerateRequest]:
        """Remove and return all requests, waiting or running (under the lock)."""
        requests = [*self.waiting, *(one.request for one in self.running)]
        self.waiting, self.running, self.memory, self._newest = [], [], None, None
        self._chosen.clear()
        return requests

    # --- admission ---------------------------------------------------------------------------------------

    def _admit(self) -> None:
        if self.memory is None and self.waiting and not self._allocated():
            return
        while len(self.running) < self.limits.rows and (request := self._next()) is not None:
            row = self._place(request)
            if row is None:
                return
            self._turn += 1
            slot = min(set(range(self.limits.rows)) - {one.slot for one in self.running})
            with self._lock:
                self.running.append(Running(request, row, self._turn, slot))
                self.waiting.remove(request)

    def _next(self) -> GenerateRequest | None:
        """The oldest waiting request; removes those that were cancelled and refuses those that can never fit."""
        while True:
            with self._lock:
                request = self.waiting[0] if self.waiting else None
            if request is None:
                return None
            if request.cancelled or request.future.done():
                refusal = None
            elif self.memory is not None and len(request.ids) + request.sequence.limit > self.memory.columns:
                if self._restore_pages():  # it may fit the KV cache of the original size
                    return None
                refusal = too_large(request, self.memory)
            else:
                return request
            with self._lock:
                self.waiting.remove(request)
            if refusal is None:
                finish(request)
            else:
                fail(request.future, refusal)

    def _place(self, request: GenerateRequest) -> KVRow | None:
        """Pages for a request; None if there are not enough."""
        written = len(request.ids) + len(request.sequence.ids)
        return self._memory.open(min(len(request.ids) + request.sequence.limit, written + PAGE))

    def _allocated(self) -> bool:
        """Allocate the KV cache; if that fails, the oldest waiting request gets the error."""
        try:
            self.memory = allocate_cache(self.model, self.limits, self._kv_bytes, self._most_pages)
        except Exception as exc:  # noqa: BLE001 - the caller gets it
            if self._beside and is_out_of_memory(exc):
                self._fits = False
            else:
                with self._lock:
                    request = self.waiting.pop(0)
                fail(request.future, exc)
            return False
        return True

    def _make_room(self) -> None:
        """Give a page to every row that has none for its next token."""
        for one in sorted(self.running, key=lambda running: running.turn):
            while one in self.running and one.read and one.row.length == one.row.room and not one.ended:
                if self._memory.grow(one.row):
                    break
                if self._chosen:  # these tokens may end answers, whose pages become free
                    self._settle()
                else:
                    self._preempt(max(self.running, key=lambda running: running.turn))

    def _preempt(self, one: Running) -> None:
        self._settle()
        if one.gone:
            return
        log.debug("no free page: preempted an answer of %d tokens", len(one.request.sequence.ids))
        self.preempted += 1
        self._memory.close(one.row)
        with self._lock:
            self.running.remove(one)
            self.waiting.insert(0, one.request)

    @property
    def _memory(self) -> KVMemory:
        if self.memory is None:
            raise RuntimeError("there is no KV cache")
        return self.memory

    # --- passes ------------------------------------------------------------------------------------------

    def _read(self, prompts: list[Running]) -> None:
        returned: list[Running] = []

        def failed(one: Running, exc: Exception) -> None:
            if self._retries(one, exc):
                returned.append(one)
            else:
                self._leave(one, exc)

        in_halves(prompts, self._prefill, failed, self.model.device, "prompts")
        for one in reversed(returned):
            self._preempt(one)
        # Sorted by page, so that the pages of a step are in the order of its rows.
        self.running.sort(key=lambda one: one.row.pages[0])

    def _prefill(self, part: Sequence[Running]) -> None:
        cache = self._cache(part)
        logits = read_prompts(self.model, part, cache, self.limits.tokens, self._pause)
        if logits is None:
            cache.commit()
        else:
            self._take(part, logits, cache)

    def _cache(self, part: Sequence[Running]) -> KVCache:
        queries = self.model.queries() if any(one.request.watched for one in part) else None
        return KVCache(self._memory, [one.row for one in part], part[0].request.role, queries)

    def _retries(self, one: Running, exc: Exception) -> bool:
        """Whether a row that failed alone will be tried again with more free memory."""
        if not is_out_of_memory(exc):
            return False
        if self._beside:
            self._fits = False
            return True
        if self.draining:
            return True
        half = self._memory.pages // 2
        if half * PAGE < len(one.request.ids) + one.request.sequence.limit:
            self._restore_pages()  # the KV cache is not the cause
            return False
        log.warning("out of memory with a single row: going on with a KV cache of %d pages", half)
        self._most_pages = half
        self.drain()
        return True

    def _restore_pages(self) -> bool:
        """Undo the reduction of the KV cache after passes ran out of memory; returns whether there was one."""
        if self._most_pages is None:
            return False
        self._most_pages = None
        return self.drain()

    def _step(self) -> None:
        launched = len(self._chosen)
        rows = [one for one in self.running if one.read and not one.ended]
        most, tried, largest = self._step_rows, 0, 0
        for role in dict.fromkeys(one.request.role for one in rows):
            alike = [one for one in rows if one.request.role is role]
            for start in range(0, len(alike), most):
                part = alike[start : start + most]
                tried = max(tried, len(part))
                largest = max(largest, in_halves(part, self._advance, self._step_failed, self.model.device, "answers"))
        if 0 < largest < tried:
            self._step_rows = largest
        self._settle(max(0, len(self._chosen) - launched) if self._reads_late else 0)
        if not self.running:
            self._step_rows = self.limits.rows  # larger steps may fit the next answers

    def _advance(self, part: Sequence[Running]) -> None:
        part = [one for one in part if not one.gone]  # an error of another part may have ended rows
        if not part:
            return
        cache = self._cache(part)
        tokens = self._tokens().index_select(0, self._slots(part))
        with self._threads.step(len(part)):
            logits = self.model.step(tokens, cache)
        self._take(part, logits, cache)

    def _step_failed(self, one: Running, exc: Exception) -> None:
        self._settle()
        if one.gone:
            return
        if not self._retries(one, exc):
            self._leave(one, exc)
        elif not self._beside:
            self._preempt(one)
        # Otherwise it keeps its pages and is tried again in the next turn.

    # --- tokens ------------------------------------------------------------------------------------------

    def _take(self, part: Sequence[Running], logits: Tensor, cache: KVCache) -> None:
        """Choose the next token of each row by ``logits [rows, vocab]``; `_settle` reads it later."""
        queries = None if cache.queries is None else cache.queries.rows()  # [rows, layers, heads, dim]
        chosen, slots = Chosen(part, logits, queries), self._slots(part)
        self._tokens().index_copy_(0, slots, chosen.tokens)
        cache.commit()  # the pass is complete and must not run again
        self._chosen.append(chosen)
        for one in part:
            one.read = True
            one.ahead += 1

    def _tokens(self) -> Tensor:
        if self._newest is None:
            self._newest = torch.zeros(self.limits.rows, dtype=torch.long, device=self.model.device)
        return self._newest

    def _slots(self, part: Sequence[Running]) -> Tensor:
        return upload([one.slot for one in part], self.model.device)

    def _settle(self, left: int = 0) -> None:
        """Read tokens on the host: append them to their answers and end answers that are finished.

        Args:
            left: Number of newest passes whose tokens are read later.
        """
        while len(self._chosen) > left:
            chosen = self._chosen.popleft()
            exc = attempt(Chosen.wait, chosen, self.model.device)  # asynchronous errors of the device are raised here
            for row, one in enumerate(chosen.part):
                one.ahead -= 1
                one.spoiled |= exc is not None or not chosen.finite(row)
                if not one.gone:
                    self._feed(one, chosen, row, exc)
                elif not one.ahead:
                    self._free_row(one)

    def _feed(self, one: Running, chosen: Chosen, row: int, fault: Exception | None) -> None:
        sequence = one.request.sequence
        try:
            if one.spoiled:
                raise fault or not_finite("logits", self.model.dtype)  # noqa: TRY301 - like any other error of this row
            token, measured = chosen.token(row)
            if measured is not None:
                sequence.record(token, measured)
            if chosen.queries is not None and one.request.watched:
                one.request.queries.append(chosen.queries[row])
            emit(one.request, sequence.feed(token))
        except Exception as exc:  # noqa: BLE001 - the caller gets it
            self._leave(one, exc)
        else:
            if sequence.finish_reason is not None:
                self._leave(one)

    def _drop_cancelled(self) -> None:
        for one in [one for one in self.running if one.request.cancelled or one.request.future.done()]:
            self._leave(one)

    def _leave(self, one: Running, exc: Exception | None = None) -> None:
        """End an answer; its future is resolved before anything else can fail."""
        self.running.remove(one)
        one.gone = True
        if exc is None and one.request.watched:
            try:
                one.measure_attention(self._memory)
            except Exception as failure:  # noqa: BLE001 - the caller gets it
                exc = failure
        if exc is None:
            one.keep_head(self._memory)
            finish(one.request)
        else:
            fail(one.request.future, exc)
        if not one.ahead:  # otherwise a running pass still writes to its pages
            self._free_row(one)

    def _free_row(self, one: Running) -> None:
        self._memory.close(one.row, wipe=one.spoiled)
        if one.spoiled and one.request.kept is not None:
            self._memory.drop(one.request.kept)
