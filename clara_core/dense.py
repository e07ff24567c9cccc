"""Matrix products of frozen layers on the processor.

PyTorch multiplies float32 matrices with MKL, which on AMD processors reaches about half of what oneDNN reaches
(measured on a Zen 5 core: 100 and 220 GFLOP/s; one row against 32,000: 4.2 and 2.8 ms). oneDNN is part of PyTorch,
but its float32 product is only reachable by name. Its sums are in another order, so results agree to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` of a linear layer, by the faster of the two ways where no gradient is wanted."""
    if type(layer) is nn.Linear and usable(x, layer.weight):
        return product(x, layer.weight, layer.bias)
    y: Tensor = layer(x)
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., in] @ weight[out, in].T + bias``."""
    if usable(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
        return y
    return F.linear(x, weight, bias)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can and should do this product."""
    return (
        _AVAILABLE
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x.numel() > 0
    )


_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
