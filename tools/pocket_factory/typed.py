"""Passages and questions that were written one by one, in ``typed/*.txt``: no template made them.

A passage has a line with its sort, a line with its text, and a line for each question: ``? question | answer / another
form of it``, or ``! question`` for one that it does not answer. An empty line separates passages.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from tools.pocket_factory.frames import Made

FOLDER = Path(__file__).parent / "typed"
HELD = 5  # every fifth passage of a file is not trained on: the hints of the engine are measured on these
RENUMBERED = 0.5  # share of the passages that get other numbers
_DIGITS = re.compile(r"\d{2,}")


@dataclass(frozen=True, slots=True)
class TypedPassage:
    """A passage as it was written.

    Attributes:
        sort: Sort of text, in words.
        text: The passage.
        asked: Questions, each with the forms of its answer, the best one first.
        unanswerable: Questions that it does not answer.
    """

    sort: str
    text: str
    asked: tuple[tuple[str, tuple[str, ...]], ...]
    unanswerable: tuple[str, ...]


def read_typed(folder: Path = FOLDER, *, held: bool = False) -> list[TypedPassage]:
    """The passages to train on, or those that are held out, in the order of the files.

    Raises:
        ValueError: A line has another form, or an answer is not in its passage.
    """
    return [
        _parsed(block, f"{path.name}, passage {number}")
        for path in sorted(folder.glob("*.txt"))
        for number, block in enumerate(path.read_text(encoding="utf-8").strip().split("\n\n"), 1)
        if (number % HELD == 0) == held
    ]


def _parsed(block: str, where: str) -> TypedPassage:
    sort, text, *lines = (line.strip() for line in block.strip().splitlines())
    asked: list[tuple[str, tuple[str, ...]]] = []
    unanswerable: list[str] = []
    for line in lines:
        question, _, answers = line[1:].partition("|")
        forms = tuple(form.strip() for form in answers.split(" / ") if form.strip())
        if line.startswith("!"):
            unanswerable.append(question.strip())
        elif line.startswith("?") and forms:
            asked.append((question.strip(), forms))
        else:
            raise ValueError(f"{where}: expected '? question | answer' or '! question', got {line!r}")
    strange = [
        form for _, forms in asked for form in forms if form not in ("Yes", "No") and form.lower() not in text.lower()
    ]
    if strange or not sort.startswith("#"):
        raise ValueError(f"{where}: no line '# sort', or answers that are not in the passage: {strange}")
    return TypedPassage(sort.lstrip("# "), text, tuple(asked), tuple(unanswerable))


class Typed:
    """Draws typed passages, half of them with other numbers, so that these cannot be learned by heart."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.known = read_typed(folder)

    def make(self, rng: random.Random) -> Made:
        """A passage with its questions."""
        passage = rng.choice(self.known)
        numbers: dict[str, str] = {}
        if rng.random() < RENUMBERED:
            numbers = {run: _alike(rng, run) for run in sorted({*_DIGITS.findall(passage.text)})}

        def renumbered(text: str) -> str:
            return _DIGITS.sub(lambda run: numbers.get(run[0], run[0]), text)

        asked = [
            (renumbered(question), renumbered(_in_text(passage.text, forms[0]))) for question, forms in passage.asked
        ]
        unanswerable = [renumbered(question) for question in passage.unanswerable]
        return Made("", renumbered(passage.text), asked, unanswerable, "typed")


def _alike(rng: random.Random, run: str) -> str:
    """As many digits, with the same first one: a year stays in its century, an hour before midnight."""
    first, *rest = run
    return first + "".join(rng.choice("0123" if first == "2" and len(run) == 2 else "0123456789") for _ in rest)


def _in_text(text: str, answer: str) -> str:
    """An answer as the text spells it."""
    at = text.find(answer)
    at = text.lower().find(answer.lower()) if at < 0 else at
    return text[at : at + len(answer)] if at >= 0 else answer
