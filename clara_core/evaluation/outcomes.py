"""The result of a single question, and the file that stores the results during a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from clara_core.common.errors import ClaraError, DataError
from clara_core.data.examples import RetrievalLine, first_fault

Mode: TypeAlias = Literal["normal", "oracle"]
Ranker: TypeAlias = Literal["memory", "bm25", "given"]

QUESTIONS = "questions.jsonl"
SETTINGS = "run.json"
KEPT = 20  # candidates of a ranking that are stored


@dataclass(frozen=True, slots=True)
class Ranking:
    """One order of a question's candidates.

    Attributes:
        top: The first candidates, as indices of the line's candidates.
        gold_ranks: Ranks of the gold passages among all candidates, from 1.
    """

    top: tuple[int, ...]
    gold_ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to a question.

    Attributes:
        mode: "normal" or "oracle".
        system: What was read: "memory", "text" (the same documents as text) or "bm25_text" (BM25's documents as text).
        documents: Candidates that were read, in order.
        text: The answer; empty if it failed.
        exact_match: 0 or 1.
        cover_match: 0 or 1.
        f1: In [0, 1].
        memory_tokens: Memory slots of the prompt.
        source_tokens: Text tokens of the documents, by the engine's tokenizer.
        failed: Why there is no answer; empty if there is one.
    """

    mode: Mode
    system: str
    documents: tuple[int, ...]
    text: str
    exact_match: float
    cover_match: float
    f1: float
    memory_tokens: int
    source_tokens: int
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Total size of the candidates of a question.

    Attributes:
        passages: Number of candidates.
        memory_bytes: Bytes of their memories.
        text_bytes: Bytes of their text in UTF-8.
        memory_tokens: Memory tokens.
        text_tokens: Text tokens.
    """

    passages: int
    memory_bytes: int
    text_bytes: int
    memory_tokens: int
    text_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one question.

    Attributes:
        where: ``file:line`` of the question.
        key: Hash of question, candidates and answers, to check that a resumed run has the same data.
        question: The question.
        references: Gold answers.
        sizes: Sizes of the candidates.
        rankings: Rankings by ranker.
        replies: One reply for each mode and system.
    """

    where: str
    key: str
    question: str
    references: tuple[str, ...]
    sizes: Sizes
    rankings: dict[str, Ranking]
    replies: tuple[Reply, ...]

    def to_json(self) -> str:
        """One line of JSON without a line break."""
        return json.dumps(asdict(self), ensure_ascii=False)


_OUTCOMES: Final = TypeAdapter(Outcome)


def line_key(line: RetrievalLine) -> str:
    """Hash of the content of a line, without its position in a file."""
    content = json.dumps([line.question, _docs_key(line.docs), line.references, line.pos_index])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@lru_cache(maxsize=16)  # over a corpus all lines have the same candidates
def _docs_key(docs: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(docs).encode()).hexdigest()


class OutcomeLog:
    """The outcomes of a run in a folder, appended during the run, one line a question.

    An interrupted run is resumed after its last complete line if the settings are the same.

    Args:
        folder: Folder of the results; it is created if it does not exist.
        settings: Settings that determine the outcomes, as JSON values.
        lines: The questions, in order.

    Raises:
        ValueError: The folder holds a run with other settings or questions.
        DataError: A line of the file is damaged.
        ClaraError: The folder cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], lines: Sequence[RetrievalLine]) -> None:
        self.path = folder / QUESTIONS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_settings(folder / SETTINGS, settings)
            self.outcomes = self._read(lines)
        except OSError as exc:
            raise ClaraError(f"{folder} cannot be used for results: {exc.strerror or exc}") from exc

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Append outcomes and sync them to disk.

        Raises:
            ClaraError: The file cannot be written; outcomes that were written before are kept.
        """
        written = "".join(outcome.to_json() + "\n" for outcome in outcomes)
        try:
            with self.path.open("ab") as file:
                file.write(written.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise ClaraError(
                f"{self.path} cannot be written: {exc.strerror or exc}; {len(self.outcomes)} questions are kept there, "
                "and the same call resumes after them"
            ) from exc
        self.outcomes += outcomes

    def _check_settings(self, path: Path, settings: Mapping[str, Any]) -> None:
        if path.exists():
            try:
                before = json.loads(path.read_text("utf-8"))
                other = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            except (ValueError, TypeError, AttributeError) as exc:
                raise DataError(f"{path}: not the settings of a run: {exc}; choose another folder") from exc
            if other:
                changed = ", ".join(f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in other)
                raise ValueError(f"{path.parent} holds a run with other settings: {changed}; choose another folder")
        elif self.path.exists():
            raise ValueError(f"{path.parent} holds {QUESTIONS} but no {SETTINGS}; choose another folder")
        else:
            unfinished = path.with_suffix(".json.part")
            unfinished.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", "utf-8")
            unfinished.replace(path)

    def _read(self, lines: Sequence[RetrievalLine]) -> list[Outcome]:
        """The stored outcomes of the lines; an incomplete last line is removed from the file."""
        if not self.path.exists():
            return []
        outcomes: list[Outcome] = []
        whole = 0
        with self.path.open("r+b") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.endswith(b"\n"):
                    file.truncate(whole)
                    break
                whole += len(raw)
                if number > len(lines):
                    continue  # an earlier run had more questions
                outcomes.append(self._parse(raw, number, lines[number - 1]))
        return outcomes

    def _parse(self, raw: bytes, number: int, line: RetrievalLine) -> Outcome:
        try:
            outcome = _OUTCOMES.validate_json(raw)
        except ValidationError as exc:
            raise DataError(
                f"{self.path}:{number}: not an outcome of a run ({first_fault(exc)}); delete this line and those after "
                "it, or choose another folder"
            ) from exc
        if outcome.key != line_key(line):
            raise ValueError(
                f"{self.path}:{number} is about another question than {line.where or f'line {number}'}: the data has "
                "changed; choose another folder"
            )
        return outcome
