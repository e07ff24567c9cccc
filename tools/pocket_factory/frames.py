"""Everyday passages from the templates in ``frames/*.txt``, with questions and near misses for each.

A frame is ``[name] X=sort of its subject it=pronouns|of it``, then blocks: one line of statements (``- … | …``) and,
for each slot, a line of questions (``a: … | …``). ``{a:sort}`` draws a value, which all statements of the passage
share. ``y a:`` are yes-or-no questions, made false by another value.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from tools.pocket_factory.values import Pools

TRUE_OR_NOT = 0.2  # share of the statements that get a yes-or-no question
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")


@dataclass
class Made:
    """A passage: its text, questions with answers, and questions that it does not answer."""

    subject: str
    text: str
    asked: list[tuple[str, str]]
    unanswerable: list[str] = field(default_factory=list)
    kind: str = ""

    def __post_init__(self) -> None:
        answers: dict[str, set[str]] = {}
        for question, answer in self.asked:
            answers.setdefault(question, set()).add(answer)
        self.asked = [(question, answer) for question, answer in self.asked if len(answers[question]) == 1]
        known = {question for question, _ in self.asked}
        self.unanswerable = [question for question in self.unanswerable if question not in known]


@dataclass
class Block:
    """Several wordings of some facts, and questions about each of their slots."""

    statements: list[str]
    questions: dict[str, list[str]] = field(default_factory=dict)
    yes_no: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Frame:
    """One everyday situation."""

    name: str
    sort: str
    pronouns: list[str]
    blocks: list[Block] = field(default_factory=list)


def read_frames(folder: Path) -> list[Frame]:
    """The frames of all files of a folder."""
    frames: list[Frame] = []
    for file in sorted(folder.glob("*.txt")):
        for line in map(str.strip, file.read_text(encoding="utf-8").splitlines()):
            if not line or line.startswith("#"):
                continue
            if head := re.fullmatch(r"\[(.+?)\] X=(\w+) it=(.*)", line):
                if any(frame.name == head[1] for frame in frames):
                    raise ValueError(f"{file}: a frame [{head[1]}] stands before")
                frames.append(Frame(head[1], head[2], [p for p in head[3].split("|") if p]))
            elif line.startswith("- "):
                frames[-1].blocks.append(Block([s.strip().replace("\\n", "\n") for s in line[2:].split(" | ")]))
            elif found := re.fullmatch(r"y (\w+): (.*)", line):
                frames[-1].blocks[-1].yes_no[found[1]] = [q.strip() for q in found[2].split(" | ")]
            elif found := re.fullmatch(r"(\w+): (.*)", line):
                frames[-1].blocks[-1].questions[found[1]] = [q.strip() for q in found[2].split(" | ")]
            else:
                raise ValueError(f"{file}: {line!r}")
    return frames


def upper(text: str) -> str:
    """Turn the first letter into upper case, even after a bracket or quotation mark."""
    return text[:1].upper() + text[1:]


def sentence(rng: random.Random, text: str) -> str:
    """Turn a text into a sentence with a capital letter and a full stop."""
    text = upper(text)
    return text if text[-1] in '.!?"' else text + ("." if rng.random() < 0.97 else "!")


class Frames:
    """Draws passages from frames."""

    def __init__(self, pools: Pools, frames: list[Frame]) -> None:
        self.pools = pools
        self.frames = frames
        self.sorts: dict[tuple[str, str], str] = {}
        for frame in frames:
            for block in frame.blocks:
                for statement in block.statements:
                    for name, sort in SLOT.findall(statement):
                        if sort:
                            self.sorts[frame.name, name] = sort

    def fill(self, rng: random.Random, frame: Frame, text: str, values: dict[str, str], subject: str) -> str:
        """Fill a template with values; values that are not known yet are drawn."""

        def one(match: re.Match[str]) -> str:
            name, sort = match[1], match[2]
            if name == "X":
                return subject
            if name not in values:
                found = sort or self.sorts[frame.name, name]
                value = self.pools.draw(rng, found.lower())
                taken = set(values.values())
                for _ in range(4):
                    if value not in taken:
                        break
                    value = self.pools.draw(rng, found.lower())
                values[name] = upper(value) if found[0].isupper() else value
            return values[name]

        return SLOT.sub(one, text)

    def make(
        self,
        rng: random.Random,
        *,
        frame: Frame | None = None,
        subject: str | None = None,
        most: int = 5,
        avoid: set[str] = frozenset(),
    ) -> Made:
        """A passage about one subject."""
        frame = frame or rng.choice(self.frames)
        subject = subject or self.pools.draw(rng, frame.sort)
        values: dict[str, str] = {}
        wanted = min(len(frame.blocks), rng.choice((1, 1, 2, 2, 3, 3, 4, 5)), most)
        if rng.random() < 0.6:
            chosen = sorted(rng.sample(range(len(frame.blocks)), wanted))
        else:
            chosen = rng.sample(range(len(frame.blocks)), wanted)
        if rng.random() < 0.4 and 0 not in chosen:
            chosen[0] = 0
        parts: list[str] = []
        asked: list[tuple[str, str]] = []
        named = False
        told: set[str] = set()
        for number in chosen:
            block = frame.blocks[number]
            options = block.statements
            if not named:
                options = [s for s in options if "{X}" in s] or options
            template = rng.choice(options)
            name = subject
            if (
                named
                and frame.pronouns
                and template.startswith("{X}")
                and "{X}'s" not in template
                and rng.random() < 0.45
            ):
                name = rng.choice(frame.pronouns)
                if name in ("I", "We", "They"):  # the verb would have another form
                    name = subject
            named = named or "{X}" in template
            parts.append(sentence(rng, self.fill(rng, frame, template, values, name)))
            stated = {slot for slot, _ in SLOT.findall(template)} - {"X"}
            asked += self.true_or_not(rng, frame, template, values, subject)
            told |= stated
            for slot in stated:
                for question in self._ready(block.questions.get(slot, ()), stated, named):
                    asked.append((self.fill(rng, frame, question, values, subject), values[slot].removeprefix("of ")))
                for question in self._ready(block.yes_no.get(slot, ()), stated, named):
                    if rng.random() < 0.5:
                        asked.append((self.fill(rng, frame, question, values, subject), "Yes"))
                    else:
                        other = {**values, slot: self.pools.draw(rng, self.sorts[frame.name, slot].lower())}
                        if other[slot] != values[slot]:
                            asked.append((self.fill(rng, frame, question, other, subject), "No"))
        if not any("{X}" in s for n in chosen for s in frame.blocks[n].statements) or subject not in " ".join(parts):
            heading = upper(subject)
            parts.insert(0, rng.choice((f"{heading}:", f"{heading}.", f"About {subject}:")))
        misses = []
        for number, block in enumerate(frame.blocks):
            if number in chosen:
                continue
            for slot, questions in block.questions.items():
                for question in questions:
                    needed = {s for s, _ in SLOT.findall(question)} - {"X"}
                    if slot not in told and needed <= told and ("{X}" in question or rng.random() < 0.5):
                        misses.append(self.fill(rng, frame, question, values, subject))
        rng.shuffle(misses)
        return Made(subject, self.lay_out(rng, parts, subject), asked, misses[:4], frame.name)

    def true_or_not(
        self, rng: random.Random, frame: Frame, template: str, values: dict[str, str], subject: str
    ) -> list[tuple[str, str]]:
        """A question whether a statement is true, for some statements; a false one has another value in one slot."""
        slots = [slot for slot, _ in SLOT.findall(template) if slot != "X"]
        if rng.random() > TRUE_OR_NOT or not slots or (template[0] in '"{' and "{X}" not in template[:4]):
            return []
        changed, answer = dict(values), "Yes"
        if rng.random() < 0.5:
            slot = rng.choice(slots)
            changed[slot] = self.pools.draw(rng, self.sorts[frame.name, slot].lower())
            answer = "No" if changed[slot] != values[slot] else "Yes"
        said = self.fill(rng, frame, template, changed, subject)
        if not template.startswith("{X}") and said.split()[0].istitle():
            said = said[0].lower() + said[1:]
        return [
            (rng.choice(("Is it true that {}?", "Is it right that {}?", "{} - is that true?")).format(said), answer)
        ]

    @staticmethod
    def _ready(questions: list[str], stated: set[str], named: bool) -> list[str]:
        return [q for q in questions if {s for s, _ in SLOT.findall(q)} - {"X"} <= stated]

    @staticmethod
    def lay_out(rng: random.Random, parts: list[str], subject: str) -> str:
        """Join sentences to a text: one paragraph, lines, a list, or a text with a heading."""
        x = rng.random()
        if len(parts) == 1 or x < 0.72:
            return " ".join(parts)
        if x < 0.8:
            return "\n".join(parts)
        if x < 0.88:
            return "\n".join(f"{rng.choice('-*')} {p}" for p in parts)
        if x < 0.94:
            return f"{upper(subject)}\n\n{' '.join(parts)}"
        return "\n".join(f"{number}. {p}" for number, p in enumerate(parts, 1))
