"""One thread owns the device: every call becomes a request, and requests share batches.

A turn serves one batch of questions, then one decode step of all answers being written, then one batch of the corpus
being compressed. The batch of the corpus pauses between its layers for the other two, so that a question waits neither
for a corpus nor for a long answer, and neither of those waits for ever behind a stream of questions.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from clara_core.errors import ClaraError, EngineClosed
from clara_core.kv_cache import KVCache
from clara_core.model import ClaraModel
from clara_core.requests import (
    GenerateRequest,
    Limits,
    Request,
    SequenceRow,
    fail,
    fill_batch,
    say,
    settle,
)
from clara_core.threads import DecodeThreads

log = logging.getLogger(__name__)

LOOKAHEAD = 1024  # waiting passages that are looked at for a batch of like lengths


class Worker:
    """The thread, its queues and the answers it is writing.

    Args:
        model: Used by this thread alone from now on.
        limits: Sizes of batches.
    """

    def __init__(self, model: ClaraModel, limits: Limits | None = None) -> None:
        self.model = model
        self.limits = limits or Limits.of(model.device)
        self._threads = DecodeThreads(model)
        self._wake = threading.Condition()
        self._closed: BaseException | None = None
        self._urgent: list[SequenceRow] = []
        self._bulk: list[SequenceRow] = []
        self._waiting: list[GenerateRequest] = []
        self._writing: list[GenerateRequest] = []
        self._cache: KVCache | None = None
        self._tokens: list[int] = []
        self._rows = self.limits.rows
        self._pausing = False
        self._thread = threading.Thread(target=self._run, name="clara-engine", daemon=True)
        self._thread.start()
        # A thread that is still inside torch when the interpreter goes down takes the process with it.
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether requests are taken (not in a process forked from the one that made this: threads stay behind)."""
        return self._closed is None and self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request; its future tells the rest.

        Raises:
            EngineClosed: The thread has ended.
        """
        with self._wake:
            if self._closed is not None:
                msg = f"the engine was closed: {self._closed}"
                raise EngineClosed(msg) from self._closed
            if isinstance(request, GenerateRequest):
                self._waiting.append(request)
            elif not request.sequences:
                msg = "an encode request needs at least one sequence"
                raise ValueError(msg)
            else:
                queue = self._urgent if request.urgent else self._bulk
                queue.extend(SequenceRow(request, index) for index in range(len(request.sequences)))
            self._wake.notify()

    def close(self) -> None:
        """End the thread after its current step; those who wait get `EngineClosed`."""
        with self._wake:
            if self._closed is None:
                self._closed = EngineClosed("the engine was unloaded while this call was waiting; call again")
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- the loop ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._wait_for_work():
                    self._serve_questions()
                    self._write()
                    self._compress()
        except BaseException as exc:  # whatever ends this thread has to reach those who wait
            log.exception("the engine's thread died")
            with self._wake:
                self._closed = EngineClosed(f"the engine's thread died ({type(exc).__name__}: {exc}); call again")
                self._closed.__cause__ = exc
        atexit.unregister(self.close)
        self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._has_work())
            return self._closed is None

    def _has_work(self) -> bool:
        return bool(self._urgent or self._bulk or self._waiting or self._writing)

    def _fail_all(self) -> None:
        with self._wake:
            rows = [*self._urgent, *self._bulk]
            requests: list[Request] = [row.request for row in rows]
            requests += [*self._waiting, *self._writing]
            for queue in (self._urgent, self._bulk, self._waiting, self._writing):
                queue.clear()
        self._cache = None
        for request in requests:
            fail(request.future, self._closed or EngineClosed("the engine was closed"))

    def _pause(self) -> None:
        """Between two layers of a corpus batch: let the short work through (not again inside of itself)."""
        if self._pausing or not (self._urgent or self._waiting or self._writing):
            return
        self._pausing = True
        try:
            self._serve_questions()
            self._write()
        finally:
            self._pausing = False

    # --- memory tokens -----------------------------------------------------------------------------------

    def _serve_questions(self) -> None:
        self._encode_some(self._urgent, pause=None)

    def _compress(self) -> None:
        self._encode_some(self._bulk, pause=self._pause)

    def _encode_some(self, queue: list[SequenceRow], pause: Callable[[], None] | None) -> None:
        rows = self._take(queue)
        if not rows:
            return
        try:
            self._encode(rows, pause)
        except BaseException:  # it ends this thread, and has to find those who wait
            queue[:0] = rows
            raise

    def _take(self, queue: list[SequenceRow]) -> list[SequenceRow]:
        """A batch around the row that waits longest, of lengths as like as can be."""
        with self._wake:
            queue[:] = [row for row in queue if not row.request.future.done()]
            if not queue:
                return []
            batch = fill_batch(queue[:LOOKAHEAD], self.limits.tokens)
            taken = set(map(id, batch))
            queue[:] = [row for row in queue if id(row) not in taken]
        return batch

    def _encode(self, rows: list[SequenceRow], pause: Callable[[], None] | None) -> None:
        try:
            states = self.model.encode([row.ids for row in rows], [row.request.role for row in rows], pause=pause)
            states = states.cpu()  # [rows, n_mem, hidden]
            finite = states.flatten(1).isfinite().all(1).tolist()
        except Exception as exc:  # noqa: BLE001 - it belongs to those who asked
            if not is_out_of_memory(exc) or len(rows) == 1:
                for row in rows:
                    fail(row.request.future, exc)
                return
        else:
            for row, tokens, usable in zip(rows, states, finite, strict=True):
                if usable:
                    row.deliver(tokens)
                else:
                    fail(row.request.future, self._not_finite("memory tokens"))
            return
        # Out of the handler, since its exception holds on to the tensors of the batch.
        log.warning("out of memory with %d sequences in a batch: going on with half of them", len(rows))
        release_memory()
        half = len(rows) // 2
        self._encode(rows[:half], pause)
        self._encode(rows[half:], pause)

    def _not_finite(self, what: str) -> ClaraError:
        return ClaraError(
            f"the model gave {what} that are not finite in {self.model.dtype}: damaged weights, or numbers too large "
            "for the type; try dtype='bfloat16' or 'float32'"
        )

    # --- answers -----------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Admit waiting prompts, then one token for every answer."""
        self._admit()
        self._drop_cancelled()
        if self._cache is None:
            return
        tokens = torch.tensor(self._tokens, device=self.model.device)
        try:
            with self._threads.step(len(tokens)):
                logits = self.model.step(tokens, self._cache)
        except Exception as exc:  # noqa: BLE001 - it belongs to those who asked
            self._step_failed(exc)
            return
        self._take_tokens(logits, 0)

    def _admit(self) -> None:
        while requests := self._next_prompts():
            try:
                self._prefill(requests)
            except BaseException:  # it ends this thread, and has to find those who wait
                self._waiting[:0] = requests
                raise

    def _next_prompts(self) -> list[GenerateRequest]:
        with self._wake:
            for request in [request for request in self._waiting if request.cancelled]:
                self._waiting.remove(request)
                self._finish(request)
            room = self._rows - len(self._writing)
            batch: list[GenerateRequest] = []
            longest = 0
            for request in self._waiting[: max(room, 0)]:
                longest = max(longest, len(request.ids) + len(request.writer.ids))
                if batch and longest * (len(batch) + 1) > self.limits.tokens:
                    break
                batch.append(request)
            self._waiting = self._waiting[len(batch) :]
        return batch

    def _prefill(self, requests: list[GenerateRequest]) -> None:
        # An answer that had to make room comes back with what it has written so far.
        sequences = [request.ids + request.writer.ids for request in requests]
        slots = torch.zeros(len(requests), max(map(len, sequences)), dtype=torch.bool)
        for row, request in enumerate(requests):
            slots[row, : len(request.slots)] = torch.tensor(request.slots)
        try:
            filled = [request.memories for request in requests if len(request.memories)]
            memories = torch.cat(filled or [torch.zeros(0, self.model.hidden)])  # [slots, hidden]
            logits, cache = self.model.prefill(sequences, memories.to(self.model.device), slots.to(self.model.device))
        except Exception as exc:  # noqa: BLE001 - it belongs to those who asked
            if not is_out_of_memory(exc) or len(requests) == 1:
                for request in requests:
                    fail(request.future, exc)
                return
        else:
            self._join(requests, cache, logits)
            return
        # Out of the handler, since its exception holds on to the tensors of the batch.
        log.warning("out of memory with %d prompts in a batch: going on with half of them", len(requests))
        release_memory()
        half = len(requests) // 2
        self._prefill(requests[:half])
        self._prefill(requests[half:])

    def _join(self, requests: list[GenerateRequest], cache: KVCache, logits: Tensor) -> None:
        """Let new answers write along with the others: ``logits [new rows, vocab]``."""
        first = len(self._writing)
        self._writing += requests
        self._tokens += [0] * len(requests)
        try:
            if self._cache is None:
                self._cache = cache
            else:
                self._cache.join(cache)
        except Exception as exc:  # noqa: BLE001 - it belongs to those who asked
            self._step_failed(exc)
            return
        self._take_tokens(logits, first)

    def _take_tokens(self, logits: Tensor, first: int) -> None:
        """Give the rows from `first` on their next token, ``logits [rows, vocab]``, and let finished rows go."""
        best = logits.max(-1)  # NaN counts as the largest, so that it shows
        tokens = best.indices.tolist()
        for row, finite in enumerate(best.values.isfinite().tolist()):
            request = self._writing[first + row]
            try:
                if not finite:
                    raise self._not_finite("logits")  # noqa: TRY301 - like any other fault of this row
                if request.writer.sampling.temperature > 0:
                    tokens[row] = request.writer.choose(logits[row])
                say(request, request.writer.feed(tokens[row]))
            except Exception as exc:  # noqa: BLE001 - it belongs to the one who asked
                fail(request.future, exc)
        self._tokens[first:] = tokens
        self._let_go([request.writer.finish_reason is not None or request.future.done() for request in self._writing])

    def _drop_cancelled(self) -> None:
        self._let_go([request.cancelled or request.future.done() for request in self._writing])

    def _let_go(self, leaving: list[bool]) -> None:
        if not any(leaving):
            return
        gone = [request for request, leaves in zip(self._writing, leaving, strict=True) if leaves]
        kept = [row for row, leaves in enumerate(leaving) if not leaves]
        self._writing = [self._writing[row] for row in kept]
        self._tokens = [self._tokens[row] for row in kept]
        if self._cache is not None and kept:
            self._cache.keep(kept)
        else:
            self._cache = None
            if not self._waiting:
                self._rows = self.limits.rows  # what did not fit together may be of another length next time
        for request in gone:
            self._finish(request)

    def _finish(self, request: GenerateRequest) -> None:
        if request.future.done():  # failed, or nobody waits any more
            return
        if request.writer.finish_reason is None:
            say(request, request.writer.finish("cancelled"))
        answer = request.answer()
        say(request, "", answer)
        settle(request.future, answer)

    def _step_failed(self, exc: Exception) -> None:
        """Out of memory: all go on from what they have written, half as many at a time; anything else fails them."""
        requests, self._writing, self._tokens, self._cache = self._writing, [], [], None
        release_memory()
        if not is_out_of_memory(exc) or len(requests) == 1:
            for request in requests:
                fail(request.future, exc)
            return
        self._rows = max(1, len(requests) // 2)
        log.warning("out of memory with %d answers at a time: going on with %d", len(requests), self._rows)
        with self._wake:
            self._waiting[:0] = requests


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether a smaller batch may succeed."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    # The processor's allocator raises a plain RuntimeError.
    return isinstance(exc, RuntimeError) and "not enough memory" in str(exc)


def release_memory() -> None:
    """Give cached blocks back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
