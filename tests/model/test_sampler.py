"""Sampling: correct shares, the same tokens in every batch, and noise that never changes."""

from __future__ import annotations

import math

import pytest
import torch

from clara_core.model.sampler import Draw, _key, draw, gumbel


def several(logits: list[float] | torch.Tensor, n: int, seed: int = 0, **options: float) -> list[int]:
    """``n`` tokens of one answer with constant logits."""
    given = {"temperature": 1.0, "top_p": 1.0, **options}
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(n, -1)
    tokens: list[int] = draw(rows, [Draw(seed=seed, position=at, **given) for at in range(n)]).tolist()
    return tokens


def test_top_p_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(several(logits, 300, top_p=0.4)) == {0}
    assert set(several(logits, 300, top_p=0.6)) == {0, 1}
    assert set(several(logits, 300, top_p=0.9)) == {0, 1, 2}
    assert set(several(logits, 300)) == {0, 1, 2, 3}
    assert set(several([0.0, 0.0, -1.0], 300, top_p=0.4)) == {0}  # the first one of two equal ones


def test_temperature_shapes_the_shares() -> None:
    logits = torch.tensor([0.6, 0.4]).log()
    warm = several(logits, 4000, seed=1).count(0) / 4000
    cold = several(logits, 4000, seed=1, temperature=0.25).count(0) / 4000
    assert warm == pytest.approx(0.6, abs=0.03)
    assert cold == pytest.approx(0.6**4 / (0.6**4 + 0.4**4), abs=0.03)
    assert set(several([80.0, -90.0, 81.0], 50, temperature=5e-324)) == {2}


def test_shares_are_those_of_the_plain_way() -> None:
    """A chi-squared test of 20,000 draws from a softmax over many tokens."""
    shares = torch.linspace(-3, 3, 40).softmax(0).double()
    tokens = torch.tensor(several(shares.log().float(), 20_000, seed=11))
    counts = torch.bincount(tokens, minlength=40).double()
    chi = float(((counts - shares * 20_000) ** 2 / (shares * 20_000)).sum())
    assert chi < 39 + 5 * math.sqrt(2 * 39)


def test_seeds_repeat_and_differ() -> None:
    logits = torch.zeros(50)
    assert several(logits, 30, seed=7) == several(logits, 30, seed=7)
    assert several(logits, 30, seed=7) != several(logits, 30, seed=8)
    assert several(logits, 30, seed=-1) == several(logits, 30, seed=2**64 - 1)


def test_a_row_is_drawn_alike_in_every_batch() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    draws = [Draw(0.5 + at / 4, 1.0 if at % 2 else 0.8, seed=at, position=3 * at) for at in range(6)]
    together = draw(logits, draws).tolist()
    assert together == [int(draw(logits[at : at + 1], draws[at : at + 1])) for at in range(6)]
    assert draw(logits.flip(0), draws[::-1]).tolist() == together[::-1]


def test_the_noise_is_gumbel_s_and_independent() -> None:
    keys = torch.tensor([_key(seed, position) for seed in (0, 1, 2**63) for position in (0, 1)])
    noise = gumbel(keys, 50_000).double()
    assert noise.isfinite().all()
    mean, deviation = 0.5772156649, math.pi / math.sqrt(6)
    assert noise.mean(1).tolist() == pytest.approx([mean] * 6, abs=0.03)
    assert noise.std(1).tolist() == pytest.approx([deviation] * 6, abs=0.03)
    beside = torch.corrcoef(noise) - torch.eye(6)  # adjacent seeds and positions
    assert float(beside.abs().max()) < 0.03
    follows = torch.corrcoef(torch.stack([noise[0, 1:], noise[0, :-1]]))[0, 1]
    assert abs(float(follows)) < 0.03


def test_the_noise_stays_what_it_is() -> None:
    """A seed draws the same answer in every version, and on a GPU."""
    assert _key(3, 5) == (2755181363, 3541937597)
    assert gumbel(torch.tensor([_key(3, 5)]), 4)[0].tolist() == pytest.approx(
        [1.318159, -0.731072, -0.234262, 0.356405], rel=1e-5
    )
