"""The sizes and buffers of fixed decode steps, against steps with tensors of their own."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_core.model.checkpoint.config import Role
from clara_core.model.fixed_steps import FixedSteps, GraphCapture, StepBuffers, page_bucket, row_bucket
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVRow
from tests.engines import open_engine
from tests.reference import PlainKernel
from tests.tiny import FAMILIES, build


def test_sizes_of_batches() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 127, 128)] == [
        1, 2, 4, 4, 8, 8, 16, 16, 24, 40, 128, 128,
    ]  # fmt: skip
    assert [page_bucket(pages, 12) for pages in (1, 2, 3, 5, 8, 9, 12, 13)] == [1, 2, 4, 8, 8, 12, 12, 13]


@given(st.integers(1, 500), st.integers(1, 500))
def test_every_batch_fits_its_size_and_little_is_wasted(rows: int, pages: int) -> None:
    assert rows <= row_bucket(rows) < max(2 * rows, rows + 8)
    assert pages <= page_bucket(pages, 128) <= max(2 * pages - 1, pages)
    assert row_bucket(row_bucket(rows)) == row_bucket(rows)


def test_buffers_are_overwritten_in_place() -> None:
    buffers = StepBuffers(4, 2, 99, torch.device("cpu"))
    names = ("tokens", "positions", "lengths", "into", "table")
    before = {name: getattr(buffers, name).data_ptr() for name in names}
    buffers.fill([7, 8, 9], [KVRow([5, 3], PAGE + 2), KVRow([1], 0), KVRow([0, 6], PAGE - 1)])
    assert buffers.tokens.tolist() == [7, 8, 9, 0]
    assert buffers.positions.tolist() == [PAGE + 2, 0, PAGE - 1, 0]
    assert buffers.lengths.tolist() == [PAGE + 3, 1, PAGE, 1]
    assert buffers.into.tolist() == [3 * PAGE + 2, PAGE, PAGE - 1, 99]
    assert buffers.table.tolist() == [[5, 3], [1, 0], [0, 0], [0, 0]]
    buffers.fill(torch.tensor([4]), [KVRow([2], 6)])  # nothing is left of the rows before
    assert buffers.tokens.tolist()[0] == 4
    assert buffers.positions.tolist() == [6, 0, 0, 0]
    assert buffers.lengths.tolist() == [7, 1, 1, 1]
    assert buffers.into.tolist() == [2 * PAGE + 6, 99, 99, 99]
    assert buffers.table.tolist() == [[2, 0], [0, 0], [0, 0], [0, 0]]
    assert before == {name: getattr(buffers, name).data_ptr() for name in names}


@pytest.mark.parametrize("copies", [False, True], ids=["pages", "copies"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_fixed_step_is_the_step_with_its_own_tensors(family: str, copies: bool, tmp_path: Path) -> None:
    """Batches of 1 to 11 rows, some at the border of a page; the others' keys and values stay as they are."""
    model = open_engine(build(tmp_path, family, seed=3), cpu_kernels="mkl").load().model
    model.kernel = PlainKernel()
    memories = [model.kv_memory(24) for _ in range(2)]
    assert all(memory.fixed is None for memory in memories)
    memories[1].fixed = FixedSteps(model._next_logits, None if copies else model.kernel, 8, None)
    rng = random.Random(4)
    prompts = [[rng.randrange(3, 90) for _ in range(rng.choice((2, 9, PAGE - 2)))] for _ in range(11)]
    rows = [[memory.open(len(prompt) + 12) for prompt in prompts] for memory in memories]
    for memory, own in zip(memories, rows, strict=True):
        cache = KVCache(memory, own)
        model.prefill(prompts, torch.zeros(0, 0), [[]] * len(prompts), cache)
        cache.commit()
    for count in (11, 3, 1, 8, 5, 11, 2):
        chosen = rng.sample(range(11), count)
        tokens = [rng.randrange(3, 90) for _ in chosen]
        role = rng.choice((Role.GENERATOR, Role.GENERATOR, None))
        logits = []
        for memory, own in zip(memories, rows, strict=True):
            cache = KVCache(memory, [own[at] for at in chosen], role)
            logits.append(model.step(tokens, cache))
            cache.commit()
        assert logits[1].shape == (count, logits[0].shape[1])
        torch.testing.assert_close(logits[1], logits[0], atol=2e-5, rtol=1e-4)
        for layer in range(model.kv_shape().layers):
            torch.testing.assert_close(memories[1].both(layer), memories[0].both(layer), atol=2e-5, rtol=1e-4)
    model.kernel = None


def test_a_capture_that_is_impossible_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """As in a torch without CUDA."""
    capture = GraphCapture(torch.device("cuda", 0))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert capture(lambda: None, "a decode step", None) is None
    assert not capture.works
    assert caplog.text.count("a decode step could not be captured as a CUDA graph") == 1
