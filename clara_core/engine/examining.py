"""What happens to an answer once it is written: evidence, checks, confidence, a second reading, abstention.

A ladder, each step only where the one before has failed its check:

1. The answer is judged with each document hidden (`attributing`), and its words are looked for in what it stands on.
2. Where it stands on another document than the best ranked one, or not in its text, the best ranked document is read
   again alone. That answer is taken if it stands in the document's text and is more probable than the first one.
   With ``read="text"`` the bare base reads the two best ranked documents as text instead, under the same condition;
   with ``read="auto"`` it does so where reading again did not settle it and the calibration says that text helps.
3. What is known becomes a confidence (`calibration`); below the one that is asked for, the text is withheld.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from clara_core.common.errors import ContextOverflow
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import Wanted
from clara_core.engine.attributing import Said, attribute, attribute_by_attention
from clara_core.engine.calibration import Signals
from clara_core.engine.checks import Message
from clara_core.engine.evidence import Attribution, Checks, Citation
from clara_core.engine.quotes import says_yes_or_no, share_of_names, stands_in
from clara_core.engine.requests import GenerateRequest, Request
from clara_core.engine.sampling import Answer, Sampling
from clara_core.engine.steps import Steps
from clara_core.model.chat_format import alternating
from clara_core.model.tokenizer import ANSWER_SYSTEM
from clara_core.retrieval.ranking import score_memories

if TYPE_CHECKING:
    from clara_core.engine.runtime import EngineInstance

log = logging.getLogger(__name__)

_AS_TEXT = 2  # documents that are read as text
_SAME = 1e-5  # cosines that differ by less are those of equal documents


@dataclass(frozen=True, slots=True)
class Asked:
    """A question on its way.

    Attributes:
        messages: The conversation.
        memories: The documents as they were given.
        sampling: How tokens are chosen.
        request: The first reading.
    """

    messages: Sequence[Message]
    memories: Sequence[Memory]
    sampling: Sampling
    request: GenerateRequest

    @property
    def question(self) -> str:
        """The last user turn."""
        return alternating(self.messages)[-1]["content"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading and what speaks for it.

    Attributes:
        answer: What was written.
        evidence: What it stands on, documents numbered as they were given; None where nothing was judged.
        checks: What speaks for it.
    """

    answer: Answer
    evidence: Attribution | None = None
    checks: Checks = field(default_factory=Checks)

    @property
    def logprob(self) -> float:
        """Of all tokens together."""
        return sum(token.logprob for token in self.answer.logprobs or ())

    @property
    def doubtful(self) -> bool:
        """Whether a check failed."""
        checks = self.checks
        return False in (checks.cited_first, checks.verbatim, checks.grounded)


def examine(engine: EngineInstance, asked: Asked, answer: Answer, wanted: Wanted) -> Steps[Answer]:
    """All that is wanted of an answer beside its text.

    Args:
        engine: Whose answer it is.
        asked: What was asked.
        answer: What the first reading gave, with its log-probabilities.
        wanted: What is wanted.
    """
    if answer.finish_reason == "cancelled":
        return _told(answer, wanted)
    reading, signals = yield from weigh(engine, asked, answer, wanted)
    return _finished(engine, reading, signals, wanted)


def weigh(
    engine: EngineInstance, asked: Asked, answer: Answer, wanted: Wanted
) -> Steps[tuple[Reading, Signals | None]]:
    """The reading that gives the answer, and what its confidence is made of: None where it is empty or unfinished.

    Args:
        engine: Whose answer it is; its calibration only says whether text helps.
        asked: What was asked.
        answer: What the first reading gave, with its log-probabilities.
        wanted: What is wanted.
    """
    cosines = yield from _cosines(engine, asked, wanted)
    reading = yield from _evidence_of(engine, asked, asked.request, answer, range(len(asked.memories)), cosines, wanted)
    if wanted.read in ("again", "auto") and reading.doubtful and cosines is not None:
        reading = yield from _again(engine, asked, reading, cosines, wanted)
    if reading.doubtful and cosines is not None and (wanted.read == "text" or _text_helps(engine, wanted)):
        reading = yield from _as_text(engine, asked, reading, cosines)
    return reading, _signals(asked, reading, cosines)


