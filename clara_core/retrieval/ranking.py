"""Ranking by cosines of memory tokens, maximal marginal relevance, and fusion of rankings. Runs on the CPU in float32.

The score of a document is that of its best window. Letters in shapes: Q questions, M memories, W windows of all
memories, D = n_mem * hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.data.memory import Memory

Item = TypeVar("Item", bound=Hashable)

RERANK: Final = 10  # documents that are ranked again for a question; more were no better (docs/retrieval.md)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate of a ranking.

    Attributes:
        index: Index in the list of candidates.
        score: Cosine of question and document, in [-1, 1].
        window: Index of the document's best window.
    """

    index: int
    score: float
    window: int


def unit_rows(tokens: Tensor) -> Tensor:
    """Memory tokens ``[rows, n_mem, hidden]`` flattened to unit vectors ``[rows, D]`` in float32."""
    import torch

    return torch.nn.functional.normalize(tokens.flatten(1).float(), dim=1)


def window_scores(questions: Tensor, memories: Sequence[Memory]) -> list[Tensor]:
    """Cosine of each question with every window: one ``[Q, windows]`` for each memory."""
    import torch

    if not memories:
        return []
    windows = unit_rows(torch.cat([memory.tokens for memory in memories]))  # [W, D]
    # By rounding, the product of two equal unit vectors may exceed 1.
    scores = (unit_rows(questions) @ windows.T).clamp(-1.0, 1.0)  # [Q, W]
    return list(scores.split([len(memory.tokens) for memory in memories], dim=1))


def score_memories(questions: Tensor, memories: Sequence[Memory]) -> Tensor:
    """Cosine of each question ``[Q, n_mem, hidden]`` with each document's best window: ``[Q, M]``, float32."""
    import torch

    if not memories:
        return torch.zeros(len(questions), 0)
    return torch.stack([scores.amax(1) for scores in window_scores(questions, memories)], dim=1)


def rank_memories(question: Tensor, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
    """Rank documents by their score for a question ``[n_mem, hidden]``, best first; equal scores keep their order.

    Raises:
        ValueError: `top_k` is negative.
    """
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}")
    best = [scores[0].max(0) for scores in window_scores(question[None], memories)]
    ranked = [Ranked(index, float(top.values), int(top.indices)) for index, top in enumerate(best)]
    ranked.sort(key=lambda candidate: -candidate.score)
    return ranked if top_k is None else ranked[:top_k]


def diversify(question: Tensor, candidates: Tensor, k: int, lambda_mult: float = 0.5) -> list[int]:
    """Indices of at most k candidates ``[M, D]`` by maximal marginal relevance, in order of choice.

    The question ``[D]`` has any norm; `lambda_mult` is 1 for relevance alone, 0 for diversity alone.

    Raises:
        ValueError: `lambda_mult` is out of range.
    """
    import torch

    if not 0.0 <= lambda_mult <= 1.0:
        raise ValueError(f"lambda_mult must lie in [0, 1], got {lambda_mult}")
    vectors = torch.nn.functional.normalize(candidates.float(), dim=1)
    relevance = vectors @ torch.nn.functional.normalize(question.float(), dim=0)  # [M]
    repeated = torch.full_like(relevance, -1.0)
    free = torch.ones_like(relevance, dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(min(k, len(vectors))):
        penalty = repeated if chosen else torch.zeros_like(relevance)
        gain = (lambda_mult * relevance - (1 - lambda_mult) * penalty).masked_fill(~free, float("-inf"))
        index = int(gain.argmax())
        chosen.append(index)
        free[index] = False
        repeated = torch.maximum(repeated, vectors @ vectors[index])
    return chosen


def fuse_ranks(
    rankings: Sequence[Sequence[Item]], weights: Sequence[float] | None = None, constant: int = 60
) -> list[tuple[Item, float]]:
    """Reciprocal rank fusion (Cormack et al., 2009): ``sum of weight / (constant + rank)``, best first.

    An item may be missing in some rankings. A larger constant reduces the advantage of the first ranks.

    Raises:
        ValueError: The number of weights differs from that of rankings.
    """
    weights = [1.0] * len(rankings) if weights is None else weights
    if len(weights) != len(rankings):
        raise ValueError(
            f"weights must hold one weight a ranking, got {len(weights)} weights for {len(rankings)} rankings"
        )
    totals: dict[Item, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            totals[item] = totals.get(item, 0.0) + weight / (constant + rank)
    return sorted(totals.items(), key=lambda pair: -pair[1])


# --- relevance ---------------------------------------------------------------------------------------------


def memory_relevance(cosine: float) -> float:
    """Map a cosine to [0, 1]; orthogonal vectors give 0.5."""
    return (cosine + 1) / 2


def text_relevance(score: float, unit: float) -> float:
    """Map a BM25 score to [0, 1); `unit`, which `WordIndex.search` returns, gives 0.9.

    It is the score of a text of mean length that has each telling word of the question once.
    """
    return 1 - 10 ** (-score / unit) if unit > 0 else 0.0


def relevances(
    cosines: Mapping[Item, float], texts: Mapping[Item, float], unit: float
) -> dict[Item, tuple[float, float]]:
    """The relevance of each item by its cosine and by its BM25 score (with their `unit`); 0 if it has none."""
    return {
        item: (memory_relevance(cosines[item]) if item in cosines else 0.0, text_relevance(texts.get(item, 0.0), unit))
        for item in {**cosines, **texts}
    }


def fuse(parts: Mapping[Item, tuple[float, float]], text_weight: float) -> list[tuple[Item, float]]:
    """Fuse the rankings of one question by memory and by words, best first, with scores in [0, 1].

    A score is the mean of the relevance by cosine and by BM25 (`relevances`), which has the weight `text_weight`. A
    text with a rare word of the question (a code, a name, a number) comes first, because the cosines of candidates
    differ less than their BM25 scores. Equal scores keep their order.
    """
    scores = {
        item: (1 - text_weight) * by_memory + text_weight * by_words for item, (by_memory, by_words) in parts.items()
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])
