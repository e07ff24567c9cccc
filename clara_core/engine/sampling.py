"""One answer while it is written: sampling options, text from tokens, stop strings, usage."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal, TypedDict

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.checks import check_type
from clara_core.engine.evidence import Checks, Citation
from clara_core.engine.logprobs import Measured, TokenLog, TokenLogprob

if TYPE_CHECKING:
    from clara_core.model.sampler import Draw, Ends

FinishReason = Literal["stop", "length", "cancelled"]
REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


@dataclass(frozen=True, slots=True)
class Answer:
    """What the generator wrote, and what it read.

    Attributes:
        text: The answer.
        finish_reason: "stop" (end of text or a stop string), "length" (max_tokens or the context), "cancelled".
        prompt_tokens: Positions of the prompt that were text.
        memory_tokens: Positions of the prompt that were memory slots.
        source_tokens: What the text of the documents would have cost instead of the slots.
        completion_tokens: Tokens written, the end token not counted.
        windows_left_out: Windows of long documents that were not read, since the context had no room for them.
        logprobs: Of each token written, if they were asked for.
        citations: What the parts of the text (or of the `draft`) stand on, best first, if asked for.
        attribution: One number a document, in the order given: ``1 - p(without it) / p``; None: nothing was judged.
        confidence: Probability that the answer is right; None where it was not asked for, or nothing can be said (an
            answer that is empty, or was cut).
        calibrated: Whether that was fitted on questions with known answers; else it is the answer's own probability.
        checks: What speaks for the answer.
        abstained: Whether the text was withheld; `text` is then ``unsure_text``.
        draft: The text that was withheld.
        reading: Which reading gave the answer.
        judged_tokens: Positions of all passes beside the reading that gave the answer.
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
        text: What is new.
        answer: In the last one.
        logprobs: Of the tokens that came since the piece before, if they were asked for. The text of a token may come
            with a later piece, where it could still become a stop string or is a part of a character.
    """

    text: str
    answer: Answer | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class SamplingOptions(TypedDict, total=False):
    """The options of every call that writes; what they mean stands at `Sampling`."""

    max_tokens: int
    stop: Sequence[str] | str | None
    temperature: float
    top_p: float
    seed: int | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_tokens: Most tokens to write.
        stop: Strings that end the answer; they are not part of it.
        temperature: 0 is greedy.
        top_p: Share of probability that is sampled from.
        seed: Makes sampling reproducible.
        recorded: How many alternatives are recorded beside the log-probability of each token; None: no log-probability.

    In float32 on a processor the same call gives the same answer whatever else is in the batch. In bfloat16 or float16
    the numbers of a row depend, in their last digits, on the size of its batch: where two tokens are next to equally
    likely, the choice may fall differently, greedy or by seed.
    """

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    recorded: int | None = None

    @classmethod
    def of(cls, options: SamplingOptions) -> Sampling:
        """From the options of a call.

        Raises:
            UnknownOption: An option that there is not; names the nearest right one.
            TypeError: A value of the wrong type.
            ValueError: A value out of bounds.
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
        )

    def __post_init__(self) -> None:
        # All of it here: in the worker's thread a wrong value would be found too late.
        check_type("max_tokens", self.max_tokens, Integral, "an integer")
        check_type("temperature", self.temperature, Real, "a number")
        check_type("top_p", self.top_p, Real, "a number")
        if self.seed is not None:
            check_type("seed", self.seed, Integral, "an integer or None")
            _check(-(2**63) <= self.seed < 2**64, "seed", self.seed, "an integer of 64 bits")
        for index, stop in enumerate(self.stop):
            check_type(f"stop[{index}]", stop, str, "a string")
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", self.temperature, "at least 0")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(all(self.stop), "stop", self.stop, "strings that are not empty")


class SequenceState:
    """Turns chosen tokens into text and knows when the answer ends.

    Args:
        decode: Token ids to text.
        sampling: Options.
        ends: What ends the answer.
        room: Positions that the context leaves behind the prompt.
        byte_ids: Tokens that are single bytes; the text of a run of them is certain when the run has ended.
        log: Takes the log-probabilities of the tokens.

    Attributes:
        limit: Most tokens of the answer.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        sampling: Sampling,
        ends: Ends,
        room: int,
        byte_ids: frozenset[int] = frozenset(),
        log: TokenLog | None = None,
    ) -> None:
        self.sampling = sampling
        self.log = log
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._decode = decode
        self._ends = ends
        self._byte_ids = byte_ids
        self.limit = min(sampling.max_tokens, room)
        self._emitted = 0
        self._seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)

    def feed(self, token: int) -> str:
        """Take one more token; returns the text that is now certain to belong to the answer."""
        if token in self._ends.ids:
            return self.finish("stop")
        self.ids.append(token)
        self.text = self._decode(self.ids)
        cut = self._stop_position()
        if cut is not None:
            self.text = self.text[:cut]
            return self.finish("stop")
        if len(self.ids) >= self.limit:
            return self.finish("length")
        return self._emit(self._certain())

    def record(self, token: int, measured: Measured) -> None:
        """Note how probable the next token is, unless it ends the answer; to be called before `feed`."""
        if self.log is not None and token not in self._ends.ids:
            self.log.record(token, measured.logprob, measured.top)

    def finish(self, reason: FinishReason) -> str:
        """End the answer; returns what was held back."""
        self.finish_reason = reason
        return self._emit(len(self.text))

    def barred(self, ahead: int = 0) -> Collection[int]:
        """Tokens that may not come next, behind so many that were chosen and not fed: the answer is still too short."""
        return self._ends.ids if len(self.ids) + ahead < self._ends.after else ()

    def draw(self, ahead: int = 0) -> Draw | None:
        """How the next token is drawn, behind so many that were chosen and not fed; None: it is the best one."""
        from clara_core.model.sampler import Draw

        options = self.sampling
        if options.temperature <= 0:
            return None
        return Draw(options.temperature, options.top_p, self._seed, len(self.ids) + ahead)

    def _stop_position(self) -> int | None:
        found = [at for stop in self.sampling.stop if (at := self.text.find(stop)) >= 0]
        return min(found, default=None)

    def _certain(self) -> int:
        """Length of the text that later tokens cannot take back: no unfinished character, no beginning of a stop."""
        certain = self.text.rstrip(REPLACEMENT)
        if self.ids[-1] in self._byte_ids:
            # One wrong byte at the end of a run of bytes makes all characters of the run unreadable.
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
