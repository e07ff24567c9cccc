"""The lines of training sets for each stage, with their validation.

The layouts are those of the published training code; `clara_core.data.jsonl` reads and writes files of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from clara_core.common.errors import DataError

if TYPE_CHECKING:
    from pydantic import ValidationError

Stage: TypeAlias = Literal["stage1", "stage1_2", "contrastive", "stage2"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

_DOCUMENTS: Final = ("docs", "context", "content")
_ANSWERS: Final = ("answer", "answers", "golden_answers", "gold_answer")  # in the order of the published code
_SHOWN = 60  # most characters of an invalid value in a message


@dataclass(frozen=True, slots=True)
class CompressionLine:
    """A line of stage 1: questions about a passage, or a paraphrase of it.

    Attributes:
        kind: "qa", or "paraphrase" (without questions, with one answer).
        questions: As many as answers, or none.
        answers: At least one.
        docs: Passages, usually one.
        where: ``file:line``, for messages.
    """

    kind: Literal["qa", "paraphrase"]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    docs: tuple[str, ...]
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class InstructionLine:
    """A line of stage 1_2: a question over several passages.

    Attributes:
        question: Question.
        docs: Passages in the order of their slots.
        answer: Target answer of the training.
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
    """A line of the contrastive stage or of stage 2: a question over candidates.

    Attributes:
        question: Question.
        docs: Candidates.
        answer: Target answer of the training; may be empty only in the contrastive stage.
        references: All answers that count as right, `answer` first.
        pos_index: Indices of the gold candidates; may be empty only in stage 2.
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
    """A line in the published layout, the inverse of `check_line`.

    The answer of a line of stage 2 is named ``answer``, because the published code does not read ``gold_answer``, the
    name in its own guide.
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
    """Validate a JSON object as a line of a stage.

    Args:
        found: The object.
        stage: The stage.
        where: Position of the line, for messages.

    Raises:
        DataError: A field is missing, empty, of a wrong type or out of range; the message names position and field.
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
        raise DataError(f"{where}: {len(questions)} questions but {len(answers)} answers; give one answer a question")
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
            raise DataError(
                f"{where}: 'pos_index' {index} is out of range: there are {n_docs} candidates, counted from 0"
            )
    return tuple(dict.fromkeys(indices))


def _first(found: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The first of the names for which the object has a value."""
    for name in names:
        if found.get(name) is not None:
            return name
    expected = " or ".join(map(repr, names))
    raise DataError(f"{where}: {expected} is missing; the line has {', '.join(map(repr, found)) or 'no fields'}")


def _texts(found: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A text or a list of texts, which must not be blank."""
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
        if not is_unicode(text):
            raise DataError(f"{where}: {part!r} holds half a surrogate pair, which is not valid Unicode")
    return tuple(texts)


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_stage(stage: str) -> None:
    """Check the name of a stage.

    Raises:
        ValueError: The stage is unknown.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")


def shown(value: object) -> str:
    """An invalid value with its type, shortened for a message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


def first_fault(exc: ValidationError) -> str:
    """The first error that pydantic found, with its field, for a message."""
    fault = exc.errors()[0]
    return ": ".join([*map(str, fault["loc"]), fault["msg"]])
