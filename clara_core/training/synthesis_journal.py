"""A journal of finished passages on disk, from which an interrupted run is resumed.

``journal.jsonl`` has one line a passage, which is synced to disk before `Journal.add` returns. Passages are identified
by the hash of their text, so that a changed passage is processed again and a moved one is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from clara_core.common.errors import DataError
from clara_core.data.examples import first_fault
from clara_core.data.jsonl import LineWriter, read_objects
from clara_core.training.synthesis_prompts import VERSION
from clara_core.training.synthesis_replies import Pair

__all__ = ["JOURNAL", "Journal", "Outcome", "passage_key"]

JOURNAL: Final = "journal.jsonl"
_HEADER: Final = {"journal": 1, "prompts": VERSION}


def passage_key(text: str) -> str:
    """The hash that identifies a passage."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one passage.

    Attributes:
        passage: Hash of the passage.
        reason: Why it was dropped; empty if it was kept.
        rounds: Number of rounds.
        calls: Replies of the language model.
        simple: Pairs about one fact each.
        complex: Pairs that combine several facts.
        paraphrase: Paraphrase of the passage.
        faults: Number of unusable replies by fault.
    """

    passage: str
    reason: str
    rounds: int
    calls: int
    simple: tuple[Pair, ...] = ()
    complex: tuple[Pair, ...] = ()
    paraphrase: str = ""
    faults: Mapping[str, int] = field(default_factory=dict)


_OUTCOMES: Final = TypeAdapter(Outcome)


class Journal:
    """The outcomes of a folder, locked for one process.

    Args:
        folder: Folder of the journal; it is created if it does not exist.

    Raises:
        DataError: Another process uses the folder, the journal cannot be read, or its version differs.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / f".{JOURNAL}.lock", timeout=0)
            self._lock.acquire()
        except Timeout as exc:
            raise DataError(f"{folder}: another run is writing here; wait for it, or choose another folder") from exc
        except OSError as exc:
            raise DataError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
        try:
            self._writer = LineWriter(self.path)  # removes an incomplete last line of a killed run
            self.outcomes = self._read()
        except BaseException:
            self._lock.release()
            raise

    def add(self, outcome: Outcome) -> None:
        """Append an outcome and sync it to disk."""
        self._writer.write(asdict(outcome))
        self.outcomes[outcome.passage] = outcome

    def _read(self) -> dict[str, Outcome]:
        lines = read_objects(self.path)
        where, header = next(lines, (f"{self.path}:1", None))
        if header is None:
            self._writer.write(_HEADER)
        elif header != _HEADER:
            raise DataError(f"{where}: expected the header {_HEADER}, got {header!r:.80}; choose another folder")
        return {outcome.passage: outcome for outcome in (_outcome(found, where) for where, found in lines)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._writer.close()
        self._lock.release()


def _outcome(found: dict[str, Any], where: str) -> Outcome:
    try:
        return _OUTCOMES.validate_json(json.dumps(found))  # as JSON, in which half a surrogate pair is an error
    except ValidationError as exc:
        raise DataError(
            f"{where}: not a line of a synthesis journal ({first_fault(exc)}); choose another folder"
        ) from exc
