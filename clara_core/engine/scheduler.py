"""One thread owns the device: every call becomes a request, and requests share batches.

A turn serves one batch of questions and one of answers to be judged, then one decode step of all answers being written,
then one batch of the corpus being compressed. The batch of the corpus pauses between its layers for the others, so that
a question waits neither for a corpus nor for a long answer, and neither of those waits for ever behind a stream of
questions.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from clara_core.common.errors import EngineClosed
from clara_core.engine.chosen import not_finite
from clara_core.engine.decoding import Answers
from clara_core.engine.judge import judge_rows
from clara_core.engine.requests import (
    GenerateRequest,
    JudgeRequest,
    JudgeRow,
    Limits,
    Request,
    SequenceRow,
    fail,
    fill_batch,
    rows_of,
    take_rows,
)
from clara_core.engine.stats import EngineStats
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import DeviceLost, attempt, download, in_halves, is_out_of_memory

log = logging.getLogger(__name__)

Row = TypeVar("Row", SequenceRow, JudgeRow)

LOOKAHEAD = 1024  # waiting passages that are looked at for a batch of like lengths


class Worker:
    """The thread, its queues and the answers it is writing.

    Args:
        model: Used by this thread alone from now on.
        limits: Sizes of batches.
        kv_bytes: Most bytes of keys and values; None: what is free.

    Attributes:
        answers: Those that wait and those that are being written.
        compressed: Questions and passages that became memory tokens so far.
        lost: Why the device can never be used again by this process, once that is so.
    """

    def __init__(self, model: ClaraModel, limits: Limits | None = None, kv_bytes: int | None = None) -> None:
        self.model = model
        self.limits = limits or Limits.of(model.device)
        self.compressed = 0
        self.lost: str | None = None
        self._wake = threading.Condition()
        self._closed: BaseException | None = None
        self._urgent: list[SequenceRow] = []
        self._bulk: list[SequenceRow] = []
        self._judged: list[JudgeRow] = []
        self.answers = Answers(model, self.limits, self._wake, kv_bytes, hurry=self._hurry, pause=self._let_through)
        self._pausing = False
        self._asking = False
        self._turn_began: float | None = None  # None while there is nothing to do
        self._crowded = False  # what is on the device leaves no room for short work between its layers
        self._thread = threading.Thread(target=self._run, name="clara-engine", daemon=True)
        self._thread.start()
        # A thread that is still inside torch when the interpreter goes down takes the process with it.
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether requests are taken (not in a process forked from the one that made this: threads stay behind)."""
        return self._closed is None and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """What this thread has done and has to do; of the engine's own numbers it knows none."""
        answers, memory = self.answers, self.answers.memory
        return EngineStats(
            kv_total_bytes=0 if memory is None else memory.total_bytes,
            kv_used_bytes=0 if memory is None else memory.used_bytes,
            waiting=len(answers.waiting),
            running=len(answers.running),
            questions=len(self._urgent),
            passages=len(self._bulk),
            compressed=self.compressed,
            preempted=answers.preempted,
            alive=self.alive,
            turn_seconds=0.0 if (began := self._turn_began) is None else time.monotonic() - began,
        )

    def submit(self, request: Request) -> None:
        """Queue a request; its future tells the rest.

        Raises:
            EngineClosed: The thread has ended.
        """
        with self._wake:
            if self._closed is not None:
                raise EngineClosed(f"the engine was closed: {self._closed}") from self._closed
            if isinstance(request, GenerateRequest):
                self.answers.submit(request)
            elif isinstance(request, JudgeRequest):
                self._judged.extend(rows_of(request))
            elif not request.sequences:
                raise ValueError("an encode request needs at least one sequence")
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
                    self._turn_began = time.monotonic()
                    self._crowded = False
                    self._serve_questions()
                    self.answers.turn()
                    self._compress()
        except BaseException as exc:  # whatever ends this thread has to reach those who wait
            traceback.clear_frames(exc.__traceback__)
            if isinstance(exc, DeviceLost):
                self.lost = str(exc)
                log.error("%s", exc)  # noqa: TRY400 - the message says it all
            else:
                log.exception("the engine's thread died")
            reason = self.lost or f"the engine's thread died ({type(exc).__name__}: {exc}); call again"
            with self._wake:
                self._closed = EngineClosed(reason)
                self._closed.__cause__ = exc
        atexit.unregister(self.close)
        self._fail_all()
        # Whoever still holds this object, or an error that went through it, does not hold the weights.
        del self.model, self.answers.model

    def _wait_for_work(self) -> bool:
        self._turn_began = None
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._has_work())
            return self._closed is None

    def _hurry(self) -> bool:
        return bool(self._closed or self._urgent or self._judged)

    def _has_work(self) -> bool:
        return bool(self._urgent or self._judged or self._bulk or self.answers.busy)

    def _fail_all(self) -> None:
        with self._wake:
            requests: list[Request] = [row.request for row in (*self._urgent, *self._bulk)]
            requests += [row.request for row in self._judged]
            requests += self.answers.take_all()
            for queue in (self._urgent, self._bulk, self._judged):
                queue.clear()
        for request in requests:
            fail(request.future, self._closed or EngineClosed("the engine was closed"))

    def _pause(self) -> None:
        """Between two layers of a corpus batch: let the short work through (not again inside of itself)."""
        if self._pausing or self._crowded or not (self._urgent or self._judged or self.answers.busy):
            return
        self._pausing = True
        try:
            self._serve_questions()
            self._crowded |= not self.answers.turn(between_layers=True)
        finally:
            self._pausing = False

    def _let_through(self) -> None:
        """Between two layers of a prompt: what waits for less than the prompt does (not again inside of itself)."""
        if self._asking or self._crowded or not (self._urgent or self._judged):
            return
        pausing = self._pausing
        self._asking = self._pausing = True
        try:
            self._serve_questions()
        finally:
            self._asking, self._pausing = False, pausing

    # --- memory tokens -----------------------------------------------------------------------------------

    def _serve_questions(self) -> None:
        self._encode_some(self._urgent, pause=None)
        self._run_some(self._judged, take_rows, self._judge, "judged answers")

    def _compress(self) -> None:
        self._encode_some(self._bulk, pause=self._pause)

    def _encode_some(self, queue: list[SequenceRow], pause: Callable[[], None] | None) -> None:
        def fill(rows: Sequence[SequenceRow], budget: int) -> list[SequenceRow]:
            return fill_batch(rows, budget, packed=self.model.packs)

        self._run_some(queue, fill, lambda part: self._encode(part, pause), "sequences")

    def _run_some(
        self,
        queue: list[Row],
        fill: Callable[[Sequence[Row], int], list[Row]],
        run: Callable[[Sequence[Row]], None],
        what: str,
    ) -> None:
        """One batch of a queue.

        Args:
            queue: Rows that wait.
            fill: Takes a batch of them, of so many positions.
            run: Computes a batch and hands in what it gives.
            what: The rows, for the log.
        """
        if self.answers.draining:
            return  # it is about to have more memory
        rows = self._take(queue, fill)
        if not rows:
            return
        returned: list[Row] = []

        def failed(row: Row, exc: Exception) -> None:
            if is_out_of_memory(exc):
                self._crowded |= self._pausing
                there_was_some = not self._pausing and self.answers.drain()
                if self._pausing or self.answers.draining:  # after the corpus, or after the answers being written
                    returned.append(row)
                    return
                again = attempt(run, [row], self.model.device) if there_was_some else exc
                if again is None:
                    return
                exc = again
            fail(row.request.future, exc)

        try:
            in_halves(rows, run, failed, self.model.device, what)
        except BaseException:  # it ends this thread, and has to find those who wait
            queue[:0] = rows
            raise
        with self._wake:
            queue[:0] = returned

    def _take(self, queue: list[Row], fill: Callable[[Sequence[Row], int], list[Row]]) -> list[Row]:
        """A batch with the row that waits longest."""
        with self._wake:
            queue[:] = [row for row in queue if not row.request.future.done()]
            if not queue:
                return []
            batch = fill(queue[:LOOKAHEAD], self.limits.tokens)
            taken = set(map(id, batch))
            queue[:] = [row for row in queue if id(row) not in taken]
        return batch

    def _encode(self, rows: Sequence[SequenceRow], pause: Callable[[], None] | None) -> None:
        states = self.model.encode([row.ids for row in rows], [row.request.role for row in rows], pause=pause)
        finite = states.flatten(1).isfinite().all(1)  # [rows]
        tokens = download(states)  # [rows, n_mem, hidden]
        for row, memory, usable in zip(rows, tokens, finite.tolist(), strict=True):
            if usable:
                row.deliver(memory)
            else:
                fail(row.request.future, not_finite("memory tokens", self.model.dtype))
        self.compressed += len(rows)

    def _judge(self, rows: Sequence[JudgeRow]) -> None:
        judge_rows(self.model, rows, lambda: not_finite("log-probabilities", self.model.dtype))
