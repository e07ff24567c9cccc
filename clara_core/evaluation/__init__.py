"""How good a model is on questions: measures of answers and rankings, and runs over a file of questions.

The measures are plain Python and know nothing of models. `evaluate` runs an engine over questions; what it needs
beyond the core's own dependencies is looked for when it is used.
"""

from __future__ import annotations

from clara_core.evaluation.answers import cover_match, exact_match, f1, normalize_answer, score_answers
from clara_core.evaluation.rankings import (
    hit_rate,
    mrr,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    score_rankings,
)

__all__ = [
    "cover_match",
    "exact_match",
    "f1",
    "hit_rate",
    "mrr",
    "ndcg_at_k",
    "normalize_answer",
    "precision_at_k",
    "recall_at_k",
    "reciprocal_rank",
    "score_answers",
    "score_rankings",
]
