"""A simulated CUDA device: tensors on the processor that report `cuda:N`, with its errors and counters.

A `FakeCuda` tensor wraps a tensor on the processor. Every operation is computed on the processor in the requested type,
so bfloat16 has the rounding of bfloat16.

* An operation that mixes devices raises the error of CUDA. Tensors without dimensions are allowed, and index tensors on
  the processor where PyTorch accepts them. `.numpy()` and a generator of the processor raise errors, too.
* Every wait of the host for the device is counted, with the line of the caller: `.item()`, `.tolist()`, `.cpu()`,
  copies from memory that is not pinned, boolean masks, `nonzero`.
* Every operation that would launch a kernel is counted, with its name.
* Live bytes are counted. Above `limit` an allocation raises `torch.OutOfMemoryError`; `fail_at` lets the n-th one fail.
* Everything that is computed passes through `computed`, which can log it (`STATS.recorded`) and capture it
  (`graphs.py`).

Not simulated: the kernels themselves, streams, asynchronous errors, fragmentation, gradients.
"""

from __future__ import annotations

import collections
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import torch
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
N_DEVICES = 2
ROOTS = ("clara_core",)


class Launch(NamedTuple):
    """An operation with the tensors of the processor that it reads and gives; to write in place is to give again."""

    name: str
    reads: list[torch.Tensor]
    gives: list[torch.Tensor]


class Stats:
    """Counters of the device."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.limit: int | None = None
        self.fail_at: int | None = None
        self.allocations = 0
        self.live = 0
        self.peak = 0
        self._holders: dict[int, list[int]] = {}  # storage -> [wrappers, bytes]
        self.reset()

    def reset(self) -> None:
        self.launches: collections.Counter[str] = collections.Counter()
        self.syncs: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()  # bytes by kind
        self.emptied: list[int] = []  # live bytes at each empty_cache()
        self.trace: list[str] | None = None
        self.recorded: list[Launch] | None = None  # holds its tensors, so that no two have one address

    def launch(self, name: str, made: torch.Tensor | None = None) -> None:
        """Count a kernel; if `made` is given, its first input or its result, the trace has its shape, too."""
        with self.lock:
            self.launches[name] += 1
            if self.trace is not None:
                self.trace.append(name if made is None else f"{name} {tuple(made.shape)}")

    def transfer(self, kind: str, size: int) -> None:
        """Count the bytes of a copy between host and device."""
        refuse_captured(f"a copy from {kind}")
        self.copies[kind] += size

    def sync(self, kind: str) -> None:
        refuse_captured(f"a wait of the host ({kind})")
        with self.lock:
            self.syncs[f"{kind}  {caller()}"] += 1
            if self.trace is not None:
                self.trace.append(f"SYNC {kind} {caller()}")

    def hold(self, wrapper: FakeCuda, inner: torch.Tensor) -> None:
        storage = inner.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        with self.lock:
            entry = self._holders.get(key)
            if entry is None:
                self.allocations += 1
                if self.allocations == self.fail_at or (self.limit is not None and self.live + size > self.limit):
                    raise torch.OutOfMemoryError(
                        f"CUDA out of memory. Tried to allocate {size} bytes, {self.live} of {self.limit} in use (fake)"
                    )
                self._holders[key] = entry = [0, size]
                self.live += size
                self.peak = max(self.peak, self.live)
            entry[0] += 1
        wrapper.let_go = weakref.finalize(wrapper, self._let_go, key)

    def _let_go(self, key: int) -> None:
        with self.lock:
            entry = self._holders[key]
            entry[0] -= 1
            if not entry[0]:
                self.live -= entry[1]
                del self._holders[key]


STATS = Stats()
CAPTURE = threading.local()  # its `tape` is the graph that this thread captures


def tape() -> Any:
    """The graph that this thread captures; None if it captures none."""
    return getattr(CAPTURE, "tape", None)


def refuse_captured(what: str) -> None:
    """Raise what CUDA raises for work that a graph cannot hold."""
    if tape() is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what} (fake)")


def computed(name: str, run: Callable[[], Any], reads: Iterable[Any] = (), writes: Iterable[torch.Tensor] = ()) -> Any:
    """What `run` computes on the processor.

    Args:
        name: Name of the operation.
        run: Computes it, from tensors that it holds; called again by each replay of a captured graph.
        reads: These tensors, among other things.
        writes: Those that it changes.
    """
    graph, reads = tape(), [one for one in reads if isinstance(one, torch.Tensor)]
    if graph is not None:
        graph.before(writes)
    with torch.no_grad():
        out = run()
    gives = [one for one in tree_flatten(out)[0] if isinstance(one, torch.Tensor)]
    if STATS.recorded is not None:
        STATS.recorded.append(Launch(name, reads, gives))
    if graph is not None:
        graph.add(run, reads, gives)
    return out


def caller() -> str:
    """The innermost line of the project, or the innermost line outside torch."""
    frame = sys._getframe(1)
    other = "?"
    while frame is not None:
        path = frame.f_code.co_filename
        for root in ROOTS:
            at = path.rfind(f"/{root}/")
            if at >= 0:
                deep = "" if other == "?" else f" <- {other}"
                return f"{path[at + 1 :]}:{frame.f_lineno}{deep}"
        if other == "?" and "fakecuda.py" not in path and "/torch/" not in path:
            other = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return other


def index_of(device: Any) -> int | None:
    """The number of a CUDA device; None for other devices."""
    if isinstance(device, bool) or device is None:
        return None
    if isinstance(device, int):
        return device
    device = torch.device(device)
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= N_DEVICES:
        raise RuntimeError("CUDA error: invalid device ordinal (fake)")
    return index


class FakeCuda(torch.Tensor):
    """A tensor on the processor that reports the device `cuda:N`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int) -> Self:
        assert type(inner) is torch.Tensor, type(inner)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("cuda", index),
        )
        made.inner = inner
        STATS.hold(made, inner)
        if tape() is not None:
            tape().kept.append(made)  # the graph's memory
        return made

    def __repr__(self, **_: Any) -> str:
        return f"FakeCuda({self.inner!r}, device='{self.device}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeCuda:
        copy = FakeCuda(self.inner.detach().clone(), self.device.index)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def plain(value: Any) -> Any:
    return value.inner if isinstance(value, FakeCuda) else value


