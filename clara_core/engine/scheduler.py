"""The worker: one thread owns the device, calls become requests, and requests share batches.

A turn runs one batch of questions, one batch of rows to judge, one decode step of all running answers, and one batch of
the corpus that is being compressed. The corpus batch pauses between its layers for the others. So a question waits
neither for a corpus nor for a long answer, and a stream of questions does not starve them.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch

from clara_core.common.errors import EngineClosed
from clara_core.engine.decoding import Answers
from clara_core.engine.requests import (
    GenerateRequest,
    JudgeRequest,
    JudgeRow,
    Limits,
    Request,
    SequenceRow,
    fail,
    fill_batch,
    resolve,
    take_rows,
)
from clara_core.engine.running import not_finite
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import DeviceLost, attempt, download, in_halves, is_out_of_memory, upload
from clara_core.model.kv_memory import KVMemory

log = logging.getLogger(__name__)

Row = TypeVar("Row", SequenceRow, JudgeRow)

LOOKAHEAD = 1024  # waiting rows among which a batch of similar lengths is chosen


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The state of an engine at one moment.

    Attributes:
        loaded: Whether the weights are on the device.
        weights_bytes: Bytes of weights and adapters.
        kv_total_bytes: Bytes of the KV cache; 0 before the first answer.
        kv_used_bytes: Bytes of the KV cache that answers hold.
        waiting: Answers that wait for a place in the KV cache.
        running: Answers that are being generated.
        questions: Questions and short texts that wait for the query reasoner or the compressor.
        passages: Passages of larger jobs that wait for the compressor.
        compressed: Questions and passages that were encoded since the weights were loaded.
        preempted: How often an answer gave its pages to an older one and was resumed later.
        cached: Documents in the engine's cache of memories.
        cached_bytes: Bytes of these documents.
        kernels: Description of the matrix kernels on a CPU; empty on other devices.
        alive: Whether requests are accepted; an engine that is not loaded accepts them and loads.
        turn_seconds: How long the worker's current turn has lasted, in seconds; 0 while it is idle. A turn that does
            not end means that the device hangs.
    """

    loaded: bool = False
    weights_bytes: int = 0
    kv_total_bytes: int = 0
    kv_used_bytes: int = 0
    waiting: int = 0
    running: int = 0
    questions: int = 0
    passages: int = 0
    compressed: int = 0
    preempted: int = 0
    cached: int = 0
    cached_bytes: int = 0
    kernels: str = ""
    alive: bool = True
    turn_seconds: float = 0.0


