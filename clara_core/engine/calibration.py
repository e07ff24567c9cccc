"""The probability that an answer is right, by logistic regression on signals about it.

The signals that are known decide the *level*: ``bare`` uses the log-probability of the answer, ``fast`` adds the
cosines of the best ranked documents with the question, ``checked`` adds the document that the answer is attributed to.
An answer that is not an extract of one document with all names of the question (a choice, yes or no, values of two
documents) has its own regression, ``joined``, because the signals of an extract predict little there. A calibration is
valid for one model at one rate, and for questions and documents like those that it was fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import torch
from torch import Tensor

from clara_core.common.errors import CheckpointError, FingerprintMismatch

CALIBRATION_FILE: Final = "calibration.json"
LevelName: TypeAlias = Literal["bare", "fast", "checked", "joined"]
_CHECKED: Final = ("logprob", "cited_cosine", "cosine_gap", "lead", "verbatim", "named", "present")
FEATURES: Final[dict[LevelName, tuple[str, ...]]] = {
    "bare": ("logprob",),
    "fast": ("logprob", "best_cosine", "lead", "present"),
    "checked": _CHECKED,
    "joined": _CHECKED,
}

_LEAST = -8.0  # log-probabilities are clipped here; all answers below are equally bad
_RIDGE = 1e-3  # keeps weights finite if one signal separates right from wrong
_FOLDS = 5
_ROWS = 40  # thresholds of a table
_FEWEST = 20  # answers that a fit needs, at least `_FOLDS` of them right and as many wrong
_SURE = 0.05  # probability that the error is above its bound


@dataclass(frozen=True, slots=True)
class Signals:
    """The features of an answer.

    Attributes:
        logprob: Sum of the log-probabilities of its tokens; of a quotation: among all tokens that were allowed.
        best_cosine: Cosine of the question with the best ranked document.
        lead: Difference of that cosine to the next lower one.
        present: Share of the question's names and numbers that the documents contain.
        cited_cosine: Cosine of the question with the best cited document; with the worst document if none is cited.
        verbatim: Whether the cited documents contain the words of the answer.
        named: Share of the question's names and numbers that the cited document contains.
        joined: Whether the answer is not an extract of one document: it cites several, is yes or no, or repeats words
            of the question.
    """

    logprob: float
    best_cosine: float | None = None
    lead: float = 0.0
    present: float = 1.0
    cited_cosine: float | None = None
    verbatim: bool = True
    named: float = 1.0
    joined: bool = False

    @property
    def level(self) -> LevelName:
        """The level with the most features that the answer has."""
        if self.best_cosine is None:
            return "bare"
        if self.cited_cosine is None:
            return "fast"
        return "joined" if self.joined or self.named < 1 else "checked"

    def vector(self, level: LevelName) -> list[float]:
        """The values of `FEATURES` of a level."""
        best, cited = self.best_cosine or 0.0, self.cited_cosine or 0.0
        values = {
            "logprob": max(self.logprob, _LEAST),
            "best_cosine": best,
            "cited_cosine": cited,
            "cosine_gap": best - cited,
            "lead": self.lead,
            "verbatim": float(self.verbatim),
            "named": self.named,
            "present": self.present,
        }
        return [values[name] for name in FEATURES[level]]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Coverage and error if answers below a confidence are withheld.

    Attributes:
        confidence: The threshold.
        coverage: Share of the questions that are answered.
        error: Share of wrong answers among these.
        bound: Upper bound of the error with a probability of 0.95 (Clopper and Pearson).
    """

    confidence: float
    coverage: float
    error: float
    bound: float


