"""What a caller may ask for beside the text of an answer: log-probabilities, evidence, confidence, a second reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from clara_core.common.suggest import nearest, refuse_unknown
from clara_core.engine.checks import check_type
from clara_core.engine.logprobs import MOST_ALTERNATIVES
from clara_core.engine.sampling import Answer, Sampling, SamplingOptions

Reading: TypeAlias = Literal["memory", "again", "text", "auto"]
READINGS = get_args(Reading)
Cited: TypeAlias = bool | Literal["attention"]
UNSURE = "I am not sure enough to answer."
EVIDENCE: Final = ("logprobs", "top_logprobs", "citations", "min_confidence", "read")
"""Options beside those of sampling that a model of a framework takes."""


class AnswerOptions(SamplingOptions, total=False):
    """The options of every call that answers; what they mean stands at `Sampling` and `Wanted`."""

    logprobs: bool
    top_logprobs: int
    citations: Cited
    min_confidence: float | None
    read: Reading
    scores: Sequence[float] | None
    as_text: Sequence[int]
    unsure_text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted beside the text.

    Attributes:
        logprobs: Whether `Answer.logprobs` is filled: by the model's own distribution, whatever the temperature.
        top_logprobs: Alternatives at each place, at most 20.
        citations: Whether the answer is judged with parts of the documents hidden: `Answer.citations`, `attribution`,
            `checks`, `confidence`. Costs about as much as the answer itself. "attention" costs nearly nothing: a word
            stands on the document that it paid most attention to. Good for right answers, misleading for up to a
            quarter of the wrong ones; it cannot say whether an answer is `grounded`, and documents that say the same
            share the attention.
        min_confidence: Below it the text is withheld (`Answer.abstained`, `Answer.draft`). 0 withholds nothing and
            gives a `confidence` from the log-probability and the best cosine, which costs one reading of the question.
        read: Which readings there are: "memory" once; "again" reads the best ranked document alone where the evidence
            speaks against the first answer; "text" lets the bare base read the two best documents as text in that
            case; "auto" tries them in this order.
        scores: Cosine of the question with each document, where a search has them already.
        as_text: Numbers of the documents that are read as text beside the memories of the others, from 0 on. Only for
            checkpoints that were taught to (`ClaraConfig.mixed`); what such an answer stands on cannot be told.
        unsure_text: What stands in the place of a text that is withheld.
    """

    logprobs: bool = False
    top_logprobs: int = 0
    citations: Cited = False
    min_confidence: float | None = None
    read: Reading = "memory"
    scores: tuple[float, ...] | None = None
    as_text: tuple[int, ...] = ()
    unsure_text: str = UNSURE

    def __post_init__(self) -> None:
        check_type("logprobs", self.logprobs, bool, "True or False")
        if self.citations != "attention":
            check_type("citations", self.citations, bool, "True, False or 'attention'")
        top, least = self.top_logprobs, self.min_confidence
        check_type("top_logprobs", top, int, "an integer")
        if not 0 <= top <= MOST_ALTERNATIVES:
            raise ValueError(f"top_logprobs must lie between 0 and {MOST_ALTERNATIVES}, got {top}")
        if top and not self.logprobs:
            raise ValueError(f"top_logprobs={top} needs logprobs=True")
        if least is not None:
            check_type("min_confidence", least, (int, float), "a number or None")
        if least is not None and not 0 <= least <= 1:
            raise ValueError(f"min_confidence must lie between 0 and 1, got {least}")
        if self.read not in READINGS:
            names = ", ".join(map(repr, READINGS))
            raise ValueError(f"read must be one of {names}, got {self.read!r}{nearest(str(self.read), READINGS)}")
        for index, number in enumerate(self.as_text):
            check_type(f"as_text[{index}]", number, int, "the number of a document")
        if self.as_text and self.judges:
            raise ValueError("as_text= reads text, which cannot be hidden: leave citations= and read= out")
        check_type("unsure_text", self.unsure_text, str, "a string")

    @property
    def afterwards(self) -> bool:
        """Whether there is anything to do once the answer is written."""
        return bool(self.citations) or self.min_confidence is not None or self.read != "memory"

    @property
    def withholds(self) -> bool:
        """Whether the text may still change once it is written, so that a stream has to hold it back."""
        return self.read != "memory" or bool(self.min_confidence)

    @property
    def judges(self) -> bool:
        """Whether it is asked what answers stand on."""
        return bool(self.citations) or self.read != "memory"

    @property
    def attends(self) -> bool:
        """Whether that is told by attention instead of by hiding documents."""
        return self.citations == "attention"


def read_options(options: AnswerOptions) -> tuple[Sampling, Wanted]:
    """How tokens are chosen, and what is wanted beside them.

    Raises:
        UnknownOption: An option that there is not; names the nearest right one.
        TypeError: A value of the wrong type.
        ValueError: A value out of bounds.
    """
    refuse_unknown("an answer", options, list(AnswerOptions.__annotations__))
    given = {name: value for name, value in options.items() if name in SamplingOptions.__annotations__}
    scores = options.get("scores")
    wanted = Wanted(
        logprobs=options.get("logprobs", False),
        top_logprobs=options.get("top_logprobs", 0),
        citations=options.get("citations", False),
        min_confidence=options.get("min_confidence"),
        read=options.get("read", "memory"),
        scores=None if scores is None else _numbers(scores),
        as_text=tuple(options.get("as_text", ())),
        unsure_text=options.get("unsure_text", UNSURE),
    )
    sampling = Sampling.of(given)  # type: ignore[arg-type]  # the names are those of SamplingOptions
    if wanted.logprobs or wanted.afterwards:
        sampling = replace(sampling, recorded=wanted.top_logprobs)
    return sampling, wanted


def confidence_account(answer: Answer) -> dict[str, Any]:
    """How sure an answer is, and how it came about, in the types of JSON."""
    return {
        "confidence": answer.confidence,
        "calibrated": answer.calibrated,
        "abstained": answer.abstained,
        "draft": answer.draft,
        "reading": answer.reading,
        "judged_tokens": answer.judged_tokens,
        "checks": None if answer.checks is None else asdict(answer.checks),
    }


def _numbers(scores: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(score) for score in scores)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"scores must be numbers, one a document, got {scores!r:.60}") from exc
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"scores must be finite, got {numbers!r:.60}")
    return numbers
