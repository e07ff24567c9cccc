"""The lines of training sets: what each stage learns from, checked field by field.

The layouts are those of the published training code; `clara_core.data.jsonl` reads and writes files of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from clara_core.common.errors import DataError

Stage: TypeAlias = Literal["stage1", "stage1_2", "contrastive", "stage2"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

_DOCUMENTS: Final = ("docs", "context", "content")
_ANSWERS: Final = ("answer", "answers", "golden_answers", "gold_answer")  # in the order of the published code
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True, slots=True)
class CompressionLine:
    """Stage 1: what the memory tokens of a passage must be good for.

    Attributes:
        kind: "qa", or "paraphrase" (then there is no question and one answer).
        questions: As many as there are answers, or none.
        answers: At least one.
        docs: Passages, nearly always one.
        where: ``file:line``, for messages.
    """

    kind: Literal["qa", "paraphrase"]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    docs: tuple[str, ...]
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class InstructionLine:
    """Stage 1_2: a question over several passages.

    Attributes:
        question: Question.
        docs: Passages in the order of their slots.
        answer: What is learned.
        references: All answers that count as right, `answer` first.
        where: ``file:line``, for messages.
    """

    question: str
    docs: tuple[str, ...]
    answer: str
    references: tuple[str, ...]
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RetrievalLine:
    """Contrastive stage and stage 2: a question over candidates.

    Attributes:
        question: Question.
        docs: Candidates.
        answer: What is learned; empty only where a contrastive line has none.
        references: All answers that count as right, `answer` first.
        pos_index: Which candidates answer the question; empty only where a line of stage 2 does not say.
        where: ``file:line``, for messages.
    """

    question: str
    docs: tuple[str, ...]
    answer: str
    references: tuple[str, ...]
    pos_index: tuple[int, ...]
    where: str = field(default="", compare=False)


Line: TypeAlias = CompressionLine | InstructionLine | RetrievalLine


def line_object(line: Line) -> dict[str, Any]:
    """A line in the published layout; `check_line` makes the same line of it again.

    The answer of a line of stage 2 is named ``answer``: the published code does not know the name of its own guide,
    ``gold_answer``.
    """
    if isinstance(line, CompressionLine):
        return {
            "data_type": line.kind,
            "question": list(line.questions),
            "answers": list(line.answers),
            "docs": list(line.docs),
        }
    found: dict[str, Any] = {"question": line.question, "docs": list(line.docs)}
    if line.answer:
        found["answer"] = line.answer
    if len(line.references) > 1:
        found["golden_answers"] = list(line.references)
    if isinstance(line, RetrievalLine):
        found["pos_index"] = list(line.pos_index)
    return found


# --- checking --------------------------------------------------------------------------------------------


def check_line(found: dict[str, Any], stage: Stage, where: str) -> Line:
    """A JSON object as a line of a stage.

    Args:
        found: The object.
        stage: What the line is for.
        where: Its place, for messages.

    Raises:
        DataError: A field is missing, empty, of a wrong type, or points outside; names the place and the field.
    """
    if stage == "stage1":
        return _compression_line(found, where)
    docs = _documents(found, where)
    question = _question(found, where)
    if stage == "stage1_2":
        references = _references(found, where)
        return InstructionLine(question, docs, references[0], references, where)
    positives = _positives(found, len(docs), where)
    if stage == "contrastive" and not positives:
        raise DataError(f"{where}: 'pos_index' is missing or empty: a contrastive line must name a gold passage")
    needs_answer = stage == "stage2" or any(name in found for name in _ANSWERS)
    references = _references(found, where) if needs_answer else ()
    return RetrievalLine(question, docs, references[0] if references else "", references, positives, where)


def _compression_line(found: dict[str, Any], where: str) -> CompressionLine:
    docs = _documents(found, where)
    kind = found.get("data_type", "qa")
    answers = _texts(found, _first(found, ("answers", "answer", "golden_answers", "gold_answer"), where), where)
    if kind == "paraphrase":
        if len(answers) != 1:
            raise DataError(f"{where}: a paraphrase line needs exactly one answer, got {len(answers)}")
        return CompressionLine("paraphrase", (), answers, docs, where)
    if kind != "qa":
        raise DataError(f"{where}: 'data_type' must be 'qa' or 'paraphrase', got {shown(kind)}")
    questions = _texts(found, _first(found, ("question",), where), where)
    if len(questions) != len(answers):
        raise DataError(f"{where}: {len(questions)} questions but {len(answers)} answers; each needs its own")
    return CompressionLine("qa", questions, answers, docs, where)


def _documents(found: dict[str, Any], where: str) -> tuple[str, ...]:
    name = _first(found, _DOCUMENTS, where)
    if not isinstance(found[name], list):
        raise DataError(f"{where}: {name!r} must be a list of texts, got {shown(found[name])}")
    return _texts(found, name, where)


def _question(found: dict[str, Any], where: str) -> str:
    questions = _texts(found, _first(found, ("question",), where), where)
    if len(questions) != 1:
        raise DataError(f"{where}: 'question' must be one text, got {len(questions)}")
    return questions[0]


def _references(found: dict[str, Any], where: str) -> tuple[str, ...]:
    _first(found, _ANSWERS, where)
    named = [name for name in _ANSWERS if found.get(name) is not None]
    return tuple(dict.fromkeys(text for name in named for text in _texts(found, name, where)))


def _positives(found: dict[str, Any], n_docs: int, where: str) -> tuple[int, ...]:
    value = found.get("pos_index")
    indices = [] if value is None else value if isinstance(value, list) else [value]
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):
            raise DataError(f"{where}: 'pos_index' must hold whole numbers, got {shown(index)}")
        if not 0 <= index < n_docs:
            raise DataError(f"{where}: 'pos_index' {index} is out of range: there are {n_docs} candidates, from 0 on")
    return tuple(dict.fromkeys(indices))


def _first(found: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first of the names that the object has a value for."""
    for name in names:
        if found.get(name) is not None:
            return name
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{where}: {wanted} is missing; the line has {', '.join(map(repr, found)) or 'no field at all'}")


def _texts(found: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A text or a list of texts, none of them blank."""
    value = found[name]
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise DataError(f"{where}: {name!r} is an empty list")
    for number, text in enumerate(texts):
        part = f"{name}[{number}]" if isinstance(value, list) else name
        if not isinstance(text, str):
            raise DataError(f"{where}: {part!r} must be a text, got {shown(text)}")
        if not text.strip():
            raise DataError(f"{where}: {part!r} is empty")
        if not _is_unicode(text):
            raise DataError(f"{where}: {part!r} holds half a surrogate pair, which is no Unicode text")
    return tuple(texts)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_stage(stage: str) -> None:
    """Refuse a stage that there is not, with a ValueError."""
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")


def shown(value: object) -> str:
    """A wrong value with its type, short enough for a message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"
