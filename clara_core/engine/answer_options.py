"""Options of answers besides sampling: log-probabilities, citations, confidence, a second reading."""

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
EVIDENCE: Final = ("verbatim", "logprobs", "top_logprobs", "citations", "min_confidence", "read")
"""Options of answers from documents that the chat models of LangChain and LlamaIndex take."""


class AnswerOptions(SamplingOptions, total=False):
    """The options of every call that answers; `Sampling` and `Wanted` describe them."""

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
    """The options of an answer besides sampling.

    Attributes:
        logprobs: Whether to fill `Answer.logprobs`, with the model's own distribution at any temperature.
        top_logprobs: Alternatives to record for each token, at most 20.
        citations: Whether to score the answer again with parts of the documents hidden, which fills
            `Answer.citations`, `attribution`, `checks` and `confidence` and costs about half of the answer itself.
            "attention" costs nearly nothing: each word is attributed to the document that it paid most attention to.
            It is good for right answers and misleading for up to a quarter of the wrong ones, it cannot say whether an
            answer is `grounded`, and documents with the same content share the attention.
        min_confidence: Confidence below which the text is withheld (`Answer.abstained`, `Answer.draft`). 0 withholds
            nothing and gives a `confidence` from the log-probability and the best cosine, which costs one pass of the
            query reasoner.
        read: How often the documents are read: "memory" once; "again" reads the best ranked document alone if a check
            of the first answer failed; "text" lets the base decoder without adapters read the two best ranked
            documents as text in that case; "auto" tries them in this order.
        scores: Cosine of the question with each document, if a search has computed them already.
        as_text: Indexes of the documents to read as text beside the memories of the others. Only for checkpoints that
            were trained for it (`ClaraConfig.mixed`); such an answer has no citations.
        unsure_text: Text of an answer that is withheld.
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
            check_type(f"as_text[{index}]", number, int, "the index of a document")
        if self.as_text and self.judges:
            raise ValueError(
                "as_text= reads text, which cannot be hidden from an answer: leave citations= and read= out"
            )
        check_type("unsure_text", self.unsure_text, str, "a string")

    @property
    def afterwards(self) -> bool:
        """Whether the answer is examined after generation."""
        return bool(self.citations) or self.min_confidence is not None or self.read != "memory"

    @property
    def withholds(self) -> bool:
        """Whether the text may still change after generation, so that a stream has to hold it back."""
        return self.read != "memory" or bool(self.min_confidence)

    @property
    def judges(self) -> bool:
        """Whether the answer is attributed to documents."""
        return bool(self.citations) or self.read != "memory"

    @property
    def attends(self) -> bool:
        """Whether it is attributed by attention instead of by hiding documents."""
        return self.citations == "attention"


def read_options(options: AnswerOptions) -> tuple[Sampling, Wanted]:
    """Split the options of a call into those of sampling and the others.

    Raises:
        UnknownOption: An option is unknown; the message names the nearest known one.
        TypeError: A value has the wrong type.
        ValueError: A value is out of bounds.
    """
    refuse_unknown("an answer", options, list(AnswerOptions.__annotations__))
    of_sampling: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in options.items():
        (of_sampling if name in SamplingOptions.__annotations__ else others)[name] = value
    if others.get("scores") is not None:
        others["scores"] = _numbers(others["scores"])
    wanted = Wanted(**{**others, "as_text": tuple(others.get("as_text", ()))})
    sampling = Sampling.of(of_sampling)  # type: ignore[arg-type]  # the names are those of SamplingOptions
    if wanted.logprobs or wanted.afterwards:
        sampling = replace(sampling, recorded=wanted.top_logprobs)
    return sampling, wanted


def confidence_account(answer: Answer) -> dict[str, Any]:
    """The fields of an answer about its confidence and its readings, as JSON types."""
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
