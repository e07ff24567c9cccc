"""Ranking, compared with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.data.memory import Memory
from clara_core.retrieval.ranking import diversify, fuse_ranks, rank_memories, score_memories, unit_rows


def memory(*windows: torch.Tensor) -> Memory:
    tokens = torch.stack(windows)
    return Memory(tokens, "text", tuple((i, i + 1) for i in range(len(windows))), 4, "print")


def random_memories(counts: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Memory]:
    generator = torch.Generator().manual_seed(seed)
    return [memory(*torch.randn(n, 3, 5, generator=generator).to(dtype)) for n in counts]


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    a, b = left.flatten().tolist(), right.flatten().tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_cosine_of_the_best_window(dtype: torch.dtype) -> None:
    memories = random_memories([1, 3, 2, 1], dtype=dtype)
    questions = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores = score_memories(questions, memories)
    assert scores.dtype == torch.float32
    expected = [[max(cosine(q, window) for window in m.tokens) for m in memories] for q in questions]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-6, rtol=0)


def test_ranks_name_the_place_the_score_and_the_window() -> None:
    memories = random_memories([2, 1, 3, 1, 2], seed=2)
    question = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    expected = []
    for index, candidate in enumerate(memories):
        scores = [cosine(question, window) for window in candidate.tokens]
        expected.append((max(scores), index, scores.index(max(scores))))
    expected.sort(reverse=True)
    ranked = rank_memories(question, memories)
    assert [(hit.index, hit.window) for hit in ranked] == [(index, window) for _, index, window in expected]
    assert [hit.score for hit in ranked] == pytest.approx([score for score, _, _ in expected], abs=1e-6)


def test_equal_scores_keep_the_order_given() -> None:
    one, other = random_memories([1, 1], seed=4)
    ranked = rank_memories(one.tokens[0], [other, one, one, other, one])
    assert [hit.index for hit in ranked] == [1, 2, 4, 0, 3]
    twice = memory(one.tokens[0], one.tokens[0])
    assert rank_memories(one.tokens[0], [twice])[0].window == 0


@pytest.mark.parametrize("top_k, n", [(None, 4), (0, 0), (1, 1), (4, 4), (99, 4)])
def test_top_k(top_k: int | None, n: int) -> None:
    memories = random_memories([1, 2, 1, 1], seed=5)
    whole = rank_memories(memories[0].tokens[0], memories)
    assert rank_memories(memories[0].tokens[0], memories, top_k) == whole[:n]


def test_nothing_to_rank() -> None:
    question = torch.randn(2, 3, 5)
    assert rank_memories(question[0], []) == []
    assert score_memories(question, []).shape == (2, 0)
    with pytest.raises(ValueError, match="top_k must be at least 0, got -1"):
        rank_memories(question[0], [], -1)


def test_a_cosine_stays_in_its_bounds() -> None:
    """Rounding must not raise the score of a text with itself above one."""
    memories = random_memories([1] * 200, seed=6)
    scores = score_memories(torch.cat([m.tokens for m in memories]), memories)
    assert scores.diagonal().min() > 1 - 1e-6
    assert scores.max() <= 1.0
    assert score_memories(-memories[0].tokens, memories[:1]).min() >= -1.0


def test_unit_rows_of_nothing_are_zero() -> None:
    rows = unit_rows(torch.stack([torch.zeros(3, 5), torch.full((3, 5), 2.0)]))
    assert rows[0].abs().max() == 0
    assert rows[1].norm() == pytest.approx(1.0)


# -- diversity -------------------------------------------------------------------------------------


def plain_mmr(question: torch.Tensor, candidates: torch.Tensor, k: int, balance: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(k, len(candidates)):
        gains = {}
        for index in range(len(candidates)):
            if index not in chosen:
                repeated = max((cosine(candidates[index], candidates[other]) for other in chosen), default=0.0)
                gains[index] = balance * cosine(question, candidates[index]) - (1 - balance) * repeated
        chosen.append(max(gains, key=lambda index: gains[index]))
    return chosen


@given(n=st.integers(1, 9), k=st.integers(0, 11), balance=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_diversify_equals_its_plain_twin(n: int, k: int, balance: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    question, candidates = torch.randn(6, generator=generator), torch.randn(n, 6, generator=generator)
    found = diversify(question, candidates, k, balance)
    assert len(set(found)) == len(found) == min(k, n)
    if balance > 0.01:  # at zero the first choice is a tie
        assert found == plain_mmr(question, candidates, k, balance)


def test_diversity_avoids_what_was_said() -> None:
    question = torch.tensor([1.0, 0.0])
    candidates = torch.tensor([[1.0, 0.05], [1.0, 0.06], [0.7, -0.7]])
    assert diversify(question, candidates, 2, lambda_mult=1.0) == [0, 1]
    assert diversify(question, candidates, 2, lambda_mult=0.5) == [0, 2]
    with pytest.raises(ValueError, match=r"lambda_mult must lie in \[0, 1\], got 1.5"):
        diversify(question, candidates, 2, lambda_mult=1.5)
    assert diversify(question, torch.zeros(0, 2), 3) == []


# -- fusion ----------------------------------------------------------------------------------------


def test_fused_ranks_add_up() -> None:
    fused = fuse_ranks([["a", "b", "c"], ["c", "a"]], weights=[1.0, 2.0], constant=10)
    assert dict(fused) == pytest.approx({"a": 1 / 11 + 2 / 12, "b": 1 / 12, "c": 1 / 13 + 2 / 11})
    assert [item for item, _ in fused] == ["c", "a", "b"]


def test_fusion_of_one_ranking_keeps_it_and_ties_keep_their_order() -> None:
    assert [item for item, _ in fuse_ranks([[3, 1, 2]])] == [3, 1, 2]
    assert [item for item, _ in fuse_ranks([[1, 2], [2, 1]])] == [1, 2]
    assert fuse_ranks([]) == fuse_ranks([[], []]) == []


def test_an_item_counts_once_a_ranking() -> None:
    assert dict(fuse_ranks([["a", "a", "b"]], constant=0)) == {"a": 1.0, "b": 0.5}


def test_weights_have_to_match_the_rankings() -> None:
    with pytest.raises(ValueError, match="got 1 weights for 2 rankings"):
        fuse_ranks([[1], [2]], weights=[1.0])