def _cosines(engine: EngineInstance, asked: Asked, wanted: Wanted) -> Steps[list[float] | None]:
    """Cosine of the question with each document; None where there is no query reasoner, or no document."""
    if wanted.scores is not None:
        return list(wanted.scores) or None
    if not asked.memories or not engine.ranks:
        return None
    tokens = engine._recent_tokens(asked.question)  # noqa: SLF001 - one of the calls of this engine
    if tokens is None:
        request = engine._question_request([asked.question])  # noqa: SLF001
        requests: list[Request] = [] if request is None else [request]
        results: list[Tensor] = yield requests
        tokens = results[0][0]
    return list(map(float, score_memories(tokens[None], asked.memories)[0].tolist()))


def _evidence_of(
    engine: EngineInstance,
    asked: Asked,
    request: GenerateRequest,
    answer: Answer,
    numbers: Sequence[int],
    cosines: Sequence[float] | None,
    wanted: Wanted,
) -> Steps[Reading]:
    """A reading with its evidence.

    Args:
        engine: The engine.
        asked: What was asked.
        request: The reading.
        answer: What it gave.
        numbers: Of the documents of the reading, among those that were given.
        cosines: Of all documents that were given.
        wanted: What is wanted.
    """
    if not wanted.judges or not request.documents or not request.sequence.ids:
        return Reading(answer)
    logprobs = [token.logprob for token in answer.logprobs or ()]
    said = Said(request, request.sequence.ids, answer.text, asked.question, logprobs)
    if not wanted.attends:
        found = yield from attribute(said, engine.tokenizer)
    elif request.paid is not None:
        found = attribute_by_attention(said, request.paid, engine.tokenizer, Reading(answer).logprob)
    else:
        return Reading(answer)
    scores = [0.0] * len(asked.memories)
    for number, value in zip(numbers, found.scores, strict=True):
        scores[number] = value
    citations = tuple(_renumbered(one, request.documents, numbers, asked.memories) for one in found.citations)
    evidence = replace(found, scores=tuple(scores), citations=citations)
    checked = replace(answer, judged_tokens=answer.judged_tokens + found.judged_tokens)
    return Reading(checked, evidence, check(evidence, cosines))


def check(evidence: Attribution, cosines: Sequence[float] | None) -> Checks:
    """What speaks for a text by what it stands on, and by the order of the documents."""
    citations = evidence.citations
    first = verbatim = None
    if citations and cosines:
        first = cosines[citations[0].document] >= max(cosines) - _SAME
    if citations and not says_yes_or_no(evidence.text):
        parts = {(one.start, one.end) for one in citations}
        found = {(one.start, one.end) for one in citations if one.verbatim}
        verbatim = parts == found
    return Checks(first, verbatim, evidence.grounded)


def _renumbered(
    citation: Citation, read: Sequence[Memory], numbers: Sequence[int], given: Sequence[Memory]
) -> Citation:
    """A citation of what was read as one of what was given: a long document may have been read in part."""
    number = numbers[citation.document]
    window = given[number].spans.index(read[citation.document].spans[citation.window])
    return replace(citation, document=number, window=window)


def _again(
    engine: EngineInstance, asked: Asked, first: Reading, cosines: Sequence[float], wanted: Wanted
) -> Steps[Reading]:
    """The best ranked document alone, read again, if its answer is the better one."""
    if len(asked.memories) < 2:
        return first
    best = max(range(len(cosines)), key=cosines.__getitem__)
    document = asked.memories[best]
    request = engine._chat_request(asked.messages, [document], asked.sampling)  # noqa: SLF001
    if wanted.attends:
        engine._watch(request)  # noqa: SLF001
    [answer] = yield [request]
    second = Reading(answer)
    spent = first.answer.judged_tokens
    if answer.finish_reason == "cancelled":
        return first
    if not stands_in(answer.text, document.text) or second.logprob <= first.logprob:
        return replace(first, answer=replace(first.answer, judged_tokens=spent + _positions(answer)))
    taken = replace(answer, reading="again", judged_tokens=spent + _positions(first.answer))
    return (yield from _evidence_of(engine, asked, request, taken, [best], cosines, wanted))


def _text_helps(engine: EngineInstance, wanted: Wanted) -> bool:
    calibration = engine.calibration if wanted.read == "auto" else None
    return calibration is not None and bool(calibration.text_helps)


