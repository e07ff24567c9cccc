"""Ranking by memory tokens: cosine, best first, diverse, fused. Works on the processor, in float32.

A document's score is that of its best window. Letters of shapes: Q questions, M memories, W windows of all
memories, D = n_mem * hidden.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.data.memory import Memory

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate of a ranking.

    Attributes:
        index: Its place in the list of candidates that was given.
        score: Cosine of question and document, in [-1, 1].
        window: Which window of the document scored best.
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
    # Rounding can push the product of two equal unit vectors past one.
    scores = (unit_rows(questions) @ windows.T).clamp(-1.0, 1.0)  # [Q, W]
    return list(scores.split([len(memory.tokens) for memory in memories], dim=1))


def score_memories(questions: Tensor, memories: Sequence[Memory]) -> Tensor:
    """Cosine of each question with each document's best window.

    Args:
        questions: ``[Q, n_mem, hidden]``, as the query reasoner gives them.
        memories: The documents.

    Returns:
        Tensor: ``[Q, M]``, float32.
    """
    import torch

    if not memories:
        return torch.zeros(len(questions), 0)
    return torch.stack([scores.amax(1) for scores in window_scores(questions, memories)], dim=1)


def rank_memories(question: Tensor, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
    """The documents in order of their score, best first; equal scores keep the order given.

    Args:
        question: ``[n_mem, hidden]``.
        memories: The candidates.
        top_k: How many to return; more than there are, or None, means all.
    """
    if top_k is not None and top_k < 0:
        msg = f"top_k must be at least 0, got {top_k}"
        raise ValueError(msg)
    best = [scores[0].max(0) for scores in window_scores(question[None], memories)]
    ranked = [Ranked(index, float(top.values), int(top.indices)) for index, top in enumerate(best)]
    ranked.sort(key=lambda candidate: -candidate.score)
    return ranked if top_k is None else ranked[:top_k]


def diversify(question: Tensor, candidates: Tensor, k: int, lambda_mult: float = 0.5) -> list[int]:
    """Maximal marginal relevance: what answers the question and is not yet said.

    Args:
        question: ``[D]``, any length.
        candidates: ``[M, D]``.
        k: How many to choose.
        lambda_mult: 1 is relevance alone, 0 is diversity alone.

    Returns:
        list: Indices of the chosen candidates, in order of choice.
    """
    import torch

    if not 0.0 <= lambda_mult <= 1.0:
        msg = f"lambda_mult must lie in [0, 1], got {lambda_mult}"
        raise ValueError(msg)
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

    Args:
        rankings: Lists of items, best first; an item may be missing from some.
        weights: One a ranking; equal where None.
        constant: Damps the lead of the first ranks.
    """
    weights = [1.0] * len(rankings) if weights is None else weights
    if len(weights) != len(rankings):
        msg = f"one weight a ranking is needed: got {len(weights)} weights for {len(rankings)} rankings"
        raise ValueError(msg)
    totals: dict[Item, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            totals[item] = totals.get(item, 0.0) + weight / (constant + rank)
    return sorted(totals.items(), key=lambda pair: -pair[1])


# --- relevance ---------------------------------------------------------------------------------------------


def memory_relevance(cosine: float) -> float:
    """A cosine as a number in [0, 1]: one half is a right angle."""
    return (cosine + 1) / 2


def text_relevance(score: float, unit: float) -> float:
    """A BM25 score as a number in [0, 1): nine tenths is each word of the question, once, in a text of mean length.

    Args:
        score: Of a text.
        unit: The score of such a text, `clara_core.retrieval.bm25`.
    """
    return 1 - 10 ** (-score / unit) if unit > 0 else 0.0


def fuse(
    cosines: Mapping[Item, float], texts: Mapping[Item, float], unit: float, text_weight: float
) -> list[tuple[Item, float]]:
    """The rankings of one question by memory and by words as one, best first, with scores in [0, 1].

    A score is the weighted mean of both relevances: what stands in one text alone (a code, a name, a number) comes
    first, since cosines of the candidates lie close together and their words do not. Equal scores keep the order given.

    Args:
        cosines: Of each candidate; those without have no memory that could be compared.
        texts: BM25 of the candidates that share words with the question.
        unit: As in `text_relevance`.
        text_weight: In [0, 1]; the cosines have the rest.
    """
    scores = {
        item: (1 - text_weight) * (memory_relevance(cosines[item]) if item in cosines else 0.0)
        + text_weight * text_relevance(texts.get(item, 0.0), unit)
        for item in {**cosines, **texts}
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])
