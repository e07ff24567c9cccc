"""Memories as bytes: exact sizes, a plain reference implementation, rounding errors, refused input."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.store.codec import MEMORY_TYPES, MemoryCodec


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_bytes(memory_type, window):
    """Encode a window ``[T, H]`` in the documented format, one number after the other."""
    if memory_type == "float32":
        return b"".join(struct.pack("<f", number) for number in window.flatten().tolist())
    if memory_type == "bfloat16":
        numbers = window.bfloat16().float().flatten().tolist()
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    scales, steps = b"", b""
    for token in window.float():
        scale = float(token.abs().max() / 127)
        scales += struct.pack("<f", scale)
        steps += b"".join(struct.pack("b", round(float(n / np.float32(scale))) if scale else 0) for n in token.numpy())
    return scales + steps


@pytest.mark.parametrize("memory_type", MEMORY_TYPES)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99), st.sampled_from([1e-30, 1, 1e30]))
def test_bytes_are_those_of_the_plain_twin(memory_type, n_mem, hidden, windows, seed, size):
    tokens = drawn(windows, n_mem, hidden, seed=seed) * size
    codec = MemoryCodec(memory_type, n_mem, hidden)
    rows = codec.encode(tokens)
    assert rows.shape == (windows, codec.row_bytes)
    assert [row.tobytes() for row in rows] == [plain_bytes(memory_type, window) for window in tokens]


@pytest.mark.parametrize("memory_type, expected", [("float32", 262_144), ("bfloat16", 131_072), ("int8", 65_600)])
def test_a_memory_of_7b(memory_type, expected):
    assert MemoryCodec(memory_type, 16, 4096).row_bytes == expected


def test_float32_comes_back_exactly():
    tokens = drawn(5, 4, 16)
    codec = MemoryCodec("float32", 4, 16)
    assert torch.equal(codec.decode(codec.encode(tokens)), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_comes_back_exactly(dtype):
    tokens = drawn(5, 4, 16, dtype=torch.bfloat16)
    codec = MemoryCodec("bfloat16", 4, 16)
    back = codec.decode(codec.encode(tokens), dtype)
    assert back.dtype == dtype
    assert torch.equal(back, tokens.to(dtype))


def test_int8_is_within_half_a_step_of_each_token():
    tokens = drawn(20, 8, 64) * torch.logspace(-3, 3, 8)[:, None]  # tokens of very different lengths
    codec = MemoryCodec("int8", 8, 64)
    back = codec.decode(codec.encode(tokens))
    steps = tokens.abs().amax(dim=2, keepdim=True) / 127
    assert bool(((back - tokens).abs() <= steps * 0.501).all())
    before, after = tokens.flatten(1).double(), back.flatten(1).double()
    assert 0 < float(((before - after).norm(dim=1) / before.norm(dim=1)).mean()) < 0.01
    assert 0.9999 < float(torch.nn.functional.cosine_similarity(before, after).min()) < 1


def test_what_was_written_is_written_again_the_same():
    tokens = drawn(6, 4, 32)
    for memory_type in MEMORY_TYPES:
        codec = MemoryCodec(memory_type, 4, 32)
        once = codec.encode(tokens)
        assert np.array_equal(codec.encode(codec.decode(once)), once)


def test_zeros_tiny_and_no_windows():
    for memory_type in MEMORY_TYPES:
        codec = MemoryCodec(memory_type, 2, 4)
        for tokens in (torch.zeros(1, 2, 4), torch.full((1, 2, 4), 1e-45), torch.zeros(0, 2, 4)):
            back = codec.decode(codec.encode(tokens))
            assert back.shape == tokens.shape
            assert bool((back == (tokens if memory_type == "float32" else 0)).all())


def test_rows_may_go_away_and_lie_apart():
    codec = MemoryCodec("bfloat16", 2, 4)
    tokens = drawn(4, 2, 4, dtype=torch.bfloat16).float()
    rows = codec.encode(tokens).copy()
    for dtype in (torch.float32, torch.bfloat16):
        back = codec.decode(rows[::2], dtype)
        kept = back.clone()
        rows_before = rows.copy()
        rows[:] = 0
        assert torch.equal(back, kept)
        assert torch.equal(back.float(), tokens[::2])
        rows[:] = rows_before
    unwritable = rows.copy()
    unwritable.flags.writeable = False
    assert torch.equal(codec.decode(unwritable), tokens)


@pytest.mark.parametrize("memory_type", MEMORY_TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(memory_type, bad):
    tokens = drawn(4, 2, 8)
    tokens[2, 1, 3] = bad
    with pytest.raises(ValueError, match="1 of 4 windows, the first is window 2"):
        MemoryCodec(memory_type, 2, 8).encode(tokens)


def test_numbers_too_large_for_bfloat16_are_refused_and_large_ones_are_not():
    largest = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match="bfloat16"):
        MemoryCodec("bfloat16", 1, 4).encode(torch.full((1, 1, 4), largest))
    codec = MemoryCodec("int8", 1, 4)
    assert torch.allclose(codec.decode(codec.encode(torch.full((1, 1, 4), largest / 2))), torch.tensor(largest / 2))


def test_other_shapes_and_types_are_named():
    codec = MemoryCodec("int8", 2, 8)
    with pytest.raises(ValueError, match=r"\[windows, 2, 8\], got \[2, 8\]"):
        codec.encode(drawn(2, 8))
    with pytest.raises(ValueError, match="has 24 bytes"):
        codec.decode(MemoryCodec("bfloat16", 2, 8).encode(drawn(1, 2, 8)))
    with pytest.raises(ValueError, match="'bfloat16', 'int8', got 'int4'"):
        MemoryCodec("int4", 2, 8)
    with pytest.raises(ValueError, match="got 0 and 8"):
        MemoryCodec("int8", 0, 8)
