"""The projection, compared with a dense one, with theory, and with recorded values."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.retrieval.projection import Projection, hadamard


def cosines(vectors):
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    return unit @ unit.T


def dense_hadamard(size):
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_the_fast_transform_is_the_dense_one(size):
    rows = torch.randn(5, size, generator=torch.Generator().manual_seed(size))
    assert torch.allclose(hadamard(rows), rows @ dense_hadamard(size), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.data())
def test_directions_are_orthonormal_up_to_scale(source, data):
    target = data.draw(st.integers(1, source))
    directions = Projection(source, target, seed=source).apply(torch.eye(source)).T  # [target, source]
    assert directions.shape == (target, source)
    padded = 1 << (source - 1).bit_length()
    if source == padded:
        expected = torch.eye(target) * (source / target)
        assert torch.allclose(directions @ directions.T, expected, atol=1e-4)
    if source == target:
        assert torch.equal(directions, torch.eye(source))


@pytest.mark.parametrize("source, target", [(512, 128), (4096, 1024), (65536, 1024), (14336, 768)])
def test_cosines_are_kept_as_documented(source, target):
    draw = torch.Generator().manual_seed(1)
    common = torch.randn(1, source, generator=draw)
    vectors = torch.cat([common * share + torch.randn(24, source, generator=draw) for share in (0.0, 1.0, 2.0)])
    projection = Projection(source, target)
    before, after = cosines(vectors), cosines(projection.apply(vectors))
    apart = ~torch.eye(len(vectors), dtype=torch.bool)
    for low, high in ((-0.2, 0.2), (0.4, 0.6), (0.7, 0.9)):
        chosen = apart & (before > low) & (before < high)
        errors = (after - before)[chosen]
        told = projection.standard_error((low + high) / 2)
        assert 0.5 * told < float(errors.std()) < 1.5 * told
        assert abs(float(errors.mean())) < told


def test_sparse_vectors_are_spread_as_well():
    vectors = torch.zeros(40, 4096)
    vectors[:, 0] = 1
    vectors[torch.arange(40), torch.arange(40) + 1] = 1  # cosine 1/2 with each other
    projection = Projection(4096, 512)
    errors = (cosines(projection.apply(vectors)) - 0.5)[~torch.eye(40, dtype=torch.bool)]
    assert float(errors.abs().max()) < 6 * projection.standard_error(0.5)


def test_the_same_on_every_machine_and_other_under_another_seed():
    vectors = torch.arange(1, 101, dtype=torch.float32).view(1, 100)
    projected = Projection(100, 8, seed=3).apply(vectors)
    # Recorded; sums of integers are exact, so only the scale is rounded.
    recorded = [126.125, -256.375, 329.125, 115.625, -449.125, 245.625, 0.3750031, 201.125]
    assert torch.allclose(projected, torch.tensor([recorded]), rtol=1e-6)
    assert not torch.allclose(projected, Projection(100, 8, seed=4).apply(vectors))
    rows = Projection(65536, 64)._rows.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(rows).hexdigest()[:16] == "cc86623b004c7aaf"


def test_types_blocks_and_nothing(monkeypatch):
    vectors = torch.randn(10, 96, generator=torch.Generator().manual_seed(0))
    projection = Projection(96, 16)
    whole = projection.apply(vectors)
    monkeypatch.setattr("clara_core.retrieval.projection._BLOCK", 3 * 128)
    assert torch.equal(projection.apply(vectors), whole)
    assert projection.apply(vectors.bfloat16()).dtype == torch.float32
    assert projection.apply(vectors[:0]).shape == (0, 16)


@pytest.mark.parametrize("target", [0, -1, 97])
def test_impossible_lengths(target):
    with pytest.raises(ValueError, match=f"target={target}"):
        Projection(96, target)


def test_vectors_of_another_length():
    with pytest.raises(ValueError, match=r"\[n, 96\], got \[2, 95\]"):
        Projection(96, 8).apply(torch.zeros(2, 95))
