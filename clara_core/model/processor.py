"""Which products of a processor suit a model: measured on its own shapes when it loads, not known beforehand.

On one processor MKL multiplies float32 matrices twice as fast as oneDNN, on the next it is the other way round; for a
small decode step a second thread costs more than it brings, for a large one it halves the time. All of that is timed
here in less than `BUDGET` seconds. Sums come in another order by another kernel, so results agree to rounding only:
whoever wants the same kernels everywhere names them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from clara_core.model.packed_linear import PackedLinear, packs

BUDGET: Final = 0.3  # seconds, of the thread that measures
SMALL: Final = 8_000_000  # weights up to which nothing is measured: products of microseconds, by whatever kernel
_SAMPLE: Final = 2_000_000  # numbers of one shape that are multiplied: more than a core's own caches hold
_STEP: Final = 8_000_000  # weights of the layers that stand for a decode step
_ROWS: Final = (1, 8, 64)  # positions: of a step alone, of a step of several answers, of a prompt
_ANSWERS: Final = (1, 4, 16)  # rows of a step
_BETTER: Final = 0.9  # of the other's time: what is no better than that is not worth a copy of the weights
_REPEATS: Final = 2

# Of this thread alone, which other work of the machine does not disturb, where the system has it fine enough.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution <= 1e-6 else time.perf_counter

Shape = tuple[int, int]  # outputs, inputs


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a model is multiplied on a processor.

    Attributes:
        packed: Shapes ``(out, in)`` whose weights oneDNN keeps and multiplies; None: all.
        columns: Shapes whose weights MKL multiplies column by column: an answer alone takes half the time where
            rows are short.
        adapters: Whether oneDNN multiplies the small matrices of the adapters in passes over many positions.
        single: Most answers of a decode step that one thread writes; more of them take all threads.
        int8: Whether weights are kept in 8 bits; then `packed` means nothing.
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
            said = "FBGEMM, 8 bits"
        else:
            packed = "all" if self.packed is None else _said(self.packed)
            parts = [f"oneDNN: {packed}" if packed else "MKL"]
            parts += [f"by columns: {_said(self.columns)}"] if self.columns else []
            said = "; ".join(parts)
        return f"{said}; one thread up to {self.single} answers" if self.single else f"{said}; all threads"


PLAIN: Final = Kernels(packed=frozenset(), adapters=False)


@torch.no_grad()
def measure_products(layers: Iterable[nn.Module], adapter: Shape) -> Kernels:
    """Choose between MKL, by rows or by columns, and oneDNN for each shape.

    Args:
        layers: Plain linear ones; some of each shape are multiplied.
        adapter: Shape of an adapter's matrix.
    """
    end = _clock() + 0.7 * BUDGET
    shapes: dict[Shape, list[Tensor]] = {}
    for layer in layers:
        if type(layer) is nn.Linear and packs(layer.weight.dtype):
            shapes.setdefault((layer.out_features, layer.in_features), []).append(layer.weight)
    # Where the most numbers lie first: time may run out.
    packed: set[Shape] = set()
    columns: set[Shape] = set()
    for shape, weights in sorted(shapes.items(), key=lambda item: -sum(weight.numel() for weight in item[1])):
        if _clock() > end:
            break
        onednn, transposed = _shares((PackedLinear, by_columns), weights, _ROWS, end)
        # Where both are as fast: weights that are not packed can be put together with those beside them.
        if transposed < _BETTER and _BETTER * transposed <= onednn:
            columns.add(shape)
        elif onednn < _BETTER:
            packed.add(shape)
    some = next((weights[0] for weights in shapes.values()), None)
    if some is None:
        return PLAIN
    [small] = _shares((PackedLinear,), [torch.ones(adapter, dtype=some.dtype)], _ROWS[2:], end)
    return Kernels(frozenset(packed), frozenset(columns), small < _BETTER)


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
    end = time.perf_counter() + 0.3 * BUDGET
    single = 0
    for rows in _ANSWERS:
        inputs = [torch.ones(rows, 1, int(layer.in_features), dtype=dtype) for layer in sample]  # type: ignore[arg-type]

        def step(inputs: list[Tensor] = inputs) -> None:
            for layer, x in zip(sample, inputs, strict=True):
                layer(x)

        with one_thread():
            alone = _best(step, end, time.perf_counter)
        if alone >= _best(step, end, time.perf_counter):  # by the clock: the time of several threads
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


def _shares(
    kinds: Sequence[Callable[[nn.Linear], nn.Module]], weights: Sequence[Tensor], rows: Iterable[int], end: float
) -> list[float]:
    """Time of layers in other forms as shares of MKL's, the product over so many rows at once.

    Args:
        kinds: Make the other forms.
        weights: Of one shape; the first ones are multiplied.
        rows: Positions of each pass.
        end: When time is over.
    """
    shares = [1.0] * len(kinds)
    for positions in rows:
        # Of many rows fewer numbers: reading them takes next to no time there.
        most = _SAMPLE if positions < _ROWS[-1] else _SAMPLE // 8
        plain = [_plain(weight[: max(1, most // weight.shape[1])]) for weight in _first(weights, most)]
        x = torch.ones(positions, weights[0].shape[1], dtype=weights[0].dtype)
        forms = [plain, *([kind(layer) for layer in plain] for kind in kinds)]
        first, *others = [_best(lambda of=layers, x=x: [layer(x) for layer in of], end) for layers in forms]  # type: ignore[misc]
        shares = [share * one / first for share, one in zip(shares, others, strict=True)]
    return shares


def _first(weights: Sequence[Tensor], most: int) -> Sequence[Tensor]:
    """As many as hold so many numbers together, one at least."""
    return weights[: max(1, most // weights[0].numel())]


def _plain(weight: Tensor) -> nn.Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return plain


def by_columns(layer: nn.Linear) -> nn.Linear:
    """A layer whose weight lies column by column."""
    other = _plain(layer.weight.t().contiguous().t())
    other.bias = layer.bias
    return other


def _best(call: Callable[[], object], end: float, clock: Callable[[], float] = _clock) -> float:
    """The shortest of some runs; after `end` of one, the first being warm-up while there is time for it."""
    times = []
    for _ in range(1 + _REPEATS):
        start = clock()
        call()
        times.append(clock() - start)
        if clock() > end:
            break
    return max(min(times), 1e-9)


def facts(kernels: Kernels) -> Mapping[str, object]:
    """As JSON has it."""
    packed = None if kernels.packed is None else sorted(map(list, kernels.packed))
    columns = sorted(map(list, kernels.columns))
    return {"packed": packed, "columns": columns, "adapters": kernels.adapters, "single": kernels.single}


def from_facts(found: Mapping[str, object]) -> Kernels:
    """What `facts` gave.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is of another type.
        ValueError: Likewise.
    """
    packed, columns, adapters, single = (found[name] for name in ("packed", "columns", "adapters", "single"))
    if not isinstance(adapters, bool) or not isinstance(single, int):
        raise TypeError(f"not a choice of kernels: {found!r:.100}")
    if not isinstance(packed, list | None) or not isinstance(columns, list):
        raise TypeError(f"not a choice of kernels: {found!r:.100}")
    return Kernels(None if packed is None else _shapes(packed), _shapes(columns), adapters, single)


def _shapes(pairs: Iterable[Sequence[int]]) -> frozenset[Shape]:
    return frozenset((int(out), int(into)) for out, into in pairs)


def _said(shapes: Iterable[Shape]) -> str:
    return ", ".join(f"{out}x{into}" for out, into in sorted(shapes))
