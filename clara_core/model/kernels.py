"""Attention kernels for rows of different lengths: torch's own and flash-attn's, behind one signature.

Dimensions of shapes: ``total`` positions of all rows one after the other; ``pages`` of `PAGE` columns each.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from clara_core.model.devices import AMPERE, capability

log = logging.getLogger(__name__)

PAGE = 256  # positions of a page of the KV cache; the kernels require a multiple of this


class PackedRows(TypedDict):
    """Rows one after the other, of which each attends within itself."""

    starts: Tensor  # ``[rows + 1]``, int32: where each row begins, and where the last one ends
    longest: int  # positions of the longest row
    scale: float  # factor of the attention scores
    window: int | None  # number of positions that a query sees, including its own; None: all before it


class PagedRows(PackedRows):
    """The newest positions of rows whose keys and values are in pages.

    `starts` tells where the queries of each row begin; `longest` is the largest of `lengths`, or an upper bound.
    """

    table: Tensor  # ``[rows, most]``, int32: the pages of each row in order; entries after a row's last are not read
    lengths: Tensor  # ``[rows]``, int32: positions of each row, including the newest ones
    queries: int  # number of newest positions of each row


class Kernel(Protocol):
    """Attention over packed rows and over rows in pages."""

    @property
    def name(self) -> str:
        """Name in log messages."""

    def packed(self, query: Tensor, key: Tensor, value: Tensor, **rows: Unpack[PackedRows]) -> Tensor:
        """Causal attention of ``query [total, heads, dim]`` over ``key`` and ``value [total, kv_heads, dim]``."""

    def paged(self, query: Tensor, keys: Tensor, values: Tensor, **rows: Unpack[PagedRows]) -> Tensor:
        """Causal attention of ``query [rows * queries, heads, dim]`` over pages ``[pages, PAGE, kv_heads, dim]``."""


@dataclass(frozen=True)
class TorchKernel:
    """The kernel ``torch.nn.attention.varlen`` of torch 2.13 or later (its paged form needs CUDA)."""

    attend: Callable[..., Any]
    name: str = "torch.nn.attention.varlen"

    def packed(self, query: Tensor, key: Tensor, value: Tensor, **rows: Unpack[PackedRows]) -> Tensor:
        """See `Kernel`."""
        read: Tensor = self.attend(
            query, key, value, rows["starts"], rows["starts"], rows["longest"], rows["longest"],
            scale=rows["scale"], window_size=_left(rows["window"]), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return read

    def paged(self, query: Tensor, keys: Tensor, values: Tensor, **rows: Unpack[PagedRows]) -> Tensor:
        """See `Kernel`."""
        read: Tensor = self.attend(
            query, keys, values, rows["starts"], None, rows["queries"], rows["longest"],
            scale=rows["scale"], window_size=_left(rows["window"]), enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=rows["lengths"], block_table=rows["table"],
        )  # fmt: skip
        return read


@dataclass(frozen=True)
class FlashKernel:
    """The kernels of the package flash-attn, version 2 (version 4 has no paged form)."""

    attend: Callable[..., Any]
    attend_pages: Callable[..., Any]
    name: str = "flash-attn"

    def packed(self, query: Tensor, key: Tensor, value: Tensor, **rows: Unpack[PackedRows]) -> Tensor:
        """See `Kernel`."""
        read: Tensor = self.attend(
            query, key, value, rows["starts"], rows["starts"], rows["longest"], rows["longest"],
            softmax_scale=rows["scale"], causal=True, window_size=_left(rows["window"], causal=-1),
        )  # fmt: skip
        return read

    def paged(self, query: Tensor, keys: Tensor, values: Tensor, **rows: Unpack[PagedRows]) -> Tensor:
        """See `Kernel`."""
        read: Tensor = self.attend_pages(
            query.unflatten(0, (-1, rows["queries"])), keys, values,
            cache_seqlens=rows["lengths"], block_table=rows["table"],
            softmax_scale=rows["scale"], causal=True, window_size=_left(rows["window"], causal=-1),
        )  # fmt: skip
        return read.flatten(0, 1)


def _left(window: int | None, causal: int = 0) -> tuple[int, int]:
    """Numbers of positions that a query sees to its left and to its right; -1: all."""
    return (-1, causal) if window is None else (window - 1, 0)


def torch_kernel() -> Kernel:
    """The kernel of torch.

    Raises:
        ImportError: This torch has no such kernel, or one with another signature.
    """
    from torch.nn.attention.varlen import varlen_attn

    taken = inspect.signature(varlen_attn).parameters
    needed = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"}
    if not needed <= taken.keys():
        msg = f"torch {torch.__version__} has a varlen_attn without {', '.join(sorted(needed - taken.keys()))}"
        raise ImportError(msg)
    return TorchKernel(varlen_attn)


def flash_kernel() -> Kernel:
    """The kernel of flash-attn.

    Raises:
        ImportError: It is not installed, or not version 2.
    """
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

    return FlashKernel(flash_attn_varlen_func, flash_attn_with_kvcache)


def find_kernel(
    wanted: str, device: torch.device, dtype: torch.dtype, *, heads: int, kv_heads: int, dim: int
) -> Kernel | None:
    """Find a kernel that works on these shapes, by a trial on a few positions; None if there is none.

    Args:
        wanted: ``auto``: any kernel; ``flash_attention_2``: the package flash-attn.
        device: Device of the model.
        dtype: Type of queries, keys and values.
        heads: Query heads.
        kv_heads: Key and value heads.
        dim: Width of a head.

    Raises:
        ValueError: flash-attn was asked for and cannot be used; the message has the reason.
    """
    makers = (flash_kernel,) if wanted == "flash_attention_2" else (torch_kernel, flash_kernel)
    reasons: list[str] = []
    problem = _unsupported(device, dtype)
    if problem is None:
        for make in makers:
            try:
                kernel = make()
            except Exception as exc:  # noqa: BLE001 - whatever a broken installation raises
                reasons.append(f"{make.__name__}: {_first_line(exc)}")
                continue
            try:
                _try_out(kernel, device, dtype, heads, kv_heads, dim)
            except Exception as exc:  # noqa: BLE001 - whatever a kernel raises on this device
                reasons.append(f"{kernel.name}: {_first_line(exc)}")
                if wanted == "auto":
                    log.warning(
                        "%s is installed but does not work here (%s): going on without it",
                        kernel.name,
                        _first_line(exc),
                    )
                continue
            log.debug("attention: %s", kernel.name)
            return kernel
        problem = "; ".join(reasons)
    if wanted == "flash_attention_2":
        raise ValueError(
            f"attn_implementation='flash_attention_2' cannot be used here: {problem}. It needs a GPU of the Ampere "
            "generation or newer, bfloat16 or float16, and pip install 'clara-rag[flash-attn]'; 'auto' takes what works"
        )
    log.debug("attention: torch's scaled_dot_product_attention (%s)", problem)
    return None


def _unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"kernels need a CUDA device, this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"kernels need bfloat16 or float16, this is {str(dtype).removeprefix('torch.')}"
    major, minor = capability(device)
    return None if major >= AMPERE else f"kernels need compute capability 8.0, this device has {major}.{minor}"


def _try_out(kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    """Check both forms on a few positions with a known result: attention over equal values returns the value.

    Raises:
        Exception: Whatever the kernel raises.
        RuntimeError: The result is wrong.
    """
    query, key = (torch.ones(8, count, dim, device=device, dtype=dtype) for count in (heads, kv_heads))
    value = torch.full_like(key, 2.0)
    starts = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    results = [kernel.packed(query, key, value, starts=starts, longest=5, scale=1.0, window=None)]
    # The second page has other values after the rows' lengths, which must not be read.
    pages = torch.full((2, PAGE, kv_heads, dim), 2.0, device=device, dtype=dtype)
    pages[1, 3:] = 3.0
    table = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32, device=device)
    used = torch.tensor([PAGE + 3, 2], dtype=torch.int32, device=device)
    ones = torch.arange(3, dtype=torch.int32, device=device)
    for queries in (1, 2):
        given = {"table": table, "lengths": used, "starts": ones * queries, "queries": queries, "longest": PAGE + 3}
        results.append(
            kernel.paged(query[: 2 * queries], pages, pages, **given, scale=1.0, window=None)  # type: ignore[arg-type]
        )
    for result in results:
        if not bool((result == 2.0).all()):
            raise RuntimeError("it gave wrong numbers on a small example")


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    return f"{type(exc).__name__}: {lines[0][:200]}"