def to_device(value: torch.Tensor, index: int) -> FakeCuda:
    value = value.detach()
    return FakeCuda(value if type(value) is torch.Tensor else value.as_subclass(torch.Tensor), index)


# Operations that only return views or read the shape of a tensor.
NO_KERNEL = {
    "detach",
    "alias",
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "split",
    "split_with_sizes",
    "as_strided",
    "unbind",
    "reshape",
    "_reshape_alias",
    "diagonal",
    "unfold",
    "narrow",
    "view_as_real",
    "is_pinned",
    "sym_size",
    "sym_stride",
    "sym_numel",
    "size",
    "stride",
    "dim",
    "device",
    "empty_like",
    "empty",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
    "is_same_size",
    "lift_fresh",
    "chunk",
    "_fused_sdp_choice",
    "is_contiguous",
    "sym_storage_offset",
    "storage_offset",
    "layout",
}
WAITS = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "bincount", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::").removeprefix("prim::")
    if name == "device":
        return args[0].device
    flat, _ = tree_flatten((args, kwargs))
    fakes = [value for value in flat if isinstance(value, FakeCuda)]
    indices = sorted({fake.device.index for fake in fakes})
    index = indices[0]
    if name == "copy_":
        return copy_(*args, **kwargs)
    if len(indices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:{indices} in {func} (fake)")
    if name == "_to_copy":
        return to_copy(args[0], kwargs, index)
    check_same(func, name, args, kwargs, index)
    for value in flat:
        if isinstance(value, torch.Generator) and value.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu' (fake)")
    if name == "_local_scalar_dense":
        STATS.sync("item")
        return args[0].inner.item()
    if name in WAITS:
        STATS.sync(name)
    if name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
        isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    ):
        STATS.sync("boolean index")
    if name not in NO_KERNEL:
        STATS.launch(name, fakes[0])
    wanted = kwargs.get("device")
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        if wanted is not None and index_of(wanted) is None:
            return func(*tree_map(plain, args), **tree_map(plain, kwargs))
        index = index if wanted is None else index_of(wanted)
    if kwargs.get("pin_memory"):
        raise RuntimeError("only dense CPU tensors can be pinned (fake)")
    args_inside, kwargs_inside = tree_map(plain, args), tree_map(plain, kwargs)
    out = computed(
        name,
        lambda: func(*args_inside, **kwargs_inside),
        [fake.inner for fake in fakes],
        [one for one, taken in zip(args_inside, func._schema.arguments, strict=False) if changes(one, taken)],
    )
    if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
        if isinstance(args[0], FakeCuda) and args[0].shape != args[0].inner.shape:
            raise NotImplementedError(f"{func} changes the shape in place")
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return tree_map(lambda value: FakeCuda(value, index) if isinstance(value, torch.Tensor) else value, out)


def changes(value: Any, taken: Any) -> bool:
    """Whether an operation writes to the tensor that it takes as this argument."""
    return isinstance(value, torch.Tensor) and taken.alias_info is not None and taken.alias_info.is_write


def check_same(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
    """Raise an error if CUDA would refuse a tensor of the processor among the arguments."""
    looked = list(args)
    if name in INDEXED and isinstance(args[0], FakeCuda):
        looked[1] = None  # index tensors may be on any device
    for value in tree_flatten((looked, kwargs))[0]:
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeCuda) and value.device.type != "meta":
            if value.dim() == 0 and name not in ("cat", "stack", "mm", "bmm", "addmm", "embedding", "gather"):
                continue
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:{index} and "
                f"{value.device}! (in {func}, {tuple(value.shape)}, fake)"
            )


def copy_(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    into, out_of = isinstance(target, FakeCuda), isinstance(source, FakeCuda)
    if into and out_of:
        STATS.launch("copy_")
    elif into:
        STATS.transfer("host to device", source.nbytes)
        if source.dim() and not (non_blocking and getattr(source, "fake_pinned", False)):
            STATS.sync("copy_ from pageable host")
    else:
        STATS.transfer("device to host", source.nbytes)
        if not (non_blocking and getattr(target, "fake_pinned", False)):
            STATS.sync("copy_ to host")
    to, of = plain(target), plain(source)
    computed("copy_", lambda: to.copy_(of), [one.inner for one in (source, target) if isinstance(one, FakeCuda)], [to])
    return target


def to_copy(value: FakeCuda, kwargs: dict[str, Any], index: int) -> torch.Tensor:
    wanted = kwargs.get("device")
    options = {key: given for key, given in kwargs.items() if key in ("dtype", "layout", "memory_format")}
    of = value.inner
    made = computed("_to_copy", lambda: aten._to_copy.default(of, **options), [of])
    if wanted is not None and torch.device(wanted).type != "cuda":
        STATS.transfer("device to host", made.nbytes)
        STATS.sync("to host")
        return made
    STATS.launch("_to_copy")
    return FakeCuda(made, index if wanted is None else index_of(wanted))
