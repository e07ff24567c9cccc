"""The number of CPU threads of a decode step.

A decode step of a small model is hundreds of products of some microseconds each, and waking a second thread for one
costs as much again. It costs more if the caller's own thread has run parallel work too, because OpenMP then holds more
threads than there are cores. Measured on two Zen 5 cores with 60 M parameters in float32: an answer of 32 tokens takes
391 ms with one thread and 604 ms with two. A large model is bound by memory bandwidth and uses all threads. The limit
is measured when the model loads (`model.processor`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from clara_core.model.decoder import ClaraModel


class DecodeThreads:
    """Limits the threads of a model's decode steps, for the calling thread and for one step at a time."""

    def __init__(self, model: ClaraModel) -> None:
        self._single = model.processor.single if model.device.type == "cpu" else 0
        if self._single:
            from threadpoolctl import ThreadpoolController

            self._controller = ThreadpoolController().select(user_api="openmp")

    def step(self, rows: int) -> AbstractContextManager[object]:
        """Context of a step over so many rows: one thread if that is faster, otherwise no limit."""
        if rows > self._single:
            return nullcontext()
        limit: AbstractContextManager[object] = self._controller.limit(limits=1)
        return limit
