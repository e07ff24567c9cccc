"""Packed matrix products, compared with plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clara_core import ClaraEngine
from clara_core.model.packed_linear import AVAILABLE, PackedLinear, packed, packs, product


@pytest.mark.skipif(not AVAILABLE, reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1, 1), (3, 7), (2, 300)])
def test_packed_layer_equals_the_plain_one(
    dtype: torch.dtype, tolerance: float, bias: bool, rows: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(4)
    layer = nn.Linear(48, 80, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(std=48**-0.5, generator=generator)
        x = torch.randn(*rows, 48, generator=generator)
        wanted = layer(x)
        fast = packed(layer.to(dtype))
        assert isinstance(fast, PackedLinear) is packs(dtype)  # no processor below AVX-512 packs bfloat16
        assert (fast(x.to(dtype)).float() - wanted).abs().max() < tolerance * wanted.abs().max()
        assert torch.equal(fast.weight, layer.weight)
        assert (fast.in_features, fast.out_features) == (48, 80)


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    for module in (nn.Linear(4, 4).double(), nn.Linear(4, 4, device="meta"), nn.Identity()):
        assert packed(module) is module


def test_product_has_a_gradient_where_one_is_wanted() -> None:
    x, weight = torch.randn(3, 5), torch.randn(4, 5, requires_grad=True)
    product(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.sum(0).expand(4, 5))
    with torch.no_grad():
        assert torch.allclose(product(x, weight), x @ weight.T, atol=1e-6)


@pytest.mark.skipif(not AVAILABLE, reason="this build of PyTorch has no oneDNN")
def test_an_engine_on_the_processor_packs_every_frozen_layer(parity_folder):
    folder = parity_folder / "e2e"
    engine = ClaraEngine.from_pretrained(str(folder / "checkpoint"), base_model=str(folder / "base"), device="cpu")
    model = engine.load().model
    assert all(isinstance(layer.base, PackedLinear) for layer in model.routed.values())
    assert isinstance(model.decoder.get_output_embeddings(), PackedLinear)
