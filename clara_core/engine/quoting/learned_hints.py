"""Hints whose sizes were learned: a small network over what stands at the place at which an answer begins.

The rules of `hints` are one of its inputs, the others are features of `place_features`. A second network tells where
the answer ends, by `end_features`. The weights were fitted to questions written one by one, together with the logits of
the bundled model (``tools/pocket_factory/hint_weights.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import repeat
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import embedding_bag

from clara_core.engine.quoting.answer_kinds import AnswerKind
from clara_core.engine.quoting.end_features import ends_of
from clara_core.engine.quoting.hints import Hints
from clara_core.engine.quoting.place_features import Columns, Features, PlaceFeatures, Words
from clara_core.engine.quoting.verbatim import OTHER_ANSWERS, REFUSAL, may_begin

WEIGHTS: Final = Path(__file__).with_name("hint_weights.safetensors")
"""The weights of where an answer begins."""
END_WEIGHTS: Final = WEIGHTS.with_name("end_weights.safetensors")
"""The weights of where it ends."""
_NO_PLACE: Final = -100.0  # nats, the gain of a document without a word


@dataclass(frozen=True, slots=True)
class HintWeights:
    """A gain for each set of features, by the sort of the question.

    The sum of a weight for each feature, one for each feature and the sort, and ``out · relu(scale · hidden + shift)``,
    where ``hidden`` is the sum of the vectors of the features, and ``scale`` and ``shift`` are the sort's.

    Attributes:
        rows: The row of each value of each group.
        sorts: The number of each sort; "", which is 0, is all others.
        rules: Factor of the gain by rules.
        plain: ``[features + 1]``; the last row, of values without weights, is zero, as in `hidden`.
        by_sort: ``[sorts, features + 1]``.
        hidden: ``[features + 1, width]``.
        scale: ``[sorts, width]``.
        shift: ``[sorts, width]``.
        out: ``[width]``.
    """

    rows: Mapping[str, Mapping[str, int]]
    sorts: Mapping[str, int]
    rules: float
    plain: Tensor
    by_sort: Tensor
    hidden: Tensor
    scale: Tensor
    shift: Tensor
    out: Tensor

    @classmethod
    def read(cls, path: Path) -> HintWeights:
        """The weights of a file of `tools.pocket_factory.hint_weights`."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["hints"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
        rows: dict[str, dict[str, int]] = {}
        for row, name in enumerate(about["features"]):
            group, _, value = name.partition("=")
            rows.setdefault(group, {})[value] = row
        return cls(rows, {sort: at for at, sort in enumerate(about["sorts"])}, about["rules"], **tensors)

    def table(self, sort: str) -> tuple[Tensor, Tensor]:
        """For a sort of questions: ``[features + 1, 1 + width]`` to be summed, and the shift of the sum."""
        at = self.sorts.get(sort, 0)
        weights = (self.plain + self.by_sort[at])[:, None]
        return torch.cat([weights, self.hidden * self.scale[at]], dim=1), self.shift[at]

    def find_rows(self, group: str, values: Sequence[str]) -> list[int]:
        """The rows of some values of a group."""
        known, none = self.rows.get(group, {}), len(self.plain) - 1
        return list(map(known.get, values, repeat(none)))


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
        self._ends: dict[tuple[int, int], dict[int, float]] = {}  # of each quotation by its document and start

    @cached_property
    def _learned(self) -> list[list[float]]:
        """The learned gain of each word of each document."""
        return [_gains(WEIGHTS, self.sort, self._features.columns(number)) for number in range(len(self._texts))]

    @cached_property
    def _other(self) -> dict[str, float]:
        """The learned gain of each answer that is no quotation."""
        features = {answer: self.features_of_other(answer) for answer in ("Yes", "No", REFUSAL)}
        found = {
            answer: _gains(WEIGHTS, self.sort, {group: [value] for group, value in own.items()})[0]
            for answer, own in features.items()
        }
        return {answer: found.get(answer, found.get(answer.capitalize(), 0.0)) for answer in OTHER_ANSWERS}

    def gain(self, document: int, start: int, word: str) -> float:
        """How much more probable a quotation is that begins with this word at this character, in nats."""
        learned = self._learned[document][self._features.documents[document].at[start]]
        return self._factor * (_weights(WEIGHTS).rules * self.by_rules(document, start, word) + learned)

    def features_of_text(self, document: int) -> list[float]:
        """How well a document answers the question, as numbers of which the first is in nats.

        Returns:
            list: The gain of all places at which a quotation may begin (the logarithm of the sum of exponentials), and
            those of `PlaceFeatures.of_text` for the best one.
        """
        words = self._features.documents[document]
        places = [at for at, (start, _) in enumerate(words.spans) if may_begin(words.text, start)]
        if not places:
            return [_NO_PLACE, *self._features.of_text(document, None)]
        spans = [words.spans[at] for at in places]
        gains = [self.gain(document, start, words.text[start:end]) for start, end in spans]
        best = max(gains)
        together = best + math.log(math.fsum(math.exp(gain - best) for gain in gains))
        return [together, *self._features.of_text(document, places[gains.index(best)])]

    def gain_of_end(self, document: int, start: int, end: int) -> float:
        """How much more probable it is that a quotation ends here than that it goes on, in nats.

        Args:
            document: The number of its document.
            start: Its first character.
            end: The end of its last word, exclusive.
        """
        key = document, start
        if key not in self._ends:
            self._ends[key] = self._gains_of_ends(document, start)
        return self._factor * self._ends[key].get(end, 0.0)

    def _gains_of_ends(self, document: int, start: int) -> dict[int, float]:
        """The gain of each end of a quotation that begins at a character."""
        words = self._features.documents[document]
        found = ends_of(words, self._kind, words.at[start])
        groups = sorted({group for features in found.values() for group in features})
        columns = {group: [features.get(group, "") for features in found.values()] for group in groups}
        return dict(zip(found, _gains(END_WEIGHTS, self.sort, columns), strict=True))

    def other(self, answer: str) -> float:
        """How much more probable an answer is that is no quotation, in nats."""
        return self._factor * (_weights(WEIGHTS).rules * self.other_by_rules(answer) + self._other[answer])

    def by_rules(self, document: int, start: int, word: str) -> float:
        """The gain of a quotation by the rules alone."""
        return super().gain(document, start, word)

    def other_by_rules(self, answer: str) -> float:
        """The gain of an answer that is no quotation by the rules alone."""
        return super().other(answer)

    def features_of_other(self, answer: str) -> Features:
        """The features of a refusal, "Yes" or "No"."""
        return self._features.of_refusal() if answer == REFUSAL else self._features.of_yes_or_no(answer)

    def columns(self, document: int) -> Columns:
        """The features of all words of a document."""
        return self._features.columns(document)

    @property
    def documents(self) -> list[Words]:
        """The words of each document."""
        return self._features.documents

    @property
    def kind(self) -> AnswerKind | None:
        """The kind of answer that the question asks for."""
        return self._kind

    @property
    def sort(self) -> str:
        """The sort of the question."""
        return self._features.sort


def _gains(file: Path, sort: str, columns: Columns) -> list[float]:
    """The gain of each row of some columns of features, for a sort of questions."""
    weights = _weights(file)
    table, shift = _table(
        file, sort if sort in weights.sorts else ""
    )  # a table for each known sort, and one for others
    rows = torch.tensor([weights.find_rows(*column) for column in columns.items()])  # [groups, rows]
    if rows.numel() == 0:
        return []
    sums = embedding_bag(rows.T.contiguous(), table, mode="sum")  # [rows, 1 + width]
    gains: list[float] = (sums[:, 0] + (sums[:, 1:] + shift).relu() @ weights.out).tolist()
    return gains


@cache
def _weights(file: Path) -> HintWeights:
    return HintWeights.read(file)


@cache
def _table(file: Path, sort: str) -> tuple[Tensor, Tensor]:
    return _weights(file).table(sort)
