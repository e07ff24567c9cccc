"""Examination of an answer after generation: evidence, checks, a second reading, confidence, abstention.

1. The answer is attributed to documents (`attributing`), and its words are looked up in the cited documents.
2. If a check of step 1 fails, the best ranked document is read again alone. Its answer is taken if the document
   contains it and it is more probable than the first answer. With ``read="text"`` the base decoder without adapters
   reads the two best ranked documents as text instead, under the same condition; with ``read="auto"`` it does so if
   the checks still fail and the calibration says that text helps.
3. The signals become a confidence (`calibration`). If it is below `min_confidence`, the text is withheld.
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
from clara_core.engine.attributing import Continuation, attribute, attribute_by_attention
from clara_core.engine.calibration import Signals
from clara_core.engine.checks import Message
from clara_core.engine.evidence import Attribution, Checks, Citation
from clara_core.engine.inputs import Chat
from clara_core.engine.quotes import says_yes_or_no, share_of_names, stands_in
from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.engine.requests import GenerateRequest, Request
from clara_core.engine.sampling import Answer
from clara_core.engine.steps import Steps, together
from clara_core.model.chat_format import alternating
from clara_core.model.tokenizer import ANSWER_SYSTEM
from clara_core.retrieval.ranking import score_memories

if TYPE_CHECKING:
    from clara_core.engine.runtime import EngineInstance

log = logging.getLogger(__name__)

_AS_TEXT = 2  # documents to read as text
_SAME = 1e-5  # documents whose cosines differ by less are taken as equal


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of one reading with its evidence."""

    answer: Answer
    # its attribution, with document indexes of the caller's order; None if nothing was judged
    evidence: Attribution | None = None
    checks: Checks = field(default_factory=Checks)
    # log-probability of a quotation among all that were allowed; None: the answer is free, or a refusal
    quoted: float | None = None

    @property
    def logprob(self) -> float:
        """Log-probability of the answer; 0 if it was not recorded."""
        return sum(token.logprob for token in self.answer.logprobs or ())

    @property
    def doubtful(self) -> bool:
        """Whether a check failed."""
        checks = self.checks
        return False in (checks.cited_first, checks.verbatim, checks.grounded)


def examine(engine: EngineInstance, chat: Chat, answer: Answer, wanted: Wanted) -> Steps[Answer]:
    """Complete the answer of the first reading with its evidence and confidence, read again or withhold it.

    The answer has the log-probabilities of its tokens.
    """
    if answer.finish_reason == "cancelled":
        return without_unasked(answer, wanted)
    reading, signals = yield from weigh(engine, chat, answer, wanted)
    answer, evidence = reading.answer, reading.evidence
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
    answer = without_unasked(answer, wanted)
    least = wanted.min_confidence
    if not least or (answer.confidence is not None and answer.confidence >= least):
        return answer
    # An unknown confidence is too low.
    return replace(answer, text=wanted.unsure_text, draft=answer.text, abstained=True)


def examine_all(
    engine: EngineInstance, several: Sequence[Chat], answers: Sequence[Answer], wanted: Wanted
) -> Steps[list[Answer]]:
    """`examine` for several answers side by side."""
    return together([examine(engine, one, answer, wanted) for one, answer in zip(several, answers, strict=True)])


def weigh(engine: EngineInstance, chat: Chat, answer: Answer, wanted: Wanted) -> Steps[tuple[Reading, Signals | None]]:
    """The final reading and the signals of its confidence, which are None if the answer is empty or was cut.

    The calibration of the engine only decides whether text is read.
    """
    cosines = yield from _cosines(engine, chat, wanted)
    reading = yield from _evidence_of(engine, chat, chat.request, answer, range(len(chat.memories)), cosines, wanted)
    if wanted.read in ("again", "auto") and reading.doubtful and cosines is not None:
        reading = yield from _again(engine, chat, reading, cosines, wanted)
    if reading.doubtful and cosines is not None and (wanted.read == "text" or _text_helps(engine, wanted)):
        reading = yield from _as_text(engine, chat, reading, cosines)
    return reading, _signals(chat, reading, cosines)


