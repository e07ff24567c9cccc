"""Linear layers with 8-bit weights, compared with plain products of the same rounded weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clara_core.model.int8_linear import Int8Linear, int8_linear


def layer_of(bias: bool = True, seed: int = 4) -> nn.Linear:
    layer = nn.Linear(96, 80, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=96**-0.5, generator=torch.Generator().manual_seed(seed))
        layer.weight[7] = 0.0
    return layer.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1, 1), (3, 7), (2, 130)])
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_what_is_read_is_hardly_rounded(bias: bool, rows: tuple[int, int], outlier: float) -> None:
    """Compared with the rounded weights in float64, even if one feature is a hundred times as large as the others."""
    layer = layer_of(bias)
    fast = Int8Linear(layer)
    x = torch.randn(*rows, 96, generator=torch.Generator().manual_seed(1))
    x[..., 5] *= outlier
    wanted = x.double() @ fast.weight.double().T + (0 if layer.bias is None else layer.bias.double())
    # Half a step of the second digit for every input.
    most = x.abs().amax(-1, keepdim=True) * fast.weight.abs().sum(1) / (2 * 63 * 126)  # [..., out]
    assert ((fast(x) - wanted).abs() <= 1.01 * most + 1e-5 * outlier).all()
    assert fast(x).shape == (*rows, 80)
    assert (fast.in_features, fast.out_features, fast.nbytes) == (96, 80, 96 * 80)


def test_a_weight_is_rounded_by_half_a_step_at_most() -> None:
    layer = layer_of()
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((Int8Linear(layer).weight - layer.weight).abs() <= 0.5001 * step).all()


def test_a_row_gives_the_same_numbers_in_every_batch() -> None:
    fast = Int8Linear(layer_of())
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(2)) * torch.logspace(-4, 4, 40)[:, None]
    together = fast(x)
    assert all(torch.equal(fast(x[at : at + 1])[0], together[at]) for at in range(40))


def test_saturation_shows_nowhere() -> None:
    """With the largest possible sums of two products."""
    layer = nn.Linear(512, 2, bias=False).requires_grad_(False)
    layer.weight.fill_(1.0)
    x = torch.ones(1, 512)
    assert Int8Linear(layer)(x)[0].tolist() == pytest.approx([512.0, 512.0])
    assert Int8Linear(layer)(-x)[0].tolist() == pytest.approx([-512.0, -512.0])


def test_numbers_that_are_none_and_zeros() -> None:
    fast = Int8Linear(layer_of(bias=False))
    x = torch.zeros(3, 96)
    x[1, 4], x[2, 4] = torch.nan, torch.inf
    y = fast(x)
    assert torch.equal(y[0], torch.zeros(80))
    assert not y[1:].isfinite().any()


def test_short_types_and_other_layers() -> None:
    layer = layer_of()
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(3))
    short = int8_linear(layer.to(torch.bfloat16))
    assert isinstance(short, Int8Linear)
    assert short(x.bfloat16()).dtype is torch.bfloat16
    assert (short(x.bfloat16()).float() - layer(x.bfloat16()).float()).abs().max() < 0.1
    other = nn.Identity()
    assert int8_linear(other) is other


def test_the_setting_of_torch_stays_as_it_was() -> None:
    before = torch.backends.quantized.engine
    Int8Linear(layer_of())
    assert torch.backends.quantized.engine == before
