"""Decode steps with fixed shapes and addresses, and their capture as CUDA graphs.

The steps of one size read their inputs from the same buffers and write their logits to the same place, and between the
two there are only operations of the device. So a graph of a captured step computes any later step of that size, with
one launch instead of about twenty for each layer.

For few sizes, the number of rows is rounded up, and so is the number of pages of the longest row. The rows that fill up
the batch read one position of the first page and write to a column that belongs to no page, so they change no other
row.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from clara_core.model.checkpoint.config import Role
from clara_core.model.devices import overwrite
from clara_core.model.kernels import PAGE

if TYPE_CHECKING:
    from clara_core.model.attention import Ragged
    from clara_core.model.kernels import Kernel
    from clara_core.model.kv_cache import KVCache
    from clara_core.model.kv_memory import KVRow

log = logging.getLogger(__name__)

_STRIDE: Final = 8  # rows between two sizes of larger batches


class GraphCapture:
    """Captures work on a CUDA device as graphs, until a capture fails.

    Attributes:
        works: Whether no capture has failed.
    """

    def __init__(self, device: torch.device) -> None:
        self.works = True
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def pool(self) -> Any:
        """A new pool for the memory of graphs."""
        return torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None], what: str, pool: Any) -> torch.cuda.CUDAGraph | None:
        """Capture a function that has run before; returns None if that fails, which is logged once.

        Args:
            run: Launches work on the device. It must neither wait for the device nor copy from or to the host.
            what: Name of the work in the log message.
            pool: The graph's memory; graphs that do not run at the same time may share it.
        """
        if not self.works:
            return None
        try:
            # A stream of this device, since the default one belongs to the device that captured first.
            self._stream = self._stream or torch.cuda.Stream(self._device)
            graph = torch.cuda.CUDAGraph()
            # The threads of other engines may use their devices during the capture.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                run()
        except Exception as exc:  # noqa: BLE001 - whatever CUDA, a kernel or a library raises
            traceback.clear_frames(exc.__traceback__)
            self.works = False
            reason = (str(exc).strip().splitlines() or [""])[0]
            log.warning(
                "%s could not be captured as a CUDA graph (%s: %s): no further step is captured",
                what,
                type(exc).__name__,
                reason,
            )
            return None
        log.debug("captured %s as a CUDA graph", what)
        return graph


def row_bucket(rows: int) -> int:
    """Rows of the smallest batch that holds `rows`: 1, 2, 4, 8, 16, 24, 32 and so on."""
    return power_of_two(rows) if rows <= _STRIDE else -(-rows // _STRIDE) * _STRIDE


def page_bucket(pages: int, most: int) -> int:
    """Width of the smallest table of pages that holds `pages`: 1, 2, 4, 8 and so on, and no wider than `most`."""
    return max(pages, min(power_of_two(pages), most))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


class StepBuffers:
    """The inputs of the decode steps of one size, overwritten in place before each step.

    Args:
        rows: Rows of the batch.
        pages: Width of the table of pages.
        spare: The column that other rows do not use.
        device: Device of the model.

    Attributes:
        tokens: Newest token of each row, ``[rows]``.
        positions: Rotary position of the token, ``[rows]``, int32.
        lengths: Length of the row with this token, ``[rows]``, int32.
        into: Column of the KV cache that the token's keys and values are written to, ``[rows]``, int32.
        table: Pages of each row in order, ``[rows, pages]``, int32; entries after a row's last are 0.
    """

    def __init__(self, rows: int, pages: int, spare: int, device: torch.device) -> None:
        self.rows, self.pages = rows, pages
        self._spare = spare
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        # One block, so that a step takes one transfer.
        self._numbers = torch.zeros(rows * (3 + pages), dtype=torch.int32, device=device)
        self.positions, self.lengths, self.into = self._numbers[: 3 * rows].view(3, rows).unbind()
        self.table = self._numbers[3 * rows :].view(rows, pages)

    def fill(self, tokens: Sequence[int] | Tensor, rows: Sequence[KVRow]) -> None:
        """Describe the next step of some rows, without waiting for the device.

        Args:
            tokens: The newest token of each row, as numbers or as a tensor on the device.
            rows: The rows, no more than the buffers hold.
        """
        numbers = np.zeros(self.rows * (3 + self.pages), dtype=np.int32)
        places = numbers[: 3 * self.rows].reshape(3, self.rows)
        places[1], places[2] = 1, self._spare
        table = numbers[3 * self.rows :].reshape(self.rows, self.pages)
        for at, row in enumerate(rows):
            column = row.pages[row.length // PAGE] * PAGE + row.length % PAGE
            places[:, at] = row.length, row.length + 1, column
            used = row.pages[: row.length // PAGE + 1]
            table[at, : len(used)] = used
        overwrite(self._numbers, torch.from_numpy(numbers))
        overwrite(self.tokens[: len(rows)], tokens)


@dataclass(eq=False, slots=True)
class _Size:
    """The steps of one size.

    Attributes:
        buffers: Their inputs.
        logits: Their output, ``[rows, vocab]``; None before the first step.
        graph: A captured step.
    """

    buffers: StepBuffers
    logits: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None


class FixedSteps:
    """The fused decode steps over one KV cache.

    The first step of a size is launched as usual, because libraries allocate memory and choose kernels at their first
    call, which a capture does not allow. The second step is captured, and later ones repeat it.

    Args:
        forward: Logits ``[rows, vocab]`` of a step, from token ids, positions, cache and attention.
        kernel: Kernel for attention over pages; None: attention over copies.
        most_pages: Most pages of a row.
        capture: Captures steps; None: none is captured.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, KVCache, Ragged], Tensor],
        kernel: Kernel | None,
        most_pages: int,
        capture: GraphCapture | None,
    ) -> None:
        self._forward = forward
        self._kernel = kernel
        self._most_pages = most_pages
        self._capture = capture
        self._pool: Any = None
        self._sizes: dict[tuple[int, int, Role | None], _Size] = {}
        self._logits: Tensor | None = None

    def run(self, tokens: Sequence[int] | Tensor, cache: KVCache) -> Tensor:
        """Append one token to each row of the cache: logits ``[rows, vocab]``, valid until the next step.

        Args:
            tokens: The newest token of each row, as numbers or as a tensor on the device.
            cache: The rows, which have room for a position; the caller commits it.
        """
        size = self._size(cache)
        size.buffers.fill(tokens, cache.rows)
        cache.begin_fixed_step(size.buffers)
        if size.graph is None and size.logits is not None and self._capture is not None and self._capture.works:
            self._pool = self._pool or self._capture.pool()
            what = f"a decode step of {size.buffers.rows} rows and {size.buffers.pages} pages"
            size.graph = self._capture(lambda: self._launch(size, cache), what, self._pool)
        if size.graph is not None:
            size.graph.replay()
        else:
            self._launch(size, cache)
        if size.logits is None:
            raise RuntimeError("a step has no logits")
        return size.logits[: len(cache.rows)]

    def _size(self, cache: KVCache) -> _Size:
        memory = cache.memory
        longest = max(row.length for row in cache.rows) // PAGE + 1
        rows, pages = row_bucket(len(cache.rows)), page_bucket(longest, self._most_pages)
        key = rows, pages, cache.role
        if key not in self._sizes:
            self._sizes[key] = _Size(StepBuffers(rows, pages, memory.columns, memory.shape.device))
        return self._sizes[key]

    def _launch(self, size: _Size, cache: KVCache) -> None:
        """Compute a step from its buffers. This is what is captured: no branch depends on a number in a tensor."""
        buffers = size.buffers
        logits = self._forward(buffers.tokens, buffers.positions, cache, cache.read_fixed(buffers, self._kernel))
        if size.logits is None:
            size.logits = self._output(logits)
        size.logits.copy_(logits)

    def _output(self, like: Tensor) -> Tensor:
        """Place for logits, which the sizes share because one step runs at a time."""
        rows = len(like)
        if self._logits is None or len(self._logits) < rows:
            self._logits = like.new_empty(power_of_two(rows), like.shape[1])
        return self._logits[:rows]
