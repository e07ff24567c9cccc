"""Sampling options, answers, and the state of one answer during generation: text, stop strings, length."""

from __future__ import annotations

import math
import secrets
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal, Self, TypedDict

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.checks import check_type
from clara_core.engine.evidence import Checks, Citation
from clara_core.engine.logprobs import Measured, TokenLog, TokenLogprob

if TYPE_CHECKING:
    from clara_core.engine.quoting.verbatim import Quotation
    from clara_core.model.sampler import Draw, Ends

FinishReason = Literal["stop", "length", "cancelled"]
REPLACEMENT = "\ufffd"  # an incomplete UTF-8 sequence decodes to it


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its usage and, if asked for, its evidence.

    Attributes:
        text: The answer.
        finish_reason: "stop" (end of text or a stop string), "length" (max_tokens or the context), "cancelled".
        prompt_tokens: Text positions of the prompt.
        memory_tokens: Memory slots of the prompt.
        source_tokens: Tokens that the text of the documents would take instead of the memory slots.
        completion_tokens: Generated tokens, without the end token.
        windows_left_out: Windows of long documents that were not read, because they do not fit the context.
        logprobs: Log-probabilities of the generated tokens, if asked for.
        citations: Citations of the text (or of the `draft`), best document first, if asked for.
        attribution: One score a document, in the order given: ``1 - p(without it) / p``, or its share of the attention
            with ``citations="attention"``; None if nothing was judged.
        confidence: Probability that the answer is right; None if it was not asked for, or if the answer is empty or was
            cut.
        calibrated: Whether the confidence is calibrated; otherwise it is the probability of the answer's tokens, of a
            quotation among all tokens that were allowed.
        checks: Checks of the answer, if citations or a second reading were asked for.
        abstained: Whether the text was withheld; `text` is then ``unsure_text``.
        draft: The text that was withheld.
        reading: The reading that gave the answer (`Wanted.read`).
        judged_tokens: Positions of all passes except the reading that gave the answer.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    memory_tokens: int
    source_tokens: int
    completion_tokens: int
    windows_left_out: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    citations: tuple[Citation, ...] | None = None
    attribution: tuple[float, ...] | None = None
    confidence: float | None = None
    calibrated: bool = False
    checks: Checks | None = None
    abstained: bool = False
    draft: str | None = None
    reading: Literal["memory", "again", "text"] = "memory"
    judged_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; the last one has the whole `Answer`, and may have no text of its own.

    Attributes:
        text: New text.
        answer: The whole answer, in the last piece.
        logprobs: Log-probabilities of the tokens since the piece before, if asked for. The text of a token may come
            with a later piece, if it may still become a stop string or is a part of a character.
    """

    text: str
    answer: Answer | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class Pieces(Iterator[Chunk]):
    """The pieces of one answer as they are generated; the last one carries the `Answer`. Closing it stops the work."""

    @abstractmethod
    def cancel(self) -> None:
        """Stop generation; the last piece then has the finish reason "cancelled". Safe to call from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Stop generation and end the stream."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SamplingOptions(TypedDict, total=False):
    """The options of every call that generates text; `Sampling` describes them."""

    max_tokens: int
    stop: Sequence[str] | str | None
    temperature: float
    top_p: float
    seed: int | None
    verbatim: bool | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """The options of sampling, checked.

    Attributes:
        max_tokens: Most tokens to generate.
        stop: Strings that end the answer; they are not part of it.
        temperature: Temperature of the softmax; 0 is greedy decoding.
        top_p: Probability mass of the tokens to sample from (nucleus sampling).
        seed: Seed that makes sampling reproducible; None: a random one.
        verbatim: Whether an answer from documents is words of one of them, letter by letter ("Yes", "No" and the
            bundled model's refusal are allowed, too). The model chooses the words, so it can neither misspell a name
            nor make up a value, but it cannot phrase, count or compare. None: as the checkpoint says
            (`ClaraConfig.verbatim`). Without documents nothing is restricted.
        recorded: Alternatives to record with the log-probability of each token; None: record no log-probability.

    In float32 on a CPU the same call gives the same answer in any batch. In bfloat16 or float16 the last digits of the
    logits depend on the size of the batch, so if two tokens are almost equally likely, another one may be chosen.
    """

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    verbatim: bool | None = None
    recorded: int | None = None

    @classmethod
    def of(cls, options: SamplingOptions) -> Sampling:
        """Check the options of a call.

        Raises:
            UnknownOption: An option is unknown; the message names the nearest known one.
            TypeError: A value has the wrong type.
            ValueError: A value is out of bounds.
        """
        known = list(SamplingOptions.__annotations__)
        refuse_unknown("an answer", options, known)
        stop = options.get("stop")
        return cls(
            max_tokens=options.get("max_tokens", 128),
            stop=() if stop is None else (stop,) if isinstance(stop, str) else _several(stop),
            temperature=options.get("temperature", 0.0),
            top_p=options.get("top_p", 1.0),
            seed=options.get("seed"),
            verbatim=options.get("verbatim"),
        )

    def __post_init__(self) -> None:
        # Checked here, because the worker's thread would raise too late.
        check_type("max_tokens", self.max_tokens, Integral, "an integer")
        check_type("temperature", self.temperature, Real, "a number")
        check_type("top_p", self.top_p, Real, "a number")
        if self.seed is not None:
            check_type("seed", self.seed, Integral, "an integer or None")
            _check(-(2**63) <= self.seed < 2**64, "seed", self.seed, "an integer of 64 bits")
        if self.verbatim is not None:
            check_type("verbatim", self.verbatim, bool, "True, False or None")
        for index, stop in enumerate(self.stop):
            check_type(f"stop[{index}]", stop, str, "a string")
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", self.temperature, "at least 0")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(all(self.stop), "stop", self.stop, "strings that are not empty")


