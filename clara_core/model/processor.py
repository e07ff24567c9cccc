"""Which products of a processor suit a model: measured on its own shapes when it loads, not known beforehand.

On one processor MKL multiplies float32 matrices twice as fast as oneDNN, on the next it is the other way round; for a
small decode step a second thread costs more than it brings, for a large one it halves the time. All of that is timed
here in less than `BUDGET` seconds. Sums come in another order by another kernel, so results agree to rounding only:
whoever wants the same kernels everywhere names them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clara_core.model.packed_linear import PackedLinear, packs

BUDGET: Final = 0.3  # seconds
SMALL: Final = 8_000_000  # weights up to which nothing is measured: products of microseconds, by whatever kernel
_SAMPLE: Final = 2_000_000  # numbers of a matrix that are multiplied
_STEP: Final = 8_000_000  # weights of the layers that stand for a decode step
_ROWS: Final = (1, 64)  # positions: a step's, a prompt's
_ANSWERS: Final = (1, 4, 16)  # rows of a step
_BETTER: Final = 0.9  # of the other's time: what is no better than that is not worth a copy of the weights
_REPEATS: Final = 3

Shape = tuple[int, int]  # outputs, inputs


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a model is multiplied on a processor.

    Attributes:
        packed: Shapes ``(out, in)`` whose weights oneDNN keeps and multiplies; None: all.
        adapters: Whether oneDNN multiplies the small matrices of the adapters in passes over many positions.
        single: Most answers of a decode step that one thread writes; more of them take all threads.
        int8: Whether weights are kept in 8 bits; then `packed` means nothing.
    """

    packed: frozenset[Shape] | None = None
    adapters: bool = True
    single: int = 8
    int8: bool = False

    def packs(self, shape: Shape) -> bool:
        """Whether oneDNN multiplies weights of this shape."""
        return self.packed is None or shape in self.packed

    def __str__(self) -> str:
        if self.int8:
            said = "FBGEMM, 8 bits"
        elif self.packed is None or self.packed:
            shapes = "all" if self.packed is None else ", ".join(f"{o}x{i}" for o, i in sorted(self.packed))
            said = f"oneDNN: {shapes}"
        else:
            said = "MKL"
        return f"{said}; one thread up to {self.single} answers" if self.single else f"{said}; all threads"


PLAIN: Final = Kernels(packed=frozenset(), adapters=False)


@torch.no_grad()
def measure_products(layers: Iterable[nn.Module], adapter: Shape) -> Kernels:
    """Choose between MKL and oneDNN for each shape.

    Args:
        layers: Plain linear ones; one of each shape is multiplied.
        adapter: Shape of an adapter's matrix.
    """
    end = time.perf_counter() + 0.6 * BUDGET
    shapes: dict[Shape, Tensor] = {}
    for layer in layers:
        if type(layer) is nn.Linear and packs(layer.weight.dtype):
            shapes.setdefault((layer.out_features, layer.in_features), layer.weight)
    # Where the most numbers lie first: time may run out.
    chosen: set[Shape] = set()
    for shape, weight in sorted(shapes.items(), key=lambda item: -item[1].numel()):
        if time.perf_counter() < end and _onednn_wins(weight[: max(1, _SAMPLE // shape[1])], _ROWS, end):
            chosen.add(shape)
    some = next(iter(shapes.values()), None)
    small = some is not None and _onednn_wins(torch.ones(adapter, dtype=some.dtype), _ROWS[1:], end)
    return Kernels(frozenset(chosen), small)


def measure_threads(layers: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Most answers of a decode step that one thread writes faster than all; 0: none.

    Args:
        layers: In the form in which they will be multiplied.
        dtype: Of hidden states.
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
    end = time.perf_counter() + 0.4 * BUDGET
    single = 0
    for rows in _ANSWERS:
        inputs = [torch.ones(rows, 1, int(layer.in_features), dtype=dtype) for layer in sample]  # type: ignore[arg-type]

        def step(inputs: list[Tensor] = inputs) -> None:
            for layer, x in zip(sample, inputs, strict=True):
                layer(x)

        with one_thread():
            alone = _best(step, end)
        if alone >= _best(step, end):
            break
        single = rows
        if time.perf_counter() > end:
            break
    return single


def one_thread() -> AbstractContextManager[object]:
    """One thread for the products inside, of the calling thread alone."""
    if torch.get_num_threads() == 1:
        return nullcontext()
    from threadpoolctl import ThreadpoolController

    limit: AbstractContextManager[object] = ThreadpoolController().select(user_api="openmp").limit(limits=1)
    return limit


def _onednn_wins(weight: Tensor, rows: Iterable[int], end: float) -> bool:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    packed = PackedLinear(plain)
    gain = 1.0
    for count in rows:
        x = torch.ones(count, weight.shape[1], dtype=weight.dtype)
        gain *= _best(lambda x=x: packed(x), end) / _best(lambda x=x: F.linear(x, weight), end)  # type: ignore[misc]
    return gain < _BETTER


def _best(call: Callable[[], object], end: float) -> float:
    """The shortest of some runs; after `end` of one, the first being warm-up while there is time for it."""
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return min(times)


def facts(kernels: Kernels) -> Mapping[str, object]:
    """As JSON has it."""
    packed = None if kernels.packed is None else sorted(map(list, kernels.packed))
    return {"packed": packed, "adapters": kernels.adapters, "single": kernels.single}


def from_facts(found: Mapping[str, object]) -> Kernels:
    """What `facts` gave.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another type.
        ValueError: Likewise.
    """
    packed, adapters, single = found["packed"], found["adapters"], found["single"]
    if not isinstance(adapters, bool) or not isinstance(single, int) or not isinstance(packed, list | None):
        raise TypeError(f"not a choice of kernels: {found!r:.100}")
    shapes = None if packed is None else frozenset((int(rows), int(columns)) for rows, columns in packed)
    return Kernels(shapes, adapters, single)
