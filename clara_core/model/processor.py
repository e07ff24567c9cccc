"""The choice of matrix kernels and threads on a CPU, measured on the shapes of a model when it loads.

On one CPU MKL multiplies float32 matrices twice as fast as oneDNN, on another it is the other way round. A second
thread slows down a small decode step and halves the time of a large one. The measurement takes less than `BUDGET`
seconds. Kernels differ in the order of sums, so their results agree up to rounding; name kernels by `cpu_kernels` to
use the same ones everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from clara_core.common.threads import one_thread
from clara_core.model.packed_linear import PackedLinear, packs

VERSION: Final = 3  # version of the kernels and their measurement; raise it to invalidate cached choices
BUDGET: Final = 0.3  # seconds of CPU time of the measuring thread
SMALL: Final = 8_000_000  # models of no more parameters are not measured: products take microseconds by any kernel
_SAMPLE: Final = 4_000_000  # weights of one shape to multiply; in three layouts they exceed most CPU caches
_STEP: Final = 8_000_000  # weights of the layers that represent a decode step
_ROWS: Final = (1, 8, 64)  # positions: a step of one answer, a step of several answers, a prompt
_ANSWERS: Final = (1, 4, 16)  # answers in a step
_BETTER: Final = 0.9  # a kernel must take less than this share of the other's time
_REPEATS: Final = 2
_PARALLEL: Final = 1 << 20  # numbers of an operation for which torch uses all threads

# CPU time of this thread, which other work of the machine does not disturb, if its resolution is fine enough.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution <= 1e-6 else time.perf_counter

Shape = tuple[int, int]  # outputs, inputs


@dataclass(frozen=True, slots=True)
class Kernels:
    """The matrix kernels and threads of a model on a CPU.

    Attributes:
        packed: Shapes ``(out, in)`` of weights that oneDNN packs and multiplies; None: all.
        columns: Shapes of weights that MKL multiplies in column-major layout, which halves the time of a single row if
            there are few inputs.
        adapters: Whether oneDNN multiplies the matrices of the adapters in passes over many positions.
        single: Most answers of a decode step that runs on one thread; a larger step uses all threads.
        int8: Whether weights have 8 bits; `packed` and `columns` are then ignored.
    """

    packed: frozenset[Shape] | None = None
    columns: frozenset[Shape] = frozenset()
    adapters: bool = True
    single: int = 8
    int8: bool = False

    def packs(self, shape: Shape) -> bool:
        """Whether oneDNN multiplies weights of this shape."""
        return self.packed is None or shape in self.packed

    def __str__(self) -> str:
        if self.int8:
            text = "FBGEMM, 8 bits"
        else:
            packed = "all" if self.packed is None else _listed(self.packed)
            parts = [f"oneDNN: {packed}" if packed else "MKL"]
            parts += [f"by columns: {_listed(self.columns)}"] if self.columns else []
            text = "; ".join(parts)
        return f"{text}; one thread up to {self.single} answers" if self.single else f"{text}; all threads"


PLAIN: Final = Kernels(packed=frozenset(), adapters=False)


@torch.no_grad()
def measure_products(layers: Iterable[nn.Module], adapter: Shape) -> Kernels:
    """Choose between MKL, row-major or column-major, and oneDNN for each shape of weights.

    Args:
        layers: Plain linear layers; some of each shape are measured.
        adapter: Shape of an A matrix of the adapters.
    """
    end = _clock() + 0.7 * BUDGET
    shapes: dict[Shape, list[Tensor]] = {}
    for layer in layers:
        if type(layer) is nn.Linear and packs(layer.weight.dtype):
            shapes.setdefault((layer.out_features, layer.in_features), []).append(layer.weight)
    # Shapes with the most weights first, because time may run out.
    packed: set[Shape] = set()
    columns: set[Shape] = set()
    for shape, weights in sorted(shapes.items(), key=lambda item: -sum(weight.numel() for weight in item[1])):
        if _clock() > end:
            break
        onednn, transposed = _shares((PackedLinear, by_columns), weights, _ROWS, end)
        # If both are about as fast, column-major is preferred, because `FusedLinear` can concatenate plain weights.
        if transposed < _BETTER and _BETTER * transposed <= onednn:
            columns.add(shape)
        elif onednn < _BETTER:
            packed.add(shape)
    some = next((weights[0] for weights in shapes.values()), None)
    if some is None:
        return PLAIN
    [small] = _shares((PackedLinear,), [torch.ones(adapter, dtype=some.dtype)], _ROWS[2:], end)
    return Kernels(frozenset(packed), frozenset(columns), small < _BETTER)


@contextmanager
def _other_helpers() -> Iterator[None]:
    """Another thread that has helpers meanwhile."""
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: torch.ones(_PARALLEL, device="cpu").sum()).result()
        yield


@_other_helpers()
def measure_threads(layers: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Most answers of a decode step that is faster on one thread than on all; 0 if none is.

    It is measured beside another thread with helpers (`common.threads`), because the caller may compute with torch,
    too. Without one, all threads would often be a little faster; with one, much slower.

    Args:
        layers: Linear layers of the model, frozen.
        dtype: Type of the hidden states.
    """
    if torch.get_num_threads() == 1:
        return _ANSWERS[-1]
    sample: list[nn.Module] = []
    numbers = 0
    for layer in layers:
        sample.append(layer)
        numbers += int(layer.in_features) * int(layer.out_features)  # type: ignore[arg-type]
        if numbers >= _STEP:
            break
    end = time.perf_counter() + 0.3 * BUDGET
    threads, single = StepThreads(_ANSWERS[-1]), 0
    for rows in _ANSWERS:
        inputs = [torch.ones(rows, 1, int(layer.in_features), dtype=dtype) for layer in sample]  # type: ignore[arg-type]

        def step(inputs: list[Tensor] = inputs) -> None:
            for layer, x in zip(sample, inputs, strict=True):
                layer(x)

        with threads.step(rows):
            alone = _best(step, end)
        if alone >= _best(step, end):
            break
        single = rows
        if time.perf_counter() > end:
            break
    return single


