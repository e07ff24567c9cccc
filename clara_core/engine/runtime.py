"""Loading and unloading of one model, and the requests to its worker: the base of the engine's calls."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clara_core.common.errors import EngineClosed, FingerprintMismatch, RoleError
from clara_core.common.threads import in_own_thread
from clara_core.data.memory import Memory, MemoryCache
from clara_core.engine.answer_options import Wanted
from clara_core.engine.calibration import CALIBRATION_FILE, Calibration
from clara_core.engine.checks import Message, checked_memories, checked_texts
from clara_core.engine.inputs import prepare_chat, prepare_generation, prepare_questions
from clara_core.engine.loader import DTYPES, Loaded, Plan, load_model, plan_engine
from clara_core.engine.options import EngineArguments
from clara_core.engine.protocol import Engine
from clara_core.engine.recent import RecentQuestions
from clara_core.engine.requests import EncodeRequest, GenerateRequest, Request, head_of
from clara_core.engine.sampling import Sampling
from clara_core.engine.scheduler import EngineStats, Worker
from clara_core.engine.steps import Steps, T, adrive, drive
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.devices import release_memory
from clara_core.model.tokenizer import ClaraTokenizer

log = logging.getLogger(__name__)


class EngineInstance(Engine):
    """A model that loads at first use, with its worker, its cache of memories and its statistics."""

    def __init__(self, arguments: EngineArguments) -> None:
        self.arguments = arguments
        self.cache = MemoryCache()
        self._recent = RecentQuestions()
        self._lock = threading.RLock()
        self._plan: Plan | None = None
        self._loaded: Loaded | None = None
        self._worker: Worker | None = None
        self._lost: str | None = None
        self._calibration: Calibration | None = None
        self._calibration_known = False
        self.warned_uncalibrated = False
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forked(this()))

    # --- facts of the model ------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Checkpoint, base and tokenizer; found at first use, without reading any weights."""
        with self._lock:
            if self._plan is None:
                self._plan = plan_engine(self.arguments)
            return self._plan

    @property
    def config(self) -> ClaraConfig:
        """Config of the checkpoint."""
        return self.plan.config

    @property
    def tokenizer(self) -> ClaraTokenizer:
        """The base's tokenizer with the memory tokens."""
        return self.plan.tokenizer

    @property
    def n_mem(self) -> int:
        """Memory tokens of one window."""
        return self.config.n_mem

    @property
    def hidden(self) -> int:
        """Width of a memory token."""
        return self.plan.hidden

    @property
    def window(self) -> int:
        """Most text tokens that one window holds."""
        return self.config.doc_max_length

    @property
    def context(self) -> int:
        """Most positions that a prompt and its answer may take together."""
        return self.plan.context

    @property
    def answer_top_k(self) -> int:
        """Documents to read for an answer unless the caller says otherwise, by the checkpoint's config."""
        return self.config.answer_top_k or self.config.generation_top_k

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(self.arguments.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and memory tokens."""
        return DTYPES[self.arguments.dtype]

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that the checkpoint holds (loads the weights)."""
        return self.load().checkpoint.roles

    @property
    def fingerprint(self) -> str:
        """Hash of weights and rate, independent of the dtype (loads the weights). It is stored in each memory."""
        return self.load().fingerprint

    @property
    def ranks(self) -> bool:
        """Whether questions can be compared with documents (loads the weights)."""
        return self._question_role in self.roles

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of confidence: the checkpoint's ``calibration.json``, or the one that was set; may be None.

        The file is ignored with a warning if it was made for another model.

        Raises:
            CheckpointError: The file is damaged.
            FingerprintMismatch: The calibration to set was made for another model.
        """
        with self._lock:
            if not self._calibration_known:
                loaded = self.load()
                try:
                    self._calibration = Calibration.read(loaded.checkpoint.folder, loaded.fingerprint)
                except FingerprintMismatch as exc:
                    log.warning("%s is not used: %s", CALIBRATION_FILE, exc)
                self._calibration_known = True
            return self._calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        if calibration is not None:
            calibration.check(self.fingerprint)
        self._calibration, self._calibration_known = calibration, True

    # --- loading -----------------------------------------------------------------------------------------

    def load(self, *, show_progress: bool = False) -> Loaded:
        """Load the weights now instead of at first use. A failed load may be tried again.

        Args:
            show_progress: Draw a progress bar over the weights of a large model.

        Raises:
            CheckpointError: The checkpoint or the base decoder is missing or invalid.
            EngineClosed: This process can no longer use the device, for example after a fork.
            NotEnoughMemory: The model does not fit the device; the message says which options take less memory.
        """
        with self._lock:
            if self._worker is not None and self._worker.lost is not None:
                self._lost = self._worker.lost
            if self._lost is not None:
                raise EngineClosed(self._lost)
            if self._loaded is None:
                load = partial(load_model, self.arguments, self.plan, show_progress=show_progress)
                try:
                    self._loaded = in_own_thread(load) if self.device.type == "cpu" else load()
                except BaseException:
                    self._plan = None  # the next try reads files again that were repaired
                    raise
            if self._worker is None or not self._worker.alive:
                self._worker = Worker(self._loaded.model, self.arguments.kv_cache_bytes)
            return self._loaded

    def unload(self) -> None:
        """Free the device before returning; the next use loads again. Calls that still wait raise `EngineClosed`."""
        with self._lock:
            worker, self._worker, self._loaded = self._worker, None, None
            self._recent = RecentQuestions()  # the next load may find other weights
        if worker is not None:
            worker.close()
            del worker
        gc.collect()
        release_memory()

    def stats(self) -> EngineStats:
        """Statistics of the engine at this moment; it neither waits for the worker nor loads anything."""
        worker, loaded = self._worker, self._loaded
        now = EngineStats() if worker is None else worker.stats()
        return replace(
            now,
            loaded=loaded is not None,
            weights_bytes=0 if loaded is None else loaded.weights_bytes,
            cached=len(self.cache),
            cached_bytes=self.cache.nbytes,
            kernels=str(loaded.model.processor) if loaded is not None and self.device.type == "cpu" else "",
        )

    def __repr__(self) -> str:
        state = "loaded" if self._loaded is not None else "not loaded"
        return f"ClaraEngine({self.arguments.model!r}, {self.arguments.device}, {self.arguments.dtype}, {state})"

    # --- requests ----------------------------------------------------------------------------------------

    @property
    def _question_role(self) -> Role:
        return Role.COMPRESSOR if self.arguments.reasoner == "encoder" else Role.REASONER

    def _question_request(self, questions: Sequence[str]) -> EncodeRequest | None:
        questions = list(checked_texts(questions, "questions"))
        role = self._question_role
        self._require(role)
        if not questions:
            return None
        request = EncodeRequest(prepare_questions(questions, self.tokenizer), role, urgent=True)
        self._recent.note(questions, role, request.future)
        return request

    def _recent_tokens(self, question: str) -> Tensor | None:
        """Memory tokens ``[n_mem, hidden]`` of a question; None if it was not encoded recently."""
        return self._recent.get(question, self._question_role)

    def _chat_request(
        self,
        messages: Sequence[Message],
        memories: Sequence[Memory],
        sampling: Sampling,
        as_text: Collection[int] = (),
    ) -> GenerateRequest:
        self._require(Role.GENERATOR)
        memories = self._checked(memories)
        return prepare_chat(
            messages, memories, sampling, tokenizer=self.tokenizer, model=self.load().model,
            reason=self._question_tokens if self._question_role in self.roles else None, as_text=as_text,
        )  # fmt: skip

    def _prepare_evidence(self, request: GenerateRequest, wanted: Wanted) -> None:
        """Let a request record what the evidence of its answer needs.

        Raises:
            ValueError: The attention implementation of this engine does not show the attention to documents.
        """
        if not wanted.judges:
            return
        windows = self.tokenizer.window_spans(request.ids)
        if not wanted.attends:
            request.judged_head = head_of(request.ids, windows)
            return
        if not self.load().model.own_attention:
            raise ValueError(
                f"citations='attention' needs the attention of this package, not attn_implementation="
                f"{self.arguments.attn_implementation!r}: leave that option out, or ask with citations=True"
            )
        request.watched = windows

    def _question_tokens(self, question: str) -> Tensor:
        """Memory tokens ``[n_mem, hidden]`` of one question."""
        known = self._recent_tokens(question)
        return self.reason([question])[0] if known is None else known

    def _prompt_request(self, ids: list[int], memories: Sequence[Memory], sampling: Sampling) -> GenerateRequest:
        self._require(Role.GENERATOR)
        return prepare_generation(ids, memories, sampling, tokenizer=self.tokenizer, model=self.load().model)

    def _checked(self, memories: Iterable[object]) -> list[Memory]:
        return checked_memories(memories, lambda: self.fingerprint)

    def _require(self, role: Role) -> None:
        held = self.roles
        if role not in held:
            hint = (
                ' or let the compressor read questions with reasoner="encoder" (it was not trained for them: measure)'
                if role is Role.REASONER
                else ""
            )
            msg = (
                f"{self.plan.folder} (stage {self.config.training_stage}) has no {role.label}: it holds "
                f"{', '.join(item.label for item in held)}. Use a checkpoint with {role.adapter}, such as "
                f"apple/CLaRa-7B-E2E,{hint}"
            ).rstrip(",")
            raise RoleError(msg)

    def _submit(self, request: Request) -> None:
        with self._lock:
            self.load()
            if self._worker is None:
                raise RuntimeError("the engine has no worker")
            self._worker.submit(request)

    def _submit_all(self, requests: Sequence[Request]) -> None:
        """Submit all requests, or none if one fails."""
        try:
            for request in requests:
                self._submit(request)
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def _wait(self, requests: Sequence[Request]) -> list[Any]:
        """Submit requests and wait for their results; if the wait is interrupted, all are cancelled."""
        self._submit_all(requests)
        try:
            return [request.future.result() for request in requests]
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def _drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._wait)

    async def _adrive(self, steps: Steps[T]) -> T:
        return await adrive(steps, self._submit_all, _results)


async def _results(requests: Sequence[Request]) -> list[Any]:
    """Await the results of all requests; if that is cancelled or one fails, the others are cancelled."""
    try:
        return [await asyncio.wrap_future(request.future) for request in requests]
    except BaseException:
        for request in requests:
            request.cancel()
        raise


def _forked(engine: EngineInstance | None) -> None:
    """Reset an engine in a forked child process, which has no worker thread and may have inherited held locks."""
    if engine is None:
        return
    worker, engine._worker = engine._worker, None  # noqa: SLF001 - this is a part of the class
    engine._lock = threading.RLock()  # noqa: SLF001
    engine.cache.unlock()
    engine._recent = RecentQuestions()  # noqa: SLF001
    if engine._loaded is not None:  # noqa: SLF001
        # The OpenMP threads of the forking thread do not exist here, and it would wait for them for ever. A new
        # thread, such as the worker's, starts new ones.
        torch.set_num_threads(1)
    if worker is not None:
        atexit.unregister(worker.close)  # it would wait for a lock that is never released
    if engine.device.type == "cuda" and engine._loaded is not None:  # noqa: SLF001
        engine._lost = (  # noqa: SLF001
            f"this engine was loaded on {engine.device} before the process forked, and CUDA cannot be used in both: "
            "load it in the child only (making the engine object before the fork is fine), or start processes with the "
            "method 'spawn'"
        )
