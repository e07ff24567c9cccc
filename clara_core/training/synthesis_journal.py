"""What has become of each passage, on disk: a run that was killed goes on from here.

One line a passage in ``journal.jsonl``, on the disk before the next one is begun. A passage is known by the hash of its
text, so that a changed text is worked on anew and a moved one is not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from clara_core.common.errors import DataError
from clara_core.data.jsonl import LineWriter, read_objects
from clara_core.training.synthesis_prompts import VERSION
from clara_core.training.synthesis_replies import Pair

__all__ = ["JOURNAL", "Journal", "Outcome", "passage_key"]

JOURNAL: Final = "journal.jsonl"
_HEADER: Final = {"journal": 1, "prompts": VERSION}


def passage_key(text: str) -> str:
    """The hash that a passage is known by."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a passage.

    Attributes:
        passage: Its hash.
        reason: Why it was dropped; empty where it was kept.
        rounds: Rounds it took.
        calls: Replies of the language model.
        simple: Pairs about one fact each.
        complex: Pairs that combine several.
        paraphrase: The passage in other words.
        faults: What was wrong with replies, and how often.
    """

    passage: str
    reason: str
    rounds: int
    calls: int
    simple: tuple[Pair, ...] = ()
    complex: tuple[Pair, ...] = ()
    paraphrase: str = ""
    faults: Mapping[str, int] = field(default_factory=Counter)


class Journal:
    """The outcomes of a folder, to be added to by one process at a time.

    Args:
        folder: Where the journal lies; made where it is not there.

    Raises:
        DataError: Another process writes to it, it cannot be read, or another version of the project made it.
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
            self._writer = LineWriter(self.path)  # cuts off what a killed run left half
            self.outcomes = self._read()
        except BaseException:
            self._lock.release()
            raise

    def add(self, outcome: Outcome) -> None:
        """Note an outcome; it is on the disk when this returns."""
        self._writer.write(asdict(outcome))
        self.outcomes[outcome.passage] = outcome

    def _read(self) -> dict[str, Outcome]:
        lines = read_objects(self.path)
        where, header = next(lines, (f"{self.path}:1", None))
        if header is None:
            self._writer.write(_HEADER)
        elif header != _HEADER:
            raise DataError(f"{where}: made by another version ({header!r:.80}, here {_HEADER}); choose another folder")
        return {outcome.passage: outcome for outcome in (_outcome(found, where) for where, found in lines)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._lock.release()


def _outcome(found: dict[str, Any], where: str) -> Outcome:
    try:
        for name in ("passage", "reason", "paraphrase"):
            found[name].encode()
        return Outcome(
            found["passage"],
            found["reason"],
            int(found["rounds"]),
            int(found["calls"]),
            _pairs(found["simple"]),
            _pairs(found["complex"]),
            found["paraphrase"],
            Counter({str(name): int(count) for name, count in found["faults"].items()}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DataError(f"{where}: no line of a journal of synthesis ({exc!r}); choose another folder") from exc


def _pairs(found: list[list[str]]) -> tuple[Pair, ...]:
    pairs = tuple((question, answer) for question, answer in found)
    for question, answer in pairs:
        (question + answer).encode()
    return pairs
