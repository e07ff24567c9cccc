"""Linear layers with 8-bit weights on the CPU, multiplied by torch's own integer products (FBGEMM).

Each weight is rounded to one of 127 steps on either side of zero, relative to the largest weight of its output. The
input is split into two digits of 7 bits, relative to the largest number of its position, so that its rounding error is
far below that of the weights even if a few features are a hundred times as large as the others. Both digits are rows of
one product: a decode step is bound by reading the weights, and reads them once.

Integer sums are exact, so a row gives the same numbers alone and in every batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock
from typing import Final

import torch
from torch import Tensor, nn

_STEPS: Final = 127  # largest value of a rounded weight
# Largest value of a digit. Without VNNI, sums of two products have 16 bits, which digits of 7 bits never overflow.
_DIGIT: Final = 63
_ZERO: Final = 64  # zero point of a digit as an unsigned number
_LEAST: Final = 1e-30  # replaces the largest number of a position that is all zeros
# As tensors, because converting a number for an operation takes longer than the operation.
_DIGITS: Final = torch.tensor(float(_DIGIT), device="cpu", dtype=torch.float32)
_FINER: Final = torch.tensor(2.0 * _DIGIT, device="cpu", dtype=torch.float32)  # steps of a fine digit in a coarse one
_ENGINE: Final = "fbgemm"
_engine = Lock()  # guards torch.backends.quantized.engine, a setting of the whole process


class Int8Linear(nn.Module):
    """A frozen linear layer that stores its weight in 8 bits only.

    Args:
        layer: A plain linear layer on the CPU, of any floating-point type.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()
        self._packed = _pack(layer.weight.detach())

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.in_features * self.out_features

    @property
    def weight(self) -> Tensor:
        """The rounded weight, ``[out, in]`` in float32, unpacked at each call."""
        rounded: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].dequantize()
        return rounded

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x [..., in]``."""
        y = multiply(x.reshape(-1, self.in_features), [self], self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def of_digits(self, digits: Tensor) -> Tensor:
        """Products of digits, ``[rows, in]``, which are whole numbers up to `_DIGIT`."""
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        y: Tensor = product(digits, 1.0, _ZERO, self._packed)
        return y


def multiply(x: Tensor, layers: Sequence[Int8Linear], bias: Tensor | None) -> Tensor:
    """Apply layers with the same input: ``x [rows, in] -> [rows, out]``, side by side.

    The input is split once, which takes as long as the product of a small layer.

    Args:
        x: Input.
        layers: The layers; their own biases are not used.
        bias: Biases of all layers, side by side.
    """
    rows, n = x.float(), len(x)
    # [rows, 1]; NaN and infinity of the input reach the result through it.
    unit = rows.abs().amax(-1, keepdim=True).clamp_min_(_LEAST).div_(_DIGITS)
    digits = rows.new_empty(2 * n, rows.shape[1])
    coarse, fine = digits[:n], digits[n:]
    torch.div(rows, unit, out=fine)
    torch.round(fine, out=coarse)
    fine.sub_(coarse).mul_(_FINER)  # the rest is at most half a step
    several = [layer.of_digits(digits) for layer in layers]
    both = several[0] if len(several) == 1 else torch.cat(several, dim=1)  # [2 * rows, out]
    y = both[:n].add_(both[n:], alpha=1 / (2 * _DIGIT)).mul_(unit)
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def int8_linear(layer: nn.Module) -> nn.Module:
    """The layer as an `Int8Linear` if it is a plain linear layer, otherwise unchanged."""
    return Int8Linear(layer) if type(layer) is nn.Linear else layer


def check_int8() -> None:
    """Check that this CPU supports the integer products of these layers.

    Raises:
        ValueError: It does not; the message names alternatives.
    """
    try:
        if _ENGINE not in torch.backends.quantized.supported_engines:
            raise RuntimeError("this torch has no FBGEMM, which needs an x86 CPU with AVX2")  # noqa: TRY301
        layer = nn.Linear(8, 4, bias=False)
        x = torch.full((1, 8), 100.0)
        x[0, 0] = 0.25
        with torch.no_grad():
            tried = Int8Linear(layer)
            wrong = (tried(x) - x @ tried.weight.T).abs().max().item()
        if not wrong < 0.05:
            raise RuntimeError(f"FBGEMM gave wrong numbers on a small example (off by {wrong:.3g})")  # noqa: TRY301
    except (RuntimeError, NotImplementedError, AttributeError) as exc:
        raise ValueError(
            f"quantization='int8' cannot be used on this CPU: {str(exc).splitlines()[0]}. Use "
            "quantization='nf4' (pip install 'clara-rag[quantization]'), dtype='bfloat16' or none of them"
        ) from exc


def _pack(weight: Tensor) -> object:
    """Round a weight ``[out, in]`` and pack it for FBGEMM."""
    weight = weight.float()
    steps = weight.abs().amax(1).clamp_min_(_LEAST).double() / _STEPS  # [out]
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        # Torch has deprecated these tensors; `check_int8` will raise once they are gone.
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel")
        rounded = torch.quantize_per_channel(weight, steps, zeros, 0, torch.qint8)
    with _engine:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = _ENGINE
        try:
            return torch.ops.quantized.linear_prepack(rounded, None)
        finally:
            torch.backends.quantized.engine = before
