"""Hints whose sizes were learned: a log-linear model of the place at which an answer begins.

The rules of `clara_core.engine.hints` are one of its features; the others are those of `place_features`, each also for
every sort of question. The weights, in nats, were fitted to questions written one by one, together with the logits of
the bundled model (``tools/pocket_factory/hint_weights.py``). Runs no neural model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from clara_core.engine.hints import Hints
from clara_core.engine.place_features import Feature, PlaceFeatures
from clara_core.engine.verbatim import REFUSAL

WEIGHTS: Final = Path(__file__).with_name("hint_weights.json")
RULES: Final = "rules"
FOR: Final = " | "  # between a feature and the sort of question that its weight is for


class LearnedHints(Hints):
    """The hints for one question and its documents.

    Args:
        question: The question.
        texts: The documents.
        weight: Factor of all gains.
    """

    def __init__(self, question: str, texts: Sequence[str], weight: float = 1.0) -> None:
        super().__init__(question, texts)
        self._factor = weight
        self._features = PlaceFeatures(question, texts, self._kind, self._shared)
        self._weights = _weights_for(self._features.sort)

    def gain(self, document: int, start: int, word: str) -> float:
        """How much more probable a quotation is that begins with this word at this character, in nats."""
        return self._sum(self.features(document, start, word))

    def other(self, answer: str) -> float:
        """How much more probable an answer is that is no quotation, in nats."""
        return self._sum(self.features_of_other(answer))

    def features(self, document: int, start: int, word: str) -> Iterable[Feature]:
        """The features of a quotation that begins there."""
        yield RULES, super().gain(document, start, word)
        yield from self._features.of(document, start)

    def features_of_other(self, answer: str) -> Iterable[Feature]:
        """The features of a refusal, "Yes" or "No"."""
        yield RULES, super().other(answer)
        yield from self._features.of_refusal() if answer == REFUSAL else self._features.of_yes_or_no(answer)

    @property
    def sort(self) -> str:
        """The sort of the question."""
        return self._features.sort

    def _sum(self, features: Iterable[Feature]) -> float:
        weights = self._weights
        return self._factor * sum(weights.get(name, 0.0) * value for name, value in features)


@cache
def _weights_for(sort: str) -> dict[str, float]:
    """The weights of a sort of questions."""
    found: dict[str, float] = {}
    own = FOR + sort
    for name, weight in _read_weights().items():
        feature, _, condition = name.partition(FOR)
        if not condition or name.endswith(own):
            found[feature] = found.get(feature, 0.0) + weight
    return found


@cache
def _read_weights() -> dict[str, float]:
    weights: dict[str, float] = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    return weights
