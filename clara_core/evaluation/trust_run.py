"""Measures the evidence of answers on questions: citations, confidence, and the gain of a second reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clara_core.data.examples import RetrievalLine
from clara_core.evaluation.aggregate import mean
from clara_core.evaluation.answers import cover_match, exact_match
from clara_core.evaluation.trust import auroc, trust_scores

if TYPE_CHECKING:
    from clara_core.engine.engine import ClaraEngine
    from clara_core.engine.sampling import Answer

_BATCH = 16


def measure_trust(
    engine: ClaraEngine, lines: Sequence[RetrievalLine], *, top_k: int = 5, max_tokens: int = 64
) -> dict[str, Any]:
    """Answer all questions from their best candidates, with evidence, and score the evidence.

    Args:
        engine: The engine; without a calibration, the confidence is the probability of the answer.
        lines: Questions with candidates.
        top_k: Documents that are read for a question.
        max_tokens: Most tokens of an answer.

    Returns:
        dict: ``confidence`` (`trust_scores`; an answer is right if it covers a reference) and its baseline
        ``logprob_auroc``; ``citations`` (share of right answers whose first citation is a gold document) and its
        baseline ``first_ranked`` (the same for the best ranked document); ``passed`` (share of answers that pass all
        checks, and their accuracy); ``exact_match``, and ``again`` (the same with a second reading of doubtful
        answers). Values that no question determines are None.
    """
    answers: list[Answer] = []
    again: list[Answer] = []
    golds: list[set[int]] = []
    for start in range(0, len(lines), _BATCH):
        items = []
        for line in lines[start : start + _BATCH]:
            memories = engine.remember(line.docs)
            order = [hit.index for hit in engine.rank(line.question, memories, top_k)] if engine.ranks else range(top_k)
            kept = [at for at in order if at < len(memories)]
            items.append((line.question, [memories[at] for at in kept]))
            golds.append({place for place, at in enumerate(kept) if at in line.pos_index})
        answers += engine.answer_batch(
            items, max_tokens=max_tokens, citations=True, logprobs=True, min_confidence=0.0
        )  # fmt: skip
        again += engine.answer_batch(items, max_tokens=max_tokens, read="again")
    right = [cover_match(one.text, line.references) == 1.0 for one, line in zip(answers, lines, strict=True)]
    known = [(one, hit) for one, hit in zip(answers, right, strict=True) if one.confidence is not None]
    cited = [
        (one.citations[0].document in gold if one.citations else False, 0 in gold)
        for one, gold, hit in zip(answers, golds, right, strict=True)
        if hit and gold
    ]
    passed = [hit for one, hit in zip(answers, right, strict=True) if _passes(one)]
    exact, second = (
        mean([exact_match(one.text, line.references) for one, line in zip(some, lines, strict=True)])
        for some in (answers, again)
    )
    return {
        "questions": len(lines),
        "calibrated": all(one.calibrated for one, _ in known) and bool(known),
        "confidence": trust_scores([one.confidence or 0.0 for one, _ in known], [hit for _, hit in known])
        if known
        else None,
        "logprob_auroc": auroc([(_logprob(one), hit) for one, hit in known]) if known else None,
        "citations": mean([float(hit) for hit, _ in cited]) if cited else None,
        "first_ranked": mean([float(hit) for _, hit in cited]) if cited else None,
        "passed": {"share": len(passed) / len(lines), "accuracy": mean(list(map(float, passed))) if passed else None},
        "exact_match": exact,
        "again": {"exact_match": second, "taken": mean([float(one.reading == "again") for one in again])},
    }


def _passes(answer: Answer) -> bool:
    checks = answer.checks
    return checks is not None and bool(checks.cited_first and checks.verbatim and checks.grounded)


def _logprob(answer: Answer) -> float:
    return sum(token.logprob for token in answer.logprobs or ())
