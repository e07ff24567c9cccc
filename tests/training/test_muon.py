"""Muon in float32, compared with torch's implementation."""

from __future__ import annotations

import pytest
import torch

from clara_core.training.muon import Muon, orthogonal


def test_singular_values_become_alike():
    stack = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(1))
    for matrix in orthogonal(stack):
        values = torch.linalg.svdvals(matrix)
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_steps_are_those_of_torch_to_the_precision_of_bfloat16(shape):
    draw = torch.Generator().manual_seed(2)
    ours = torch.randn(shape, generator=draw).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    start = ours.detach().clone()
    pair = Muon([ours]), torch.optim.Muon([theirs], lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape, generator=draw)
        for weight, optimizer in zip((ours, theirs), pair, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved, expected = (ours - start).detach().flatten(), (theirs - start).detach().flatten()
    assert float(torch.cosine_similarity(moved, expected, dim=0)) > 0.995
    assert float(moved.norm() / expected.norm()) == pytest.approx(1, abs=0.03)