@dataclass(frozen=True, slots=True)
class Level:
    """The regression of one level.

    Attributes:
        means: Mean of each feature, in the order of `FEATURES`.
        scales: Standard deviation of each feature.
        weights: Weight of each standardized feature, and the constant at the end.
        table: Thresholds in ascending order, cross-validated: an answer is counted by a fit that has not seen it.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    table: tuple[Threshold, ...] = ()

    def probability(self, vector: Sequence[float]) -> float:
        """Probability that an answer with these features is right."""
        standard = [(value - mean) / scale for value, mean, scale in zip(vector, self.means, self.scales, strict=True)]
        logit = sum(weight * value for weight, value in zip(self.weights, [*standard, 1.0], strict=True))
        return 1 / (1 + math.exp(-max(min(logit, 40.0), -40.0)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The regressions that turn signals into a confidence, for one model.

    Attributes:
        fingerprint: Fingerprint of the model.
        levels: Regressions by name. Without ``joined``, ``checked`` serves all answers; the table of ``checked`` counts
            both kinds.
        questions: Number of questions that it was fitted on.
        unanswerable: Share of the questions that no document answered.
        documents: Most documents that an answer was read from.
        dtype: Type of the model's numbers when it was fitted.
        text_helps: Whether reading the best documents as text corrected more answers than it broke; None: not tried.
    """

    fingerprint: str
    levels: dict[LevelName, Level]
    questions: int = 0
    unanswerable: float = 0.0
    documents: int = 0
    dtype: str = ""
    text_helps: bool | None = None

    def confidence(self, signals: Signals) -> float | None:
        """Probability that an answer is right; None if the level of these signals was not fitted."""
        name = signals.level
        if name == "joined" and name not in self.levels:
            name = "checked"
        level = self.levels.get(name)
        return None if level is None else level.probability(signals.vector(name))

    def threshold(self, max_error: float = 0.02, level: LevelName = "checked") -> float:
        """The lowest confidence that keeps the share of wrong answers at most `max_error`, with a probability of 0.95.

        Raises:
            ValueError: No threshold keeps the error that low, or the level was not fitted.
        """
        counted = [name for name, one in self.levels.items() if one.table]
        if level not in counted:
            raise ValueError(f"level must be one of {', '.join(map(repr, counted))}, got {level!r}")
        kept = [row for row in self.levels[level].table if row.bound <= max_error]
        if not kept:
            least = min((row.bound for row in self.levels[level].table), default=1.0)
            raise ValueError(
                f"no threshold keeps the error at most {max_error:g}: the lowest bound from {self.questions} questions "
                f"is {least:.3f}; raise max_error, or calibrate on more questions"
            )
        return min(row.confidence for row in kept)

    def write(self, folder: Path) -> Path:
        """Write ``calibration.json`` into a folder, usually that of the checkpoint; returns its path."""
        path = folder / CALIBRATION_FILE
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> Self | None:
        """The calibration in the folder of a checkpoint; None if it has none.

        Raises:
            CheckpointError: The file is damaged.
            FingerprintMismatch: It was made for another model.
        """
        path = folder / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            levels = {name: _level(name, found["levels"][name]) for name in FEATURES if name in found["levels"]}
            made = cls(**{**found, "levels": levels})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"{path} is not a calibration ({exc}); make one with `clara calibrate`") from exc
        made.check(fingerprint)
        return made

    def check(self, fingerprint: str) -> None:
        """Refuse a calibration of another model.

        Raises:
            FingerprintMismatch: It was made for another model; the message has both fingerprints.
        """
        if self.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"the calibration was made for the model {self.fingerprint[:12]}, this engine is {fingerprint[:12]}; "
                "make one with `clara calibrate`"
            )


def fit_level(vectors: Sequence[Sequence[float]], right: Sequence[bool]) -> Level:
    """Fit a regression and its table of thresholds to the features of answers that are right or wrong.

    Raises:
        ValueError: There are too few answers, or nearly all are right, or nearly all are wrong.
    """
    if not enough(right):
        raise ValueError(
            f"a calibration needs at least {_FEWEST} answers, {_FOLDS} of them right and {_FOLDS} wrong; got "
            f"{len(right)}, {sum(right)} of them right"
        )
    return replace(_fit(vectors, right), table=_table(_predicted(vectors, right), right))


def enough(right: Sequence[bool]) -> bool:
    """Whether these answers are enough to fit a regression."""
    return len(right) >= _FEWEST and min(sum(right), len(right) - sum(right)) >= _FOLDS


