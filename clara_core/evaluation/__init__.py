"""Evaluation of a model on questions: metrics of answers and rankings in plain Python, and runs over a question file.

Optional dependencies of `evaluate` are imported when it is called.
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
from clara_core.evaluation.report import Report
from clara_core.evaluation.run import evaluate, over_corpus, read_questions
from clara_core.evaluation.text_overlap import bleu, entities, entity_preservation, rouge, score_paraphrases

__all__ = [
    "Report",
    "bleu",
    "cover_match",
    "entities",
    "entity_preservation",
    "evaluate",
    "exact_match",
    "f1",
    "hit_rate",
    "mrr",
    "ndcg_at_k",
    "normalize_answer",
    "over_corpus",
    "precision_at_k",
    "read_questions",
    "recall_at_k",
    "reciprocal_rank",
    "rouge",
    "score_answers",
    "score_paraphrases",
    "score_rankings",
]
