"""Converts memory tokens to rows of bytes of a fixed length and back, in float32, bfloat16 or int8.

Dimensions: w windows, T memory tokens of a window (`n_mem`), H numbers of a token (`hidden`).

A row of ``float32`` or ``bfloat16`` is ``T * H`` numbers of four or two bytes. A row of ``int8`` is T scales (float32),
then ``T * H`` signed bytes: a number is its byte times the scale of its token, and the largest number of a token is 127
times the scale. All numbers are little-endian.
"""

from __future__ import annotations

import sys
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MemoryType = Literal["float32", "bfloat16", "int8"]
MEMORY_TYPES: Final = get_args(MemoryType)

_LEVELS = 127  # steps of int8 on each side of zero; -128 is not used
_SCALE_BYTES = 4
_BLOCK = 1 << 21  # numbers that are read at a time, so that they stay in the cache
_NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class MemoryCodec:
    """Encodes windows ``[w, n_mem, hidden]`` as rows of bytes and decodes them.

    ``float32`` is exact, ``bfloat16`` is exact for a model that computes in it, ``int8`` takes half the bytes of that.

    Raises:
        ValueError: The type is unknown, or a size is not positive.
    """

    def __init__(self, memory_type: MemoryType, n_mem: int, hidden: int) -> None:
        if memory_type not in MEMORY_TYPES:
            known = ", ".join(repr(name) for name in MEMORY_TYPES)
            raise ValueError(f"memory_type must be one of {known}, got {memory_type!r}")
        if n_mem < 1 or hidden < 1:
            raise ValueError(f"n_mem and hidden must be at least 1, got {n_mem} and {hidden}")
        if sys.byteorder != "little":
            raise NotImplementedError("memories are stored little-endian, which this machine does not support")
        self.memory_type, self.n_mem, self.hidden = memory_type, n_mem, hidden

    @property
    def row_bytes(self) -> int:
        """Bytes of an encoded window."""
        scales = _SCALE_BYTES * self.n_mem if self.memory_type == "int8" else 0
        return scales + _NUMBERS[self.memory_type].itemsize * self.n_mem * self.hidden

    def encode(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Encode windows ``[w, T, H]`` of any float type as ``[w, row_bytes]``, contiguous; numbers must be finite."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.n_mem, self.hidden):
            raise ValueError(f"memory must have the shape [windows, {self.n_mem}, {self.hidden}], "
                             f"got {list(tokens.shape)}")  # fmt: skip
        given = tokens.detach().cpu()
        if self.memory_type == "int8":
            self._check_finite(given)
            rows = np.empty((len(given), self.row_bytes), np.uint8)
            for start in range(0, len(given), self._step):
                self._quantize(given[start : start + self._step].float(), rows[start : start + self._step])
            return rows
        numbers = given.to(_NUMBERS[self.memory_type]).contiguous()
        self._check_finite(numbers)
        return numbers.flatten(1).view(torch.uint8).numpy()

    def decode(self, rows: NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode rows ``[w, row_bytes]`` to windows ``[w, T, H]``; the result is a copy."""
        if rows.ndim != 2 or rows.shape[1] != self.row_bytes or rows.dtype != np.uint8:
            raise ValueError(f"a stored memory of [{self.n_mem}, {self.hidden}] in {self.memory_type} has "
                             f"{self.row_bytes} bytes, got an array of {rows.dtype} {list(rows.shape)}")  # fmt: skip
        shape = (len(rows), self.n_mem, self.hidden)
        if self.memory_type != "int8":
            # Through numpy, since torch does not view an empty array as another type; numpy has no bfloat16.
            numbers = rows.flatten().view(np.float32 if self.memory_type == "float32" else np.int16)
            return torch.from_numpy(numbers).view(_NUMBERS[self.memory_type]).view(shape).to(dtype)
        split = _SCALE_BYTES * self.n_mem
        scales = np.ascontiguousarray(rows[:, :split]).view(np.float32)  # [w, T]
        steps = torch.from_numpy(rows[:, split:].view(np.int8).astype(np.float32)).view(shape)
        return steps.mul_(torch.from_numpy(scales).unsqueeze(-1)).to(dtype)

    @property
    def _step(self) -> int:
        return max(1, _BLOCK // (self.n_mem * self.hidden))

    def _quantize(self, numbers: Tensor, rows: NDArray[np.uint8]) -> None:
        """Write windows ``[w, T, H]`` into rows ``[w, row_bytes]``."""
        scales = numbers.abs().amax(dim=2) / _LEVELS  # [w, T]
        # A token of zeros, or of numbers so small that the scale underflows to zero, becomes zeros.
        steps = (numbers / scales.masked_fill(scales == 0, torch.inf).unsqueeze(-1)).round_()
        steps = steps.clamp_(-_LEVELS, _LEVELS).to(torch.int8)  # [w, T, H]
        split = _SCALE_BYTES * self.n_mem
        rows[:, :split] = scales.numpy().view(np.uint8)
        rows[:, split:] = steps.flatten(1).view(torch.uint8).numpy()

    def _check_finite(self, numbers: Tensor) -> None:
        # A sum is finite only if every number is (unless the sum itself overflows), and needs no second array.
        parts = numbers.flatten(1).split(self._step)
        if all(bool(part.sum(dim=1, dtype=torch.float32).isfinite().all()) for part in parts):
            return
        bad = (~numbers.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"a memory must be finite numbers in {self.memory_type}; NaN or infinity in "
                             f"{len(bad)} of {len(numbers)} windows, the first is window {bad[0]}")  # fmt: skip
