"""Devices: resolving their names, their capabilities, transfers, and the meaning of their errors.

Functions initialise CUDA only if their docstring says so, because an engine may be created in a process that forks
later, and CUDA cannot be used in a child that was forked after its initialisation.
"""

from __future__ import annotations

import ctypes
import logging
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

# Messages of out-of-memory errors other than `torch.OutOfMemoryError`: CUDA and MPS, cuBLAS and cuDNN (…ALLOC_FAILED,
# …ALLOCATION_FAILED), allocators of the CPU, files that cannot be mapped. "Invalid buffer size" means that one buffer
# is larger than a Metal device supports.
_SAYS_MEMORY: Final = re.compile(
    r"out of memory|not enough memory|can't allocate|cannot allocate|ALLOC(ATION)?_FAILED|\bENOMEM\b|"
    r"invalid buffer size",
    re.IGNORECASE,
)


class DeviceLost(Exception):
    """The CUDA context is broken: this process can no longer use the device."""


# --- which device ------------------------------------------------------------------------------------------


def definite_device(wanted: str | torch.device) -> torch.device:
    """Resolve a device name: ``auto``, ``cuda`` and ``cuda:0`` may be the same device. Does not initialise CUDA.

    Raises:
        ValueError: There is no such device; the message names the devices that torch sees.
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
        return torch.device("cpu")  # the index of a CPU means nothing
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
    """Check that CUDA was not initialised before this process was forked.

    Raises:
        RuntimeError: CUDA was initialised in the parent process.
    """
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():  # noqa: SLF001
        raise RuntimeError(
            f"{device} cannot be used: CUDA was initialised in the process that this one was forked from. Do that in "
            "the children only, or start processes with the method 'spawn'"
        )


def _current_cuda() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device: by NVML while CUDA is not initialised; if that fails, initialises CUDA."""
    if not torch.cuda.is_initialized():
        with suppress(Exception):  # the private function of torch or the library may be missing
            return _capability_by_driver(device.index or 0)
    return torch.cuda.get_device_capability(device)


def _capability_by_driver(index: int) -> tuple[int, int]:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    # torch maps the index, which CUDA_VISIBLE_DEVICES changes.
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
    """The dtype for ``auto``: bfloat16 on CUDA GPUs with instructions for it, float16 on others, float32 elsewhere."""
    if device.type == "cuda":
        return "bfloat16" if capability(device)[0] >= AMPERE else "float16"
    return "float32"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products; without them a pass takes many times as long."""
    if device.type == "cuda":
        return capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch.cpu says it under no public name
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in probes)


# --- transfers ---------------------------------------------------------------------------------------------


def upload(values: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy numbers to a device; to a GPU through pinned memory, so that the host does not wait."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def overwrite(target: Tensor, values: Sequence[Any] | Tensor) -> None:
    """Copy numbers into a tensor in place; to a GPU through pinned memory, so that the host does not wait."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=target.dtype)
    if target.device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    target.copy_(tensor, non_blocking=True)


def download(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; from a GPU into pinned memory, valid only after the next wait for the device."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
    return host.copy_(tensor, non_blocking=True)


def release_memory() -> None:
    """Return cached blocks of torch's allocator to the device."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a broken context
            torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- errors ------------------------------------------------------------------------------------------------


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error means that the device or the machine ran out of memory."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(exc, RuntimeError | OSError | SafetensorError) and bool(_SAYS_MEMORY.search(str(exc)))


@contextmanager
def memory_said(words: Callable[[Exception], str]) -> Iterator[None]:
    """Turn an out-of-memory error inside the ``with`` block into a `NotEnoughMemory`.

    Args:
        words: Makes the message from the error, after the tensors in its frames have been freed.

    Raises:
        NotEnoughMemory: In place of the error of torch or of the system.
    """
    try:
        yield
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        traceback.clear_frames(exc.__traceback__)
        raise NotEnoughMemory(words(exc)) from exc


def is_lost(exc: BaseException, device: torch.device) -> bool:
    """Whether an error has broken the CUDA context, which cannot be repaired within the process."""
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
    """Call ``run(part)``; returns its error or None. The tensors in the frames of the error are freed.

    Raises:
        DeviceLost: The CUDA context is broken.
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
    """Run a batch; if it fails, run its halves one after the other, and report the error of a row that fails alone.

    So a batch that is too large runs in parts, and any other error reaches only the rows that cause it. A single row
    that runs out of memory is tried once more after the cached blocks have been released.

    Args:
        rows: The batch, at least one row.
        run: Called with the batch or parts of it.
        fail: Called with a single row and its error.
        device: Device of the batch.
        what: Name of the rows in log messages ("sequences").

    Returns:
        int: Rows of the largest part that succeeded; 0 if none did.
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