def _as_text(engine: EngineInstance, asked: Asked, first: Reading, cosines: Sequence[float]) -> Steps[Reading]:
    """The best ranked documents as text, read by the bare base, if its answer is the better one.

    A checkpoint that was taught to reads the best one as text beside the memories of the others instead. Nothing is
    judged here: there is no memory that could be hidden. That it stands in a text is all that is known.
    """
    mixed = engine.config.mixed and len(asked.memories) > 1
    order = sorted(range(len(cosines)), key=lambda at: -cosines[at])[: 1 if mixed else _AS_TEXT]
    texts = [asked.memories[at].text for at in order]
    try:
        if mixed:
            request = engine._chat_request(asked.messages, asked.memories, asked.sampling, order)  # noqa: SLF001
        else:
            request = engine._chat_request(_with_texts(asked, texts), [], asked.sampling)  # noqa: SLF001
            request.role = None
    except ContextOverflow:
        return first  # memories fit where texts do not
    [answer] = yield [request]
    if answer.finish_reason == "cancelled":
        return first
    second = Reading(answer, checks=Checks(verbatim=True))
    spent = first.answer.judged_tokens
    if not any(stands_in(answer.text, text) for text in texts) or second.logprob <= first.logprob:
        return replace(first, answer=replace(first.answer, judged_tokens=spent + _positions(answer)))
    taken = replace(answer, reading="text", judged_tokens=spent + _positions(first.answer))
    return replace(second, answer=taken)


def _with_texts(asked: Asked, texts: Sequence[str]) -> list[Message]:
    """The conversation with texts where the memories were."""
    turns = alternating(asked.messages)
    question = turns[-1]["content"]
    content = "Background:\n" + "\n\n".join(texts) + f"\n\nQuestion:{question}"
    system = [] if turns[0]["role"] == "system" else [{"role": "system", "content": ANSWER_SYSTEM}]
    return [*system, *turns[:-1], {"role": "user", "content": content}]


def _positions(answer: Answer) -> int:
    return answer.prompt_tokens + answer.memory_tokens + answer.completion_tokens


def _signals(asked: Asked, reading: Reading, cosines: Sequence[float] | None) -> Signals | None:
    """What the confidence is made of; None for an answer that is empty or unfinished."""
    if not reading.answer.logprobs or reading.answer.finish_reason != "stop":
        return None
    if not cosines:
        return Signals(reading.logprob)
    best = max(cosines)
    texts = [memory.text for memory in asked.memories]
    known = Signals(
        logprob=reading.logprob,
        best_cosine=best,
        lead=best - max((one for one in cosines if one < best - _SAME), default=0.0),
        present=share_of_names(asked.question, texts),
    )
    if reading.evidence is None or reading.evidence.grounded is None:
        return known  # confidence is fitted on citations by hiding
    citations, said = reading.evidence.citations, reading.answer.text
    cited = citations[0].document if citations else min(range(len(cosines)), key=cosines.__getitem__)
    return replace(
        known,
        cited_cosine=cosines[cited],
        verbatim=bool(citations) and reading.checks.verbatim is not False,
        named=share_of_names(asked.question, [texts[cited]]),
        joined=len({one.document for one in citations}) > 1 or says_yes_or_no(said) or stands_in(said, asked.question),
    )


def _finished(engine: EngineInstance, reading: Reading, signals: Signals | None, wanted: Wanted) -> Answer:
    """The answer with its evidence and its confidence, withheld where that is too low."""
    answer = reading.answer
    evidence = reading.evidence
    if wanted.judges:
        answer = replace(
            answer,
            citations=() if evidence is None else evidence.citations,
            attribution=None if evidence is None else evidence.scores,
            checks=reading.checks,
        )
    if signals is not None:
        confidence, calibrated = _confidence(engine, signals, wanted)
        answer = replace(answer, confidence=confidence, calibrated=calibrated)
    answer = _told(answer, wanted)
    least = wanted.min_confidence
    if not least or (answer.confidence is not None and answer.confidence >= least):
        return answer
    # What is not known is not enough.
    return replace(answer, text=wanted.unsure_text, draft=answer.text, abstained=True)


def _confidence(engine: EngineInstance, signals: Signals, wanted: Wanted) -> tuple[float, bool]:
    calibration = engine.calibration
    found = None if calibration is None else calibration.confidence(signals)
    if found is not None:
        return found, True
    if wanted.min_confidence and not engine.warned_uncalibrated:
        engine.warned_uncalibrated = True
        msg = (
            f"min_confidence={wanted.min_confidence:g}, but {engine.arguments.model!r} has no calibration for this: "
            "its confidence is the bare probability of the answer, which stays high where no document answers the "
            "question; make one with `clara calibrate`, or engine.calibrate"
        )
        warnings.warn(msg, stacklevel=2)
        log.warning("%s", msg)
    return math.exp(min(signals.logprob, 0.0)), False


def _told(answer: Answer, wanted: Wanted) -> Answer:
    """Without the log-probabilities that were only needed here."""
    return answer if wanted.logprobs else replace(answer, logprobs=None)
