"""Installs the simulated device in this process: a CUDA API that agrees with its tensors, and an attention kernel.

It stays until the process ends, so its tests run in a process of their own (see `conftest.py`).
"""

from __future__ import annotations

import threading
from itertools import pairwise

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.gpu.device import (
    N_DEVICES,
    STATS,
    FakeCuda,
    Stats,
    computed,
    copy_,
    index_of,
    plain,
    refuse_captured,
    to_device,
)
from tests.gpu.graphs import FakeGraph, FakeStream, capturing
from tests.reference import PlainKernel

try:
    from torch.nn.attention import varlen as VARLEN
except ImportError:  # before torch 2.13: the engine attends without a kernel
    VARLEN = None

SDPA = torch.nn.functional.scaled_dot_product_attention
T = torch.Tensor


class FakeMode(TorchFunctionMode):
    """Operations without a device tensor as argument (factories, moves to the device), and exits from PyTorch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in MOVES:
            return MOVES[func](func, args, kwargs)
        if func is SDPA and any(isinstance(value, FakeCuda) for value in (*args, *kwargs.values())):
            return attention(args, kwargs)
        device = kwargs.get("device")
        if device is not None and not (args and isinstance(args[0], FakeCuda)):
            index = index_of(device) if not isinstance(device, torch.Tensor) else None
            if index is not None:
                options = {**kwargs, "device": "cpu"}
                name = getattr(func, "__name__", "factory")
                inner = computed(name, lambda: func(*tree_map(plain, args), **options))
                if not isinstance(inner, torch.Tensor):
                    return inner
                requires = inner.requires_grad
                if func is torch.tensor or func is torch.as_tensor:
                    STATS.transfer("host to device", inner.nbytes)
                    STATS.sync("torch.tensor(host data, device)")
                elif func is not torch.empty:
                    STATS.launch(name)
                made = to_device(inner, index)
                return made.requires_grad_() if requires else made
        return func(*args, **kwargs)


def moved(func, args, kwargs):
    value = args[0]
    copy = kwargs.pop("copy", False) if kwargs else False
    if func is T.cuda:
        device, dtype, non_blocking = torch.device("cuda", (args[1:] and index_of(args[1])) or 0), None, False
    elif func is T.cpu:
        device, dtype, non_blocking = torch.device("cpu"), None, False
    else:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
    index = index_of(device)
    if isinstance(value, FakeCuda):
        if device is None or index == value.device.index:
            return func(value, dtype) if dtype is not None and dtype is not value.dtype else value
        if index is None:
            STATS.transfer("device to host", value.nbytes)
            STATS.sync("to host" if func is not T.cpu else ".cpu()")
            if device.type == "meta":
                return value.inner.to("meta")
            return value.inner.detach().clone().to(dtype or value.dtype)
        return FakeCuda(value.inner.detach().to(dtype or value.dtype).clone(), index)
    if index is None or value.device.type == "meta":
        return func(*args, **kwargs, **({"copy": True} if copy else {}))
    STATS.transfer("host to device", value.nbytes)
    if value.dim() and not (non_blocking and getattr(value, "fake_pinned", False)):
        STATS.sync("pageable host to device")
    of = value.detach().as_subclass(torch.Tensor)
    inner = computed("host to device", lambda: of.to(dtype or value.dtype).clone())
    made = FakeCuda(inner, index)
    return made.requires_grad_() if value.requires_grad and torch.is_grad_enabled() else made


def leaves(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        if func is T.tolist:
            STATS.sync("tolist")
            return args[0].inner.tolist()
        raise TypeError(
            f"can't convert {args[0].device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first. (fake)"
        )
    return func(*args, **kwargs)


def pinned(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        raise RuntimeError("cannot pin a cuda tensor, only dense CPU tensors can be pinned (fake)")  # noqa: TRY004 - as torch
    refuse_captured("pinned memory")
    copy = args[0].clone()
    copy.fake_pinned = True
    return copy


def indexed(func, args, kwargs):
    """`x[i]` and `x[i] = y`: their bindings take a guard of the device, which this build lacks."""
    value, place = args[0], args[1]
    parts = [one for one in tree_flatten(place)[0] if isinstance(one, torch.Tensor)]
    given = args[2] if func is T.__setitem__ else None
    if not isinstance(value, FakeCuda):
        if any(isinstance(one, FakeCuda) and one.dim() for one in parts):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu) (fake)"
            )
        if isinstance(given, FakeCuda):
            STATS.sync("copy_ to host")
        for one in parts:
            if isinstance(one, FakeCuda):
                STATS.sync("item as index")
        return func(value, tree_map(plain, place), *map(plain, args[2:]))
    index = value.device.index
    for one in parts:
        if isinstance(one, FakeCuda) and one.device.index != index:
            raise RuntimeError("indices on another device (fake)")
        if one.dtype in (torch.bool, torch.uint8):
            STATS.sync("boolean index")
            STATS.launch("nonzero")
        if not isinstance(one, FakeCuda):
            STATS.sync("host index tensor")
    lists = any(isinstance(one, list) for one in (place if isinstance(place, tuple) else (place,)))
    if lists:
        STATS.sync("host list as index")
    advanced = bool(parts) or lists
    inner, where, put = value.inner, tree_map(plain, place), plain(given)
    if func is T.__getitem__:
        STATS.launch("index") if advanced else None
        return FakeCuda(
            computed("index" if advanced else "slice", lambda: inner[where], [inner, *map(plain, parts)]), index
        )
    if isinstance(given, torch.Tensor) and not isinstance(given, FakeCuda) and given.dim():
        if advanced:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:{index} and "
                "cpu! (index_put_, fake)"
            )
        STATS.sync("copy_ from pageable host")
    STATS.launch("index_put_" if advanced else "copy_ or fill_")

    def write() -> torch.Tensor:
        inner[where] = put
        return inner

    computed("index_put_", write, [inner, put, *map(plain, parts)], [inner])
    return None


def scalar(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        STATS.sync("item")
        return func(args[0].inner, *args[1:], **kwargs)
    return func(*args, **kwargs)


def counted(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        STATS.sync("nonzero")
        STATS.launch("nonzero")
        index = args[0].device.index
        made = func(args[0].inner, *args[1:], **kwargs)
        return tree_map(lambda one: FakeCuda(one, index), made)
    return func(*args, **kwargs)


def data(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        return FakeCuda(args[0].inner.detach(), args[0].device.index)
    return func(*args, **kwargs)


def data_set(func, args, kwargs):
    func(*args, **kwargs)
    if isinstance(args[0], FakeCuda) and isinstance(args[1], FakeCuda):
        args[0].let_go()
        args[0].inner = args[1].inner.detach()
        STATS.hold(args[0], args[0].inner)


def copied(func, args, kwargs):
    """`copy_` takes a guard of the device above the dispatcher."""
    if any(isinstance(one, FakeCuda) for one in args):
        return copy_(*args, **kwargs)
    return func(*args, **kwargs)


def contiguous(func, args, kwargs):
    if isinstance(args[0], FakeCuda):
        inner = args[0].inner
        if inner.is_contiguous():
            return args[0]
        STATS.launch("clone")
        return FakeCuda(computed("clone", lambda: inner.detach().contiguous(), [inner]), args[0].device.index)
    return func(*args, **kwargs)


def fused_norm(func, args, kwargs):
    """One kernel (`aten::_fused_rms_norm`) in a torch that is built for CUDA; this one takes it apart before."""
    if not isinstance(args[0], FakeCuda):
        return func(*args, **kwargs)
    STATS.launch("_fused_rms_norm")
    inner, options = tree_map(plain, args), tree_map(plain, kwargs)
    out = computed("_fused_rms_norm", lambda: func(*inner, **options), [*inner, *options.values()])
    return FakeCuda(out, args[0].device.index)


MOVES = {
    torch.nn.functional.rms_norm: fused_norm,
    T.contiguous: contiguous, T.copy_: copied, T.data.__set__: data_set, T.data.__get__: data,
    T.__getitem__: indexed, T.__setitem__: indexed, T.item: scalar, T.__float__: scalar, T.__int__: scalar,
    T.__bool__: scalar, T.__index__: scalar, T.nonzero: counted, torch.nonzero: counted, T.to: moved, T.cuda: moved,
    T.cpu: moved, T.numpy: leaves, T.__array__: leaves, T.tolist: leaves, T.pin_memory: pinned,
}  # fmt: skip


def attention(args, kwargs):
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    for value in tensors:
        if not isinstance(value, FakeCuda):
            raise RuntimeError("Expected all tensors on cuda in scaled_dot_product_attention (fake)")  # noqa: TRY004 - as torch
    query = args[0]
    mask = kwargs.get("attn_mask")
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        raise RuntimeError(f"Expected attn_mask dtype bool or {query.dtype}, got {mask.dtype} (fake)")
    if len({value.dtype for value in args[:3]}) > 1:
        raise RuntimeError("Expected query, key, and value to have the same dtype (fake)")
    if query.dtype is torch.float32:
        kind = "efficient or math"
    elif mask is not None:
        kind = "efficient (mask)"
    else:
        kind = "flash"
    if kwargs.get("enable_gqa") and mask is not None:
        kind = "MATH (gqa with mask)"
    STATS.launch(f"sdpa {kind}")
    inner, options = tree_map(plain, args), tree_map(plain, kwargs)
    out = computed(f"sdpa {kind}", lambda: SDPA(*inner, **options), [*inner, *options.values()])
    return FakeCuda(out, query.device.index)


_current = threading.local()


def fake_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    """`torch.nn.attention.varlen.varlen_attn` by its documentation, row by row."""
    tensors = [one for one in (query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table) if one is not None]
    if not all(isinstance(one, FakeCuda) and one.device == query.device for one in tensors):
        raise RuntimeError("varlen_attn wants all tensors on one CUDA device (fake)")
    if query.dtype not in (torch.bfloat16, torch.float16) or {query.dtype} != {key.dtype, value.dtype}:
        raise RuntimeError("FlashAttention only supports fp16 and bf16 (fake)")
    if any(one.dtype is not torch.int32 for one in tensors[3:]):
        raise RuntimeError("lengths and tables have to be int32 (fake)")
    if (block_table is None) != (seqused_k is None):
        raise RuntimeError("block_table requires seqused_k (fake)")
    if not enable_gqa and query.shape[1] != key.shape[-2]:
        raise ValueError("heads differ: set enable_gqa (fake)")
    assert window_size[1] == 0, "the engine's attention is causal"
    window = None if window_size[0] < 0 else window_size[0] + 1
    STATS.launch("varlen_attn")
    inner = [one.inner for one in (query, key, value)]
    starts, others = cu_seq_q.inner, [plain(one) for one in (cu_seq_k, seqused_k, block_table)]

    def attend() -> torch.Tensor:
        if others[2] is None:
            assert torch.equal(starts, others[0])
            assert max_q == max_k == max(end - start for start, end in pairwise(starts.tolist()))
            out = PlainKernel().packed(*inner, starts=starts, longest=max_q, scale=scale, window=window)
        else:
            assert key.shape[1] % 256 == 0, "pages are multiples of 256"
            assert int(others[1].max()) <= max_k, "a row is longer than the kernel was told"
            out = PlainKernel().paged(
                *inner, table=others[2], lengths=others[1], starts=starts, queries=max_q, longest=max_k, scale=scale,
                window=window,
            )  # fmt: skip
        return out.contiguous()

    return FakeCuda(computed("varlen_attn", attend, [*inner, starts, *others]), query.device.index)


def install() -> Stats:
    """Make `torch.cuda` say that there are devices, and every thread from now on compute on them."""

    class Properties:
        name, major, minor, total_memory, multi_processor_count = "Fake H200", 9, 0, 141 << 30, 132
        gcnArchName = ""  # noqa: N815 - torch's name

    class Event:
        """Everything has happened by the time that it is asked."""

        def record(self, stream=None):
            pass

        def synchronize(self):
            STATS.sync("event")

    def set_device(device):
        _current.index = index_of(device) or 0

    def empty_cache():
        STATS.emptied.append(STATS.live)

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: N_DEVICES,
        "current_device": lambda: getattr(_current, "index", 0),
        "set_device": set_device,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: Properties(),
        "get_device_name": lambda device=None: "Fake H200",
        "empty_cache": empty_cache,
        "synchronize": lambda device=None: STATS.sync("synchronize"),
        "mem_get_info": lambda device=None: ((STATS.limit or (141 << 30)) - STATS.live, STATS.limit or (141 << 30)),
        "memory_allocated": lambda device=None: STATS.live,
        "max_memory_allocated": lambda device=None: STATS.peak,
        "Event": Event,
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": capturing,
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }.items():
        setattr(torch.cuda, name, value)
    # `param.data = moved` would leave a parameter of the plain class behind.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    if VARLEN is not None:
        VARLEN.varlen_attn = fake_varlen
    run = threading.Thread.run

    def run_in_mode(self):
        with FakeMode():
            run(self)

    threading.Thread.run = run_in_mode
    mode = FakeMode()
    mode.__enter__()
    install.mode = mode  # kept for the life of the process
    return STATS