class Worker:
    """The thread, its queues and its running answers.

    Args:
        model: The model, which only this thread uses from now on.
        kv_bytes: Most bytes of the KV cache; None: a share of the free memory.

    Attributes:
        limits: Sizes of batches.
        answers: Waiting and running answers.
        compressed: Number of questions and passages that were encoded so far.
        lost: Why this process can no longer use the device; None while it can.
    """

    def __init__(self, model: ClaraModel, kv_bytes: int | None = None) -> None:
        self.model = model
        self.limits = Limits.of(model.device)
        self.compressed = 0
        self.lost: str | None = None
        self._wake = threading.Condition()
        self._closed: BaseException | None = None
        self._urgent: list[SequenceRow] = []
        self._bulk: list[SequenceRow] = []
        self._judged: list[JudgeRow] = []
        self.answers = Answers(model, self.limits, self._wake, kv_bytes, hurry=self._hurry, pause=self._pause_prompt)
        self._pausing = False
        self._asking = False
        self._turn_began: float | None = None  # None while there is nothing to do
        self._crowded = False  # short work ran out of memory beside the batch on the device
        self._thread = threading.Thread(target=self._run, name="clara-engine", daemon=True)
        self._thread.start()
        # A thread that is inside torch when the interpreter shuts down crashes the process.
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether requests are accepted; False in a forked child process, which does not have the thread."""
        return self._closed is None and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """The fields of the statistics that the worker knows; the others have their defaults."""
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
        """Queue a request; its future gives the result or the error.

        Raises:
            EngineClosed: The worker was closed.
        """
        with self._wake:
            if self._closed is not None:
                raise EngineClosed(f"the engine was closed: {self._closed}") from self._closed
            if isinstance(request, GenerateRequest):
                self.answers.waiting.append(request)
            elif isinstance(request, JudgeRequest):
                self._judged.extend(JudgeRow(request, index) for index in range(len(request.hidden)))
            elif not request.sequences:
                raise ValueError("an encode request needs at least one sequence")
            else:
                queue = self._urgent if request.urgent else self._bulk
                queue.extend(SequenceRow(request, index) for index in range(len(request.sequences)))
            self._wake.notify()

    def close(self) -> None:
        """End the thread after its current step; requests that still wait fail with `EngineClosed`."""
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
                    self._encode_some(self._bulk, pause=self._pause)
        except BaseException as exc:  # every error that ends this thread has to reach the waiting callers
            traceback.clear_frames(exc.__traceback__)
            if isinstance(exc, DeviceLost):
                self.lost = str(exc)
                log.error("%s", exc)  # noqa: TRY400 - the traceback adds nothing
            else:
                log.exception("the engine's thread died")
            reason = self.lost or f"the engine's thread died ({type(exc).__name__}: {exc}); call again"
            with self._wake:
                self._closed = EngineClosed(reason)
                self._closed.__cause__ = exc
        atexit.unregister(self.close)
        self._fail_all()
        # References to this object, for example from tracebacks, must not keep the weights alive.
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
        """Run waiting short work between two layers of a corpus batch; does not nest."""
        if self._pausing or self._crowded or not (self._urgent or self._judged or self.answers.busy):
            return
        self._pausing = True
        try:
            self._serve_questions()
            self._crowded |= not self.answers.turn(between_layers=True)
        finally:
            self._pausing = False

    def _pause_prompt(self) -> None:
        """Run waiting questions and rows to judge between two layers of a prompt; does not nest."""
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

    def _judge(self, rows: Sequence[JudgeRow]) -> None:
        judge_rows(self.model, rows, self.answers.memory)

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
        """Run one batch of a queue: `fill` chooses it for a number of positions, `run` computes and stores its results.

        Log messages name the rows by `what`.
        """
        if self.answers.draining:
            return  # there will be more free memory soon
        rows = self._take(queue, fill)
        if not rows:
            return
        returned: list[Row] = []

        def failed(row: Row, exc: Exception) -> None:
            if is_out_of_memory(exc):
                self._crowded |= self._pausing
                drained = not self._pausing and self.answers.drain()
                if self._pausing or self.answers.draining:  # try again after the corpus batch or the running answers
                    returned.append(row)
                    return
                again = attempt(run, [row], self.model.device) if drained else exc
                if again is None:
                    return
                exc = again
            fail(row.request.future, exc)

        try:
            in_halves(rows, run, failed, self.model.device, what)
        except BaseException:  # it ends this thread; `_fail_all` has to find the rows in the queue
            queue[:0] = rows
            raise
        with self._wake:
            queue[:0] = returned

    def _take(self, queue: list[Row], fill: Callable[[Sequence[Row], int], list[Row]]) -> list[Row]:
        """Remove and return a batch that includes the oldest row."""
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


def judge_rows(model: ClaraModel, rows: Sequence[JudgeRow], memory: KVMemory | None) -> None:
    """Compute rows in one pass and store them in their requests; the last row of a request resolves its future.

    The rows of a request stand next to each other, and share the beginning of their prompt (`model.forked`), which the
    KV memory may still have.
    """
    groups = [(request, list(some)) for request, some in groupby(rows, key=lambda row: row.request)]
    prompts = [request.forked((row.index for row in some), memory) for request, some in groups]
    pairs = list(zip((request for request, _ in groups), prompts, strict=True))
    memories = [request.memories for request, prompt in pairs if prompt.kept is None and len(request.memories)]
    filled = torch.cat(memories or [torch.zeros(0, model.hidden)])  # [slots, hidden]
    found = model.judge(prompts, upload(filled, model.device))
    for request, prompt in pairs:
        request.positions += prompt.positions
    sizes = [part.numel() for part in found]
    numbers = torch.cat([part.flatten() for part in found]).cpu()  # waits for the device, once
    for (request, some), part in zip(groups, numbers.split(sizes), strict=True):
        if not bool(part.isfinite().all()):
            fail(request.future, not_finite("log-probabilities", model.dtype))
            continue
        for row, values in zip(some, part.view(len(some), -1), strict=True):
            request.rows[row.index] = values
        if len(request.rows) == len(request.hidden):
            resolve(request.future, torch.stack([request.rows[index] for index in range(len(request.hidden))]))