class SequenceState:
    """The tokens and the text of one answer during generation; decides when it ends.

    Args:
        decode: Decodes token ids to text.
        sampling: Options of sampling.
        ends: Tokens that end the answer.
        room: Positions of the context after the prompt.
        byte_ids: Tokens that are single bytes; the text of a run of them is certain once the run has ended.
        log: Collects the log-probabilities of the tokens; None: they are not recorded.
        quotation: Restricts the answer to words of its documents; None: it is free.

    Attributes:
        limit: Most tokens of the answer.
        quoted_logprob: Log-probability of a recorded quotation among all that are allowed, with what they gain.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        sampling: Sampling,
        ends: Ends,
        room: int,
        byte_ids: frozenset[int] = frozenset(),
        log: TokenLog | None = None,
        quotation: Quotation | None = None,
    ) -> None:
        self.sampling = sampling
        self.log = log
        self.quotation = quotation
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.quoted_logprob = 0.0
        self._decode = decode
        self._ends = ends
        self._byte_ids = byte_ids
        self.limit = min(sampling.max_tokens, room)
        self._emitted = 0
        self._seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)

    def feed(self, token: int) -> str:
        """Append a token; returns the new text that is now certain to belong to the answer."""
        if token in self._ends.ids:
            return self.finish("stop")
        self.ids.append(token)
        if self.quotation is not None:
            self.quotation.feed(token)
        self.text = self._decode(self.ids)
        cut = self._stop_position()
        if cut is not None:
            self.text = self.text[:cut]
            return self.finish("stop")
        if len(self.ids) >= self.limit:
            return self.finish("length")
        return self._emit(self._certain())

    def record(self, token: int, measured: Measured) -> None:
        """Record the log-probability of the next token, unless it ends the answer; call it before `feed`."""
        self.quoted_logprob += measured.chosen
        if self.log is not None and token not in self._ends.ids:
            self.log.record(token, measured.logprob, measured.top)

    def finish(self, reason: FinishReason) -> str:
        """End the answer; returns the text that was held back."""
        self.finish_reason = reason
        return self._emit(len(self.text))

    def barred(self, ahead: int = 0) -> Collection[int]:
        """Tokens that may not come next because the answer is too short; `ahead` tokens were chosen and not yet fed."""
        short = self.quotation is None and len(self.ids) + ahead < self._ends.after
        return self._ends.ids if short else ()

    def allowed(self) -> Mapping[int, float] | None:
        """The tokens that may come next, each with its gain, once all chosen ones were fed; None: any."""
        return None if self.quotation is None else self.quotation.allowed(self._ends.ids)

    def draw(self, ahead: int = 0) -> Draw | None:
        """How to sample the next token, or None for greedy decoding; `ahead` tokens were chosen and not yet fed."""
        from clara_core.model.sampler import Draw

        options = self.sampling
        if options.temperature <= 0:
            return None
        return Draw(options.temperature, options.top_p, self._seed, len(self.ids) + ahead)

    def _stop_position(self) -> int | None:
        found = [at for stop in self.sampling.stop if (at := self.text.find(stop)) >= 0]
        return min(found, default=None)

    def _certain(self) -> int:
        """Length of the text that later tokens cannot change: no incomplete character or beginning of a stop."""
        certain = self.text.rstrip(REPLACEMENT)
        if self.ids[-1] in self._byte_ids:
            # One invalid byte at the end of a run of bytes invalidates all characters of the run.
            ended = max((at + 1 for at, token in enumerate(self.ids) if token not in self._byte_ids), default=0)
            certain = certain[: len(self._decode(self.ids[:ended]))]
        end = len(certain)
        for stop in self.sampling.stop:
            for held in range(min(len(stop) - 1, len(certain)), 0, -1):
                if certain.endswith(stop[:held]):
                    end = min(end, len(certain) - held)
                    break
        return end

    def _emit(self, end: int) -> str:
        piece = self.text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece


def _several(stop: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(stop)
    except TypeError as exc:
        raise TypeError(f"stop must be a string or several, got {type(stop).__name__}: {stop!r:.60}") from exc


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