def fit_levels(signals: Sequence[Signals], right: Sequence[bool]) -> dict[LevelName, Level]:
    """Fit the regressions of all levels whose signals every answer has.

    Raises:
        ValueError: There are too few answers, or nearly all are right, or nearly all are wrong.
    """
    levels: dict[LevelName, Level] = {"bare": fit_level([one.vector("bare") for one in signals], right)}
    if any(one.best_cosine is None for one in signals):
        return levels
    levels["fast"] = fit_level([one.vector("fast") for one in signals], right)
    if any(one.cited_cosine is None for one in signals):
        return levels
    sorts: dict[LevelName, list[int]] = {"checked": [], "joined": []}
    for at, one in enumerate(signals):
        sorts[one.level].append(at)
    if not all(enough([right[at] for at in own]) for own in sorts.values()):
        levels["checked"] = fit_level([one.vector("checked") for one in signals], right)
        return levels
    predicted = [0.0] * len(right)
    for name, own in sorts.items():
        vectors, truth = [signals[at].vector(name) for at in own], [right[at] for at in own]
        levels[name] = _fit(vectors, truth)
        for at, chance in zip(own, _predicted(vectors, truth), strict=True):
            predicted[at] = chance
    levels["checked"] = replace(levels["checked"], table=_table(predicted, right))
    return levels


def upper_bound(wrong: int, count: int) -> float:
    """Upper confidence bound (Clopper and Pearson) of an error rate, exceeded with a probability of `_SURE`."""
    if wrong >= count:
        return 1.0
    low, high = wrong / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(wrong, count, middle) > _SURE:
            low = middle
        else:
            high = middle
    return high


def _fit(vectors: Sequence[Sequence[float]], right: Sequence[bool]) -> Level:
    """Logistic regression by Newton's method on standardized features, with a small ridge penalty."""
    features = torch.tensor(vectors, dtype=torch.float64)  # [answers, features]
    means = features.mean(0)
    scales = features.std(0, unbiased=False)
    scales = torch.where(scales > 1e-9, scales, torch.ones_like(scales))
    inputs = torch.cat([(features - means) / scales, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    truth = torch.tensor(right, dtype=torch.float64)
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)
    ridge = torch.eye(len(weights), dtype=torch.float64) * _RIDGE * len(truth)
    ridge[-1, -1] = 0.0
    for _ in range(50):
        chances = torch.sigmoid(inputs @ weights)
        slope = inputs.T @ (truth - chances) - ridge @ weights
        curve = inputs.T @ (inputs * (chances * (1 - chances)).clamp_min(1e-9)[:, None]) + ridge
        step = torch.linalg.solve(curve, slope)
        weights += step
        if float(step.abs().max()) < 1e-8:
            break
    return Level(_numbers(means), _numbers(scales), _numbers(weights))


def _predicted(vectors: Sequence[Sequence[float]], right: Sequence[bool]) -> list[float]:
    """Cross-validated probabilities: each answer is predicted by a fit that has not seen it."""
    predicted = [0.0] * len(right)
    for fold in range(_FOLDS):
        others = [at for at in range(len(right)) if at % _FOLDS != fold]
        part = _fit([vectors[at] for at in others], [right[at] for at in others])
        for at in range(fold, len(right), _FOLDS):
            predicted[at] = part.probability(vectors[at])
    return predicted


def _table(predicted: Sequence[float], right: Sequence[bool]) -> tuple[Threshold, ...]:
    ordered = sorted(zip(predicted, right, strict=True), reverse=True)
    rows = []
    counts = sorted({round(len(ordered) * part / _ROWS) for part in range(1, _ROWS + 1)} - {0})
    for count in counts:
        wrong = sum(not hit for _, hit in ordered[:count])
        confidence = ordered[count - 1][0]
        rows.append(Threshold(confidence, count / len(ordered), wrong / count, upper_bound(wrong, count)))
    return tuple(reversed(rows))


def _at_most(wrong: int, count: int, share: float) -> float:
    """Binomial probability of at most `wrong` wrong answers of `count`, if each is wrong with probability `share`."""
    total, logs = math.lgamma(count + 1), (math.log(share), math.log1p(-share))
    terms = (
        math.exp(total - math.lgamma(n + 1) - math.lgamma(count - n + 1) + n * logs[0] + (count - n) * logs[1])
        for n in range(wrong + 1)
    )
    return min(sum(terms), 1.0)


def _level(name: LevelName, found: dict[str, Any]) -> Level:
    numbers = {each: tuple(map(float, found[each])) for each in ("means", "scales", "weights")}
    count = len(FEATURES[name])
    if [len(numbers[each]) for each in ("means", "scales", "weights")] != [count, count, count + 1]:
        raise ValueError(f"the level {name!r} must have {count} features")
    return Level(**numbers, table=tuple(Threshold(**row) for row in found["table"]))


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.tolist())