class StepThreads:
    """Limits the threads of decode steps, for the calling thread and for one step at a time.

    A decode step of a small model is hundreds of products of some microseconds each, and waking a second thread for one
    costs as much again. Measured on two Zen 4 cores with 61 M parameters: an answer of 32 tokens takes 405 ms with one
    thread and 634 ms with two in 8 bits, 674 and 663 ms in float32, if the caller computes with torch, too. If it does
    not, helpers need not be woken up: 330 and 321 ms, 679 and 568 ms. A large model is bound by memory bandwidth and
    uses all threads.

    Args:
        single: Most answers of a step that runs on one thread (`Kernels.single`).
    """

    def __init__(self, single: int) -> None:
        self._single = single

    def step(self, rows: int) -> AbstractContextManager[object]:
        """Context of a step over so many rows: one thread if that is faster, otherwise no limit."""
        return nullcontext() if rows > self._single else one_thread()


def _shares(
    kinds: Sequence[Callable[[nn.Linear], nn.Module]], weights: Sequence[Tensor], rows: Iterable[int], end: float
) -> list[float]:
    """Time of layers in other layouts relative to plain ones, as the product of the ratios over all `rows`.

    Args:
        kinds: Functions that make the other layouts.
        weights: Weights of one shape; the first ones are measured.
        rows: Positions of each pass.
        end: Time after which each pass runs only once.
    """
    shares = [1.0] * len(kinds)
    for positions in rows:
        # Fewer weights for many rows, because reading the weights takes little of that time.
        most = _SAMPLE if positions < _ROWS[-1] else _SAMPLE // 8
        some = weights[: max(1, most // weights[0].numel())]
        plain = [_plain(weight[: max(1, most // weight.shape[1])]) for weight in some]
        x = torch.ones(positions, weights[0].shape[1], dtype=weights[0].dtype)
        forms = [plain, *([kind(layer) for layer in plain] for kind in kinds)]
        calls = [lambda of=layers, x=x: [layer(x) for layer in of] for layers in forms]
        first, *others = _times(calls, end)
        shares = [share * one / first for share, one in zip(shares, others, strict=True)]
    return shares


def _plain(weight: Tensor) -> nn.Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return plain


def by_columns(layer: nn.Linear) -> nn.Linear:
    """A copy of a layer with a column-major weight."""
    other = _plain(layer.weight.t().contiguous().t())
    other.bias = layer.bias
    return other


def _times(calls: Sequence[Callable[[], object]], end: float) -> list[float]:
    """The shortest time of each call after a warm-up; after `end` there is only one run.

    The calls take turns, so that none finds its weights in the CPU caches, as in a decode step.
    """
    times = [math.inf] * len(calls)
    for _ in range(1 + _REPEATS):
        for at, call in enumerate(calls):
            start = _clock()
            call()
            times[at] = min(times[at], _clock() - start)
        if _clock() > end:
            break
    return [max(one, 1e-9) for one in times]


def _best(call: Callable[[], object], end: float) -> float:
    """The shortest wall time of some runs, which may use several threads; after `end` there is only one run."""
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return min(times)


def _listed(shapes: Iterable[Shape]) -> str:
    return ", ".join(f"{out}x{into}" for out, into in sorted(shapes))
