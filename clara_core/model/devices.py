"""Devices without surprises: which one is meant, what it can do, and what its errors mean.

Nothing here initialises CUDA unless it says so: an engine may be made in a process that forks later, and a process
that forks after CUDA was initialised leaves children in which it cannot be used.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from clara_core.common.errors import NotEnoughMemory

log = logging.getLogger(__name__)

R = TypeVar("R")

AMPERE = 8  # the first generation that multiplies bfloat16, and that flash attention runs on

# How the system and the libraries below torch say that memory ran out, where it is not an `OutOfMemoryError`: CUDA
# and MPS, cuBLAS and cuDNN (…ALLOC_FAILED, …ALLOCATION_FAILED), the processor's allocators, files that cannot be
# mapped. "Invalid buffer size" is one buffer larger than a Metal device takes.
_SAYS_MEMORY: Final = re.compile(
    r"out of memory|not enough memory|can't allocate|cannot allocate|ALLOC(ATION)?_FAILED|\bENOMEM\b|"
    r"invalid buffer size",
    re.IGNORECASE,
)


class DeviceLost(Exception):
    """The CUDA context is broken: nothing on the device can be used by this process any more."""


# --- which device ------------------------------------------------------------------------------------------


def definite_device(wanted: str | torch.device) -> torch.device:
    """The one name of a device: ``auto``, ``cuda`` and ``cuda:0`` are the same one. Does not initialise CUDA.

    Raises:
        ValueError: No such device, with what is there.
    """
    if str(wanted) == "auto":
        if torch.cuda.device_count():
            return torch.device("cuda", _current_cuda())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as exc:
        msg = f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {str(wanted)!r}"
        raise ValueError(msg) from exc
    if device.type == "cpu":
        return torch.device("cpu")  # the index of a processor means nothing
    if device.type == "mps" and not torch.backends.mps.is_available():
        msg = f"device={str(wanted)!r} was asked for, but torch {torch.__version__} sees no Metal device here"
        raise ValueError(msg)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    index = _current_cuda() if device.index is None else device.index
    if index >= count:
        seen = "no CUDA device" if not count else "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"device={str(wanted)!r} was asked for, but torch {torch.__version__} sees {seen} here")
    return torch.device("cuda", index)


def check_forked(device: torch.device) -> None:
    """Say clearly that CUDA was used before this process forked.

    Raises:
        RuntimeError: It was.
    """
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():  # noqa: SLF001
        raise RuntimeError(
            f"{device} cannot be used: CUDA was initialised in the process that this one was forked from. Do that in "
            "the children only, or start processes with the method 'spawn'"
        )


def _current_cuda() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device: by the driver's library, which leaves CUDA alone, else by CUDA."""
    if not torch.cuda.is_initialized():
        with suppress(Exception):  # private to torch, or no such library: CUDA itself tells as well
            return _capability_by_driver(device.index or 0)
    return torch.cuda.get_device_capability(device)


def _capability_by_driver(index: int) -> tuple[int, int]:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    # torch knows what CUDA_VISIBLE_DEVICES leaves of the machine's devices.
    physical = torch.cuda._get_nvml_device_index(index)  # noqa: SLF001
    for status in (
        library.nvmlInit_v2(),
        library.nvmlDeviceGetHandleByIndex_v2(physical, ctypes.byref(handle)),
        library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)),
    ):
        if status:
            raise OSError(f"NVML answered {status}")
    return major.value, minor.value


def default_dtype(device: torch.device) -> str:
    """The type that a device computes well: bfloat16 only where it is no emulation (not on T4 or V100)."""
    if device.type == "cuda":
        return "bfloat16" if capability(device)[0] >= AMPERE else "float16"
    return "float32"


# --- moving ------------------------------------------------------------------------------------------------


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; without them a pass takes many times as long."""
    if device.type == "cuda":
        return capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch.cpu says it under no public name
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def upload(values: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host on the device, by way of pinned memory where it is a GPU: the host does not wait."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: Tensor) -> Tensor:
    """A copy on the processor; from a GPU into pinned memory, and there only after the next wait for the device."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
    return host.copy_(tensor, non_blocking=True)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on a device (of a processor: a quarter of the machine's memory). Initialises CUDA."""
    if device.type == "cuda":
        release_memory()  # what the allocator keeps for later is free as well
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # no such question on Windows
        return 2**31


def release_memory() -> None:
    """Give cached blocks back to the device."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a broken context has nothing to give
            torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- errors ------------------------------------------------------------------------------------------------


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine: something smaller may succeed."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(exc, RuntimeError | OSError | SafetensorError) and bool(_SAYS_MEMORY.search(str(exc)))


@contextmanager
def memory_said(words: Callable[[Exception], str]) -> Iterator[None]:
    """Memory that runs out within is said in words.

    Args:
        words: Of an error, once the tensors that its frames held have been let go.

    Raises:
        NotEnoughMemory: In place of what torch or the system raises.
    """
    try:
        yield
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        traceback.clear_frames(exc.__traceback__)
        raise NotEnoughMemory(words(exc)) from exc


def is_lost(exc: BaseException, device: torch.device) -> bool:
    """Whether an error has broken the CUDA context: it stays until the process ends."""
    if device.type != "cuda" or not isinstance(exc, RuntimeError) or is_out_of_memory(exc):
        return False
    if "CUDA error" not in str(exc) and "CUBLAS_STATUS" not in str(exc):
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def attempt(run: Callable[[R], None], part: R, device: torch.device) -> Exception | None:
    """Run something; returns the error that it ended with, without the tensors that the error's frames held.

    Raises:
        DeviceLost: Nothing more can be computed on the device.
    """
    try:
        run(part)
    except DeviceLost:
        raise
    except Exception as exc:
        traceback.clear_frames(exc.__traceback__)
        if is_lost(exc, device):
            raise DeviceLost(
                f"the CUDA context of {device} is broken ({type(exc).__name__}: {str(exc).strip().splitlines()[0]}): "
                "nothing on it can be used by this process any more; restart the process"
            ) from exc
        return exc
    return None


def in_halves(
    rows: Sequence[R],
    run: Callable[[Sequence[R]], None],
    fail: Callable[[R, Exception], None],
    device: torch.device,
    what: str,
) -> int:
    """Run a batch; where it fails, its halves one after the other, and a single row that fails gets the error.

    What ran out of memory fits in parts, or alone once the cached blocks are given back; any other error reaches only
    the rows that it belongs to.

    Args:
        rows: The batch, at least one row.
        run: Called with parts of it.
        fail: Called with a single row and its error.
        device: Where it runs.
        what: The rows, for the log ("sequences").

    Returns:
        int: The largest part that ran, in rows; 0 if none did.
    """
    parts, largest = [rows], 0
    while parts:
        part = parts.pop()
        exc = attempt(run, part, device)
        if exc is not None and len(part) == 1 and is_out_of_memory(exc):
            release_memory()
            exc = attempt(run, part, device)
        if exc is None:
            largest = max(largest, len(part))
        elif len(part) == 1:
            fail(part[0], exc)
        else:
            if is_out_of_memory(exc):
                log.warning("out of memory with %d %s in a batch: going on with half of them", len(part), what)
                release_memory()
            half = len(part) // 2
            parts += [part[half:], part[:half]]
        del exc
    return largest
