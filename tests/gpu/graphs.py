"""CUDA graphs of the fake device: what is captured is not computed, and each replay computes it again in its place.

As on a card, a capture refuses waits of the host and copies from or to it, what it launches changes nothing until the
graph is replayed, and a replay reads and writes the addresses of the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch

from tests.gpu.device import CAPTURE, STATS, index_of


class FakeStream:
    """A stream by its device."""

    def __init__(self, device: Any = None) -> None:
        self.device = device


class FakeGraph:
    """A `torch.cuda.CUDAGraph`: the operations of a capture with their tensors.

    Attributes:
        kept: Tensors that were made during the capture: the graph's memory.
        replays: How often it was replayed.
    """

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.replays = 0
        self._steps: list[tuple[Callable[[], Any], list[torch.Tensor]]] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._made: list[torch.Tensor] = []
        self._ready = False

    def before(self, writes: Iterable[torch.Tensor]) -> None:
        """Note what tensors hold before an operation of the capture changes them."""
        self._before += [(one, one.clone()) for one in writes]

    def add(self, run: Callable[[], Any], reads: list[torch.Tensor], gives: list[torch.Tensor]) -> None:
        """Add an operation."""
        known = {one.untyped_storage().data_ptr() for one in reads}
        self._made += [one for one in gives if one.untyped_storage().data_ptr() not in known]
        self._steps.append((run, gives))

    def end(self) -> None:
        """Undo what the capture computed; on a card it would not have been computed."""
        for one, held in reversed(self._before):
            one.copy_(held)
        for one in self._made:
            if one.is_floating_point():
                one.fill_(torch.nan)
        self._before, self._made, self._ready = [], [], True

    def replay(self) -> None:
        """Compute the operations again, from the numbers that their tensors hold now."""
        if not self._ready:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture. (fake)")
        self.replays += 1
        STATS.launch("graph")
        with torch.no_grad():
            for run, gives in self._steps:
                out = run()
                again = out if isinstance(out, tuple | list) else [out]
                for one, new in zip(gives, [one for one in again if isinstance(one, torch.Tensor)], strict=True):
                    if one.data_ptr() != new.data_ptr():
                        one.copy_(new)


class capturing:  # noqa: N801 - as `torch.cuda.graph`, whose place it takes
    """Captures what its thread launches inside the ``with`` block."""

    def __init__(
        self, graph: FakeGraph, pool: Any = None, stream: FakeStream | None = None, capture_error_mode: str = "global"
    ) -> None:
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        assert stream is None or index_of(stream.device) is not None
        self._graph = graph

    def __enter__(self) -> Self:
        STATS.sync("beginning of a capture")
        CAPTURE.tape = self._graph
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        CAPTURE.tape = None
        self._graph.end()
        if kind is not None:
            self._graph._ready = False
