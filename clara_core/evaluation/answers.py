"""Metrics of answers, with the normalisation of the published evaluation: exact match, cover exact match, F1.

Every metric scores the answer to one question against one or several gold answers, in [0, 1]; `score_answers` averages
over questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from clara_core.evaluation.aggregate import check_lengths

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BOOLEANS = {"True": "yes", "False": "no"}  # how some models write the answer to a yes-no question
_CLOSED = frozenset({"yes", "no", "noanswer"})  # answers without partial credit


def normalize_answer(text: str) -> str:
    """Convert to lower case, remove ASCII punctuation and English articles, and collapse spaces.

    Punctuation is removed first, without a space: ``"1,200"`` becomes ``"1200"``, ``"co-op"`` becomes ``"coop"``.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str | Sequence[str]) -> float:
    """1.0 if the prediction is one of the gold answers after normalisation, else 0.0.

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_same, prediction, gold)


def cover_match(prediction: str, gold: str | Sequence[str]) -> float:
    """1.0 if every word of one of the gold answers is a word of the prediction after normalisation, else 0.0.

    As published: whole words are compared (``no`` is not in ``north``), in any order. A gold answer that has no word
    left after normalisation (``"The"``) is covered only by a prediction without words.

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_covers, prediction, gold)


def f1(prediction: str, gold: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the words; the best score over the gold answers.

    Words count as often as they occur. ``yes``, ``no`` and ``noanswer`` get no partial credit. Two texts without words
    after normalisation score 1.0.

    Raises:
        ValueError: There is no gold answer.
    """
    return _best(_overlap, prediction, gold)


def score_answers(predictions: Sequence[str], golds: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Means over questions: ``exact_match``, ``cover_match``, ``f1``.

    Raises:
        ValueError: There is no question, the lengths differ, or a question has no gold answer.
    """
    check_lengths("predictions", predictions, "golds", golds)
    pairs = list(zip(predictions, golds, strict=True))
    return {
        measure.__name__: fmean(measure(prediction, gold) for prediction, gold in pairs)
        for measure in (exact_match, cover_match, f1)
    }


def _best(measure: Callable[[str, str], float], prediction: str, gold: str | Sequence[str]) -> float:
    answers = [gold] if isinstance(gold, str) else list(gold)
    if not answers:
        raise ValueError("a question needs at least one gold answer, got none")
    predicted = _normal(prediction)
    return max(measure(predicted, _normal(answer)) for answer in answers)


def _normal(text: str) -> str:
    return normalize_answer(_BOOLEANS.get(text, text))


def _same(prediction: str, gold: str) -> float:
    return float(prediction == gold)


def _covers(prediction: str, gold: str) -> float:
    if not gold:
        return float(not prediction)
    return float(set(gold.split()) <= set(prediction.split()))


def _overlap(prediction: str, gold: str) -> float:
    if prediction in _CLOSED or gold in _CLOSED or not prediction or not gold:
        return _same(prediction, gold)
    predicted, expected = prediction.split(), gold.split()
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))
