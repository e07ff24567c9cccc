"""Other forms of a passage (letter, chat, questions and answers), and other names for its subject."""

from __future__ import annotations

import random
import re

from tools.pocket_factory.frames import Made, upper
from tools.pocket_factory.values import Pools

_PERSON = re.compile(r"^[A-ZÀ-Ž][\w'.-]+(?: [A-ZÀ-Ž][\w'.-]*| (?:van|de|von|du|al|da))* [A-ZÀ-Ž][\w'-]+$")
_TITLES = ("Dr", "Mr", "Mrs", "Ms", "Professor", "Captain", "Sister", "Judge")
_MOST_OF_FAQ = 16  # words of an answer


def letter(rng: random.Random, pools: Pools, made: Made) -> Made:
    """The passage in a letter or a message, with questions about its sender and recipient."""
    writer, reader = (
        pools.draw(rng, "person"),
        rng.choice(
            (
                pools.draw(rng, "given"),
                pools.draw(rng, "person"),
                "all",
                "neighbours",
                "colleagues",
                "customers",
                "parents",
            )
        ),
    )
    x = rng.random()
    asked = list(made.asked)
    if x < 0.55:
        end = rng.choice(
            ("Yours,", "Best wishes,", "Kind regards,", "Love,", "Yours faithfully,", "Thanks,", "Yours sincerely,")
        )
        greeting = rng.choice((f"Dear {reader},", f"Hello {reader},", f"Hi {reader},"))
        gap = rng.choice(("\n", " ", "\n\n"))
        text = f"{greeting}{gap}{made.text}{gap}{end} {writer}"
        asked += [
            (q, writer)
            for q in (
                "Who wrote the letter?",
                "Who signed the message?",
                "From whom is the letter?",
                "Who is the letter from?",
            )
        ]
        if reader[0].isupper():
            asked += [
                (q, reader)
                for q in ("To whom is the letter?", "Who is the letter to?", "Who was the message written to?")
            ]
    elif x < 0.8:
        text = f"{writer}: {made.text}"
        asked += [(q, writer) for q in ("Who said this?", "Who wrote the message?")]
    else:
        text = f"{rng.choice(('To', 'TO'))}: {reader}\nFrom: {writer}\nSubject: {made.subject or 'news'}\n{made.text}"
        asked += [("Who sent the mail?", writer), ("From whom is the mail?", writer), ("To whom was it sent?", reader)]
    return Made(made.subject, text, asked, made.unanswerable, made.kind)


def questions_and_answers(rng: random.Random, made: Made) -> Made:
    """The passage as a list of questions with answers; its own questions have other words."""
    by_answer: dict[str, list[str]] = {}
    for question, answer in made.asked:
        if answer not in ("Yes", "No") and len(answer.split()) < _MOST_OF_FAQ:
            by_answer.setdefault(answer, []).append(question)
    usable = [(a, list(dict.fromkeys(qs))) for a, qs in by_answer.items() if len(set(qs)) > 1]
    if not usable:
        return made
    rng.shuffle(usable)
    mark, sign = rng.choice((("Q: ", "A: "), ("", ""), ("Question: ", "Answer: "), ("- ", "  ")))
    gap = rng.choice((" ", "\n"))
    lines, asked = [], []
    for answer, questions in usable[: rng.choice((1, 2, 2, 3))]:
        rng.shuffle(questions)
        full = [q for q in questions if q.endswith("?")] or questions
        lines.append(f"{mark}{upper(full[0])}{gap}{sign}{upper(answer)}.")
        asked += [(q, answer) for q in questions]
    return Made(made.subject, gap.join(lines), asked, made.unanswerable, made.kind)


def short_name(rng: random.Random, subject: str) -> str | None:
    """A short name for a subject that the passage has named: a pronoun, a surname, the noun of its name."""
    words = subject.split()
    if _PERSON.match(subject) and words[0].rstrip(".") not in _TITLES:
        return rng.choice(("he", "she", words[0], words[-1], words[-1]))
    if subject.startswith("the ") and len(words) > 2 and words[-1][0].isalpha():
        return rng.choice(("it", f"the {words[-1].lower()}", f"the {words[-1].lower()}"))
    return "it" if len(words) > 1 else None


def shortened(rng: random.Random, question: str, subject: str) -> str:
    """A question with a short name for its subject."""
    if not subject or subject not in question:
        return question
    name = short_name(rng, subject)
    if name is None:
        return question
    owner = {"he": "his", "she": "her", "it": "its"}.get(name, f"{name}'s")
    found = question.replace(f"{subject}'s", owner)
    whom = {"he": "him", "she": "her"}.get(name, name)
    found = re.sub(
        rf"\b(of|by|for|to|with|from|about|than|did you call|marry|call|beat) {re.escape(subject)}",
        lambda m: f"{m[1]} {whom}",
        found,
    )
    return found.replace(subject, name)