def _cosines(engine: EngineInstance, chat: Chat, wanted: Wanted) -> Steps[list[float] | None]:
    """Cosine of the question with each document; None if there is no query reasoner or no document."""
    if wanted.scores is not None:
        return list(wanted.scores) or None
    if not chat.memories or not engine.ranks:
        return None
    tokens = engine._recent_tokens(chat.question)  # noqa: SLF001 - a part of the engine
    if tokens is None:
        request = engine._question_request([chat.question])  # noqa: SLF001
        requests: list[Request] = [] if request is None else [request]
        results: list[Tensor] = yield requests
        tokens = results[0][0]
    return list(map(float, score_memories(tokens[None], chat.memories)[0].tolist()))


def _evidence_of(
    engine: EngineInstance,
    chat: Chat,
    request: GenerateRequest,
    answer: Answer,
    numbers: Sequence[int],
    cosines: Sequence[float] | None,
    wanted: Wanted,
) -> Steps[Reading]:
    """Attribute the answer of a reading, whose request is finished, and check it.

    `numbers` has the index of each document of the reading in the caller's order, and `cosines` one number for each of
    the caller's documents.
    """
    sequence = request.sequence
    # A refusal is no quotation, and wins where nothing else fits: that does not make it a right answer.
    quotes = sequence.quotation is not None and answer.text != REFUSAL
    first = Reading(answer, quoted=sequence.quoted_logprob if quotes else None)
    if not wanted.judges or not request.documents or not sequence.ids:
        return first
    logprobs = [token.logprob for token in answer.logprobs or ()]
    continuation = Continuation(request, sequence.ids, answer.text, chat.question, logprobs)
    if not wanted.attends:
        found = yield from attribute(continuation, engine.tokenizer)
    elif request.paid is not None:
        found = attribute_by_attention(continuation, request.paid, engine.tokenizer, first.logprob)
    else:
        return first
    scores = [0.0] * len(chat.memories)
    for number, value in zip(numbers, found.scores, strict=True):
        scores[number] = value
    citations = tuple(_renumbered(one, request.documents, numbers, chat.memories) for one in found.citations)
    evidence = replace(found, scores=tuple(scores), citations=citations)
    checked = replace(answer, judged_tokens=answer.judged_tokens + found.judged_tokens)
    return replace(first, answer=checked, evidence=evidence, checks=check(evidence, cosines))


def check(evidence: Attribution, cosines: Sequence[float] | None) -> Checks:
    """Check a text by its attribution and by the cosines of the documents."""
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
    """A citation with the caller's indexes of document and window; a long document may have been read in part."""
    number = numbers[citation.document]
    window = given[number].spans.index(read[citation.document].spans[citation.window])
    return replace(citation, document=number, window=window)


def _again(
    engine: EngineInstance, chat: Chat, first: Reading, cosines: Sequence[float], wanted: Wanted
) -> Steps[Reading]:
    """Read the best ranked document alone; returns that reading if its answer is better, otherwise `first`."""
    if len(chat.memories) < 2:
        return first
    best = max(range(len(cosines)), key=cosines.__getitem__)
    document = chat.memories[best]
    request = engine._chat_request(chat.messages, [document], chat.sampling)  # noqa: SLF001
    engine._prepare_evidence(request, wanted)  # noqa: SLF001
    [answer] = yield [request]
    better = _better(first, replace(answer, reading="again"), [document.text])
    if better.answer.reading != "again":
        return better
    return (yield from _evidence_of(engine, chat, request, better.answer, [best], cosines, wanted))


def _text_helps(engine: EngineInstance, wanted: Wanted) -> bool:
    calibration = engine.calibration if wanted.read == "auto" else None
    return calibration is not None and bool(calibration.text_helps)


