"""Linear layers on the CPU with weights packed once in the layout that oneDNN multiplies fastest.

PyTorch multiplies float32 matrices with MKL, and reorders bfloat16 weights at every call. On one Zen 5 core oneDNN
takes 1.3 instead of 3.8 ms for 512 x 32,000 times one row, and 91 instead of 182 ms times 512 rows. On an Intel Xeon it
is slower than MKL, so `processor` measures both before a model is packed. The order of sums differs from MKL's, so
results agree up to rounding. oneDNN is part of PyTorch, but these two operators are private; if they are missing,
nothing is packed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
)
_FEW = 16  # up to so many rows of a decode step MKL is faster with a small matrix; a call of oneDNN takes 10 us
_ROWS = 8  # rows for which the layout is chosen; the same layout is best or equal from 1 to 512


class PackedLinear(nn.Module):
    """A frozen linear layer that stores its weight in oneDNN's layout only."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = layer.bias
        # Neither parameter nor buffer, because the opaque layout can be neither moved nor saved.
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)  # noqa: SLF001

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.in_features * self.out_features * self._packed.element_size()

    @property
    def weight(self) -> Tensor:
        """The weight in the usual layout ``[out, in]``, unpacked at each call."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x [..., in]``."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")  # noqa: SLF001
        return y


def packed(layer: nn.Module) -> nn.Module:
    """The layer as a `PackedLinear` if it is a plain linear layer that oneDNN packs, otherwise unchanged."""
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or not packs(layer.weight.dtype):
        return layer
    return PackedLinear(layer)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a type on this CPU; bfloat16 needs AVX-512 or similar."""
    if dtype is torch.bfloat16:
        return AVAILABLE and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return AVAILABLE and dtype is torch.float32


def product(x: Tensor, weight: Tensor, *, onednn: bool = True) -> Tensor:
    """``x [..., in] @ weight[out, in].T`` for a small matrix that is sliced at each call and so cannot be packed.

    Args:
        x: Input.
        weight: Weight in the usual layout.
        onednn: Whether oneDNN may multiply passes over many positions.
    """
    if (
        onednn
        and AVAILABLE
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and (x.ndim < 3 or x.shape[1] > 1 or len(x) > _FEW)  # a prompt has one order of sums, alone or in a batch
    ):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001
        return y
    return F.linear(x, weight)
