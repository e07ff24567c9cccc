"""Matrix products on the processor: frozen weights packed once in the layout that oneDNN multiplies fastest.

PyTorch multiplies float32 matrices with MKL, and re-orders bfloat16 weights at every call. On one Zen 5 core oneDNN
takes 1.3 instead of 3.8 ms for 512 x 32,000 against one row, and 91 instead of 182 ms against 512 rows; on an Intel
Xeon it is the slower of both, so that `processor` measures before a model is packed. Sums are in another order than
MKL's: results agree to rounding. oneDNN is part of PyTorch, but these two calls are reachable by name only; where they
are missing, everything stays as it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
)
_FEW = 16  # answers in a decode step up to which MKL is faster with a small matrix: oneDNN's call alone takes 10 us
_ROWS = 8  # rows that the layout is chosen for; the same one is best or equal from 1 to 512


class PackedLinear(nn.Module):
    """A frozen linear layer whose weight is kept in oneDNN's layout alone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = layer.bias
        # No parameter and no buffer: the opaque layout can be neither moved nor saved.
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
    """The layer, packed where it is a plain linear one on the processor in a type that oneDNN packs."""
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or not packs(layer.weight.dtype):
        return layer
    return PackedLinear(layer)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a type on this processor; bfloat16 takes AVX-512 or the like."""
    if dtype is torch.bfloat16:
        return AVAILABLE and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return AVAILABLE and dtype is torch.float32


def product(x: Tensor, weight: Tensor, *, onednn: bool = True) -> Tensor:
    """``x [..., in] @ weight[out, in].T`` of a small matrix that is sliced at each call, and so cannot be packed.

    Args:
        x: What is read.
        weight: Plain.
        onednn: Whether oneDNN may multiply passes over many positions.
    """
    if (
        onednn
        and AVAILABLE
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and (x.ndim < 3 or x.shape[1] > 1 or len(x) > _FEW)  # by the kind of pass: alone or in a batch, one sum
    ):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001
        return y
    return F.linear(x, weight)
