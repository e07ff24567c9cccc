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
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition

import torch
from torch import Tensor

from clara_core.engine.chosen import Chosen, Running, not_finite
from clara_core.engine.kv_space import allocate, too_large
from clara_core.engine.prompts import choose_prompts, read_prompts
from clara_core.engine.requests import GenerateRequest, Limits, emit, fail, finish
from clara_core.engine.threads import DecodeThreads
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import attempt, in_halves, is_out_of_memory, release_memory, upload
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.paid_attention import paid_attention

log = logging.getLogger(__name__)


class Answers:
    """The answers of one worker; only its thread calls these methods, but for `submit`.

    Args:
        model: That writes them.
        limits: Sizes of batches.
        lock: Guards `waiting`.
        kv_bytes: Most bytes of keys and values; None: what is free.
        hurry: Whether shorter work waits for the device.
        pause: Lets it through between the layers of a prompt.
    """

    def __init__(
        self,
        model: ClaraModel,
        limits: Limits,
        lock: Condition,
        kv_bytes: int | None = None,
        *,
        hurry: Callable[[], bool] = lambda: False,
        pause: Callable[[], None] | None = None,
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
        self._long_next = True  # whose turn it is, where long prompts and short ones wait to be read
        self._threads = DecodeThreads(model)
        self._turn = 0
        self._together = limits.rows  # rows of a step; fewer after it ran out of memory
        self._late = model.device.type == "cuda"  # tokens are read while the next step runs
        self._newest: Tensor | None = None  # the newest token of each slot, ``[limits.rows]``, on the device
        self._chosen: deque[Chosen] = deque()  # oldest first
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
        """Admit waiting prompts and read some of them, then one token for every answer whose prompt has been read.

        Args:
            between_layers: A batch of the corpus is on the device: what does not fit beside it waits for its end.

        Returns:
            bool: Whether all did fit.
        """
        self._beside, self._fits = between_layers, True
        self._drop_cancelled()
        if not self._draining:
            self._admit()
        writing = any(one.read for one in self.running)
        while prompts := choose_prompts(self.running, self.limits.tokens, self._long_next, packed=self.model.packs):
            self._long_next = prompts[0].prompt <= self.limits.tokens
            self._read(prompts)
            if writing or self.waiting or self._hurry():
                break  # one pass at a time, where others wait for it
            self._drop_cancelled()
        if self.running:
            self._make_room()
            self._step()
        if not self.running:
            self._settle()
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
        self.waiting, self.running, self.memory, self._newest = [], [], None, None
        self._chosen.clear()
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
            slot = min(set(range(self.limits.rows)) - {one.slot for one in self.running})
            with self._lock:
                self.running.append(Running(request, row, self._turn, slot))
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
            elif self.memory is not None and len(request.ids) + request.sequence.limit > self.memory.columns:
                if self._all_pages_again():  # it may fit all the same where others did not
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
        """Pages for a request; None: it waits."""
        written = len(request.ids) + len(request.sequence.ids)
        return self._memory.open(min(len(request.ids) + request.sequence.limit, written + PAGE))

    def _allocated(self) -> bool:
        """Make the KV memory; where that fails, whoever waits longest gets the error."""
        try:
            self.memory = allocate(self.model, self.limits, self._kv_bytes, self._most_pages)
        except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
            if self._beside and is_out_of_memory(exc):
                self._fits = False
            else:
                with self._lock:
                    request = self.waiting.pop(0)
                fail(request.future, exc)
            return False
        return True

    def _make_room(self) -> None:
        """A page for every row that has none for its next token."""
        for one in sorted(self.running, key=lambda running: running.turn):
            while one in self.running and one.read and one.row.length == one.row.room and not self._ended(one):
                if self._memory.grow(one.row):
                    break
                if self._chosen:  # somebody's end may be among them
                    self._settle()
                else:
                    self._preempt(max(self.running, key=lambda running: running.turn))

    @staticmethod
    def _ended(one: Running) -> bool:
        """Whether the last token of an answer has been chosen, as far as its length goes."""
        return one.written >= one.request.sequence.limit

    def _preempt(self, one: Running) -> None:
        self._settle()
        if one.gone:
            return
        log.debug("no free page: an answer of %d tokens waits", len(one.request.sequence.ids))
        self.preempted += 1
        self._memory.close(one.row)
        with self._lock:
            self.running.remove(one)
            self.waiting.insert(0, one.request)

    @property
    def _memory(self) -> KVMemory:
        if self.memory is None:
            raise RuntimeError("answers that are being written have a KV memory")
        return self.memory

    # --- passes ------------------------------------------------------------------------------------------

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
        cache = self._cache(part)
        logits = read_prompts(self.model, part, cache, self.limits.tokens, self._pause)
        if logits is None:
            cache.commit()
        else:
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
        if half * PAGE < len(one.request.ids) + one.request.sequence.limit:
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
        launched = len(self._chosen)
        rows = [one for one in self.running if one.read and not self._ended(one)]
        most, tried, largest = self._together, 0, 0
        for role in dict.fromkeys(one.request.role for one in rows):
            alike = [one for one in rows if one.request.role is role]
            for start in range(0, len(alike), most):
                part = alike[start : start + most]
                tried = max(tried, len(part))
                largest = max(largest, in_halves(part, self._advance, self._step_failed, self.model.device, "answers"))
        if 0 < largest < tried:
            self._together = largest
        self._settle(max(0, len(self._chosen) - launched) if self._late else 0)
        if not self.running:
            self._together = self.limits.rows  # what did not fit together may fit another time

    def _advance(self, part: Sequence[Running]) -> None:
        part = [one for one in part if not one.gone]  # after another part had failed
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
        if not self._waits(one, exc):
            self._leave(one, exc)
        elif not self._beside:
            self._preempt(one)
        # Else it keeps its place, and its turn comes again.

    # --- tokens ------------------------------------------------------------------------------------------

    def _take(self, part: Sequence[Running], logits: Tensor, cache: KVCache) -> None:
        """Choose the next token of each row by ``logits [rows, vocab]``; `_settle` hears of it."""
        queries = None if cache.queries is None else cache.queries.rows()  # [rows, layers, heads, dim]
        chosen, slots = Chosen(part, logits, queries), self._slots(part)
        self._tokens().index_copy_(0, slots, chosen.tokens)
        cache.commit()  # from here on the pass has been: nothing of it runs again
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
        """Give rows the tokens that were chosen, and let finished ones go.

        Args:
            left: Passes whose tokens may come later.
        """
        while len(self._chosen) > left:
            chosen = self._chosen.popleft()
            exc = attempt(Chosen.wait, chosen, self.model.device)  # an error of the device shows here
            for row, one in enumerate(chosen.part):
                one.ahead -= 1
                one.spoiled |= exc is not None or not chosen.finite(row)
                if not one.gone:
                    self._feed(one, chosen, row, exc)
                elif not one.ahead:
                    self._memory.close(one.row, wipe=one.spoiled)

    def _feed(self, one: Running, chosen: Chosen, row: int, fault: Exception | None) -> None:
        sequence = one.request.sequence
        try:
            if one.spoiled:
                raise fault or not_finite("logits", self.model.dtype)  # noqa: TRY301 - like any other fault of this row
            token, measured = chosen.token(row)
            if measured is not None:
                sequence.record(token, measured)
            if chosen.queries is not None and one.request.watched:
                one.request.queries.append(chosen.queries[row])
            emit(one.request, sequence.feed(token))
        except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
            self._leave(one, exc)
        else:
            if sequence.finish_reason is not None:
                self._leave(one)

    def _drop_cancelled(self) -> None:
        for one in [one for one in self.running if one.request.cancelled or one.request.future.done()]:
            self._leave(one)

    def _show_attention(self, one: Running) -> Exception | None:
        """What the tokens of a finished answer paid attention to, while its keys are there; returns what went wrong."""
        request, said = one.request, len(one.request.sequence.ids)
        queries, request.queries = request.queries[:said], []
        if request.sequence.finish_reason is None or not queries:
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
        one.gone = True
        if exc is None and one.request.watched:
            exc = self._show_attention(one)
        if exc is None:
            finish(one.request)
        else:
            fail(one.request.future, exc)
        if not one.ahead:  # else a pass that is under way still writes to its pages
            self._memory.close(one.row, wipe=one.spoiled)
