"""How many processor threads a decode step takes.

A decode step of a small model is hundreds of products that each take some microseconds, and waking a second thread for
one costs as much again: more, where the caller's own thread has run parallel work too, because OpenMP then holds more
threads than there are cores. Measured on two Zen 5 cores with 60 M parameters in float32: an answer of 32 tokens takes
391 ms with one thread and 604 ms with two. A large model is bound by memory, and takes every thread there is. Where
the border lies is measured when the model loads (`model.processor`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from clara_core.model.decoder import ClaraModel


class DecodeThreads:
    """Threads for the decode steps of a model; the limit holds for the calling thread alone, and no longer than a step.

    Args:
        model: Whose steps they are.
    """

    def __init__(self, model: ClaraModel) -> None:
        self._single = model.processor.single if model.device.type == "cpu" else 0
        if self._single:
            from threadpoolctl import ThreadpoolController

            self._controller = ThreadpoolController().select(user_api="openmp")

    def step(self, rows: int) -> AbstractContextManager[object]:
        """One thread inside, where that is faster for a step of so many answers."""
        if rows > self._single:
            return nullcontext()
        limit: AbstractContextManager[object] = self._controller.limit(limits=1)
        return limit