def _as_text(engine: EngineInstance, chat: Chat, first: Reading, cosines: Sequence[float]) -> Steps[Reading]:
    """Read the best ranked documents as text, without adapters; returns that reading if its answer is better.

    A checkpoint that was trained for it reads the best one as text beside the memories of the others. Text cannot be
    hidden, so the only check of the answer is that a document contains it.
    """
    mixed = engine.config.mixed
    order = sorted(range(len(cosines)), key=lambda at: -cosines[at])[: 1 if mixed else _AS_TEXT]
    texts = [chat.memories[at].text for at in order]
    try:
        if mixed:
            request = engine._chat_request(chat.messages, chat.memories, chat.sampling, order)  # noqa: SLF001
        else:
            request = engine._chat_request(_with_texts(chat, texts), [], chat.sampling)  # noqa: SLF001
            request.role = None
    except ContextOverflow:
        return first  # the memories fit the context, but the texts do not
    [answer] = yield [request]
    return _better(first, replace(answer, reading="text"), texts)


def _better(first: Reading, answer: Answer, texts: Sequence[str]) -> Reading:
    """The reading that gave this answer if a text contains it and it is more probable; otherwise `first`."""
    if answer.finish_reason == "cancelled":
        return first
    second, spent = Reading(answer, checks=Checks(verbatim=True)), first.answer.judged_tokens
    if not any(stands_in(answer.text, text) for text in texts) or second.logprob <= first.logprob:
        return replace(first, answer=replace(first.answer, judged_tokens=spent + _positions(answer)))
    return replace(second, answer=replace(answer, judged_tokens=spent + _positions(first.answer)))


def _with_texts(chat: Chat, texts: Sequence[str]) -> list[Message]:
    """The conversation with texts in the place of the memories."""
    turns = alternating(chat.messages)
    question = turns[-1]["content"]
    content = "Background:\n" + "\n\n".join(texts) + f"\n\nQuestion:{question}"
    system = [] if turns[0]["role"] == "system" else [{"role": "system", "content": ANSWER_SYSTEM}]
    return [*system, *turns[:-1], {"role": "user", "content": content}]


def _positions(answer: Answer) -> int:
    return answer.prompt_tokens + answer.memory_tokens + answer.completion_tokens


def _signals(chat: Chat, reading: Reading, cosines: Sequence[float] | None) -> Signals | None:
    """The signals of an answer; None if it is empty or was cut."""
    if not reading.answer.logprobs or reading.answer.finish_reason != "stop":
        return None
    # A quotation competes with other quotations alone: how clearly it won says more than how the model would put it.
    logprob = reading.logprob if reading.quoted is None else reading.quoted
    if not cosines:
        return Signals(logprob)
    best = max(cosines)
    texts = [memory.text for memory in chat.memories]
    known = Signals(
        logprob=logprob,
        best_cosine=best,
        lead=best - max((one for one in cosines if one < best - _SAME), default=0.0),
        present=share_of_names(chat.question, texts),
    )
    if reading.evidence is None or reading.evidence.grounded is None:
        return known  # the levels with citations are fitted on attribution by hiding
    citations, text = reading.evidence.citations, reading.answer.text
    cited = citations[0].document if citations else min(range(len(cosines)), key=cosines.__getitem__)
    return replace(
        known,
        cited_cosine=cosines[cited],
        verbatim=bool(citations) and reading.checks.verbatim is not False,
        named=share_of_names(chat.question, [texts[cited]]),
        joined=len({one.document for one in citations}) > 1 or says_yes_or_no(text) or stands_in(text, chat.question),
    )


def _confidence(engine: EngineInstance, signals: Signals, wanted: Wanted) -> tuple[float, bool]:
    calibration = engine.calibration
    found = None if calibration is None else calibration.confidence(signals)
    if found is not None:
        return found, True
    if wanted.min_confidence and not engine.warned_uncalibrated:
        engine.warned_uncalibrated = True
        msg = (
            f"min_confidence={wanted.min_confidence:g}, but {engine.arguments.model!r} has no calibration for this "
            "answer: its confidence is the bare probability of the answer, which is high even if no document answers "
            "the question; make a calibration with `clara calibrate`, or engine.calibrate"
        )
        warnings.warn(msg, stacklevel=2)
        log.warning("%s", msg)
    return math.exp(min(signals.logprob, 0.0)), False


def without_unasked(answer: Answer, wanted: Wanted) -> Answer:
    """Drop log-probabilities that the caller did not ask for."""
    return answer if wanted.logprobs else replace(answer, logprobs=None)
