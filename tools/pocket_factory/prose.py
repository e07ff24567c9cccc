"""Passages of real English, with cloze questions and with questions that rules derive from the text."""

from __future__ import annotations

import random
import re

from tools.pocket_factory.frames import Made, upper

_DATES = re.compile(r"\((\d{3,4})-(\d{3,4})\)|\(born in (\d{4})\)")
_PERSON = re.compile(
    r"^((?:[A-Z][\w.]+ )*[A-Z][\w-]+) ((?:[a-z]+ )*?(?:[a-z]+))(?: who | whose | of | and | in |;| \()"
)
_DID = {
    "wrote": "write",
    "led": "lead",
    **{f"{base}ed": base for base in ("invent", "discover", "found", "design", "develop")},
    **{f"{base}d": base for base in ("introduce", "prove")},
}
STOP = {
    "the",
    "a",
    "an",
    "of",
    "to",
    "in",
    "and",
    "or",
    "is",
    "are",
    "was",
    "be",
    "it",
    "its",
    "as",
    "by",
    "for",
    "with",
    "that",
    "this",
    "from",
    "on",
    "at",
    "which",
    "can",
    "has",
    "have",
    "been",
    "will",
    "not",
    "but",
    "also",
    "you",
    "your",
    "their",
    "they",
}


class Prose:
    """Draws passages of real text. The text is used for training only and never written to a file."""

    def __init__(self, texts: dict[str, list]) -> None:
        self.texts = texts
        self.by_word: dict[str, str] = {}

    def split(self, held_out: int) -> Prose:
        """Remove the last texts of each sort, and return them as a held-out set."""
        kept = {name: texts[-held_out:] for name, texts in self.texts.items()}
        self.texts = {name: texts[:-held_out] for name, texts in self.texts.items()}
        return Prose(kept)

    def make(self, rng: random.Random) -> Made:
        """A passage with cloze questions and, if a rule applies, ordinary ones."""
        x = rng.random()
        if x < 0.28:
            text = rng.choice(self.texts["descriptions"])
            return Made("", text, self.cloze(rng, text, 2) + self.rules(rng, text), [], "description")
        if x < 0.56:
            return self.gloss(rng)
        if x < 0.9:
            parts = [upper(rng.choice(self.texts["examples"])) for _ in range(rng.choice((1, 1, 2, 3)))]
            text = " ".join(p if p[-1] in ".!?" else p + "." for p in parts)
            return Made("", text, self.cloze(rng, text, 2), [], "example")
        text = rng.choice(self.texts["definitions"])
        return Made("", text, self.cloze(rng, text, 2), [], "definition")

    def gloss(self, rng: random.Random) -> Made:
        """A word with its meaning, often a real person or place."""
        part, word, text = rng.choice(self.texts["glosses"])
        asked: list[tuple[str, str]] = []
        clean = re.sub(r"\s*\([^)]*\)$", "", text)
        if part == "noun":
            asked += [
                (q, clean)
                for q in (f"What is {word}?", f"What does {word} mean?", f"what is {word}", f"Explain {word}.")
                if len(clean.split()) < 14
            ]
            if word[0].isupper():
                asked += self.named(rng, word, text)
        elif len(clean.split()) < 12:
            asked.append((f"What does {'to ' if part == 'verb' else ''}{word} mean?", clean))
        lead = "to " if part == "verb" else ""
        said = rng.choice(
            (
                f"{upper(word)}: {text}.",
                f"{upper(lead + word)} means {text}." if part != "noun" else f"{upper(word)} is {text}.",
                f"{word} - {text}",
                f"{upper(word)}: {text}",
            )
        )
        return Made(word, said, asked + self.cloze(rng, said, 2), [], "gloss")

    @staticmethod
    def named(rng: random.Random, word: str, text: str) -> list[tuple[str, str]]:
        """Questions about a real person, river or place."""
        asked = []
        if found := _DATES.search(text):
            born, died = found[1] or found[3], found[2]
            asked += [(f"When was {word} born?", born), (f"In which year was {word} born?", born)]
            if died:
                asked += [(f"When did {word} die?", died), (f"In what year did {word} die?", died)]
            if person := _PERSON.search(text):
                asked += [
                    (f"What nationality was {word}?", person[1]),
                    (f"What was {word}?", person[2]),
                    (f"What was {word}'s profession?", person[2]),
                ]
        for pattern, questions in (
            (
                r"flow(?:s|ing) (?:\w+ )*?into ((?:the )?(?:[A-Z][\w.]+ ?)+)",
                ("Into what does {w} flow?", "Where does {w} flow?"),
            ),
            (
                r"\bin ((?:(?:central|(?:north|south)?(?:east|west)?(?:ern)?) )?[A-Z]\w+(?: [A-Z]\w+)?)",
                ("Where is {w}?", "In which place is {w}?"),
            ),
            (r"capital (?:and [\w ]+ )?of ((?:the )?[A-Z]\w+(?: [A-Z]\w+)?)", ("Of what is {w} the capital?",)),
            (
                rf"who ({'|'.join(_DID)}) ([^(;,]+)",
                ("What did {w} {v}?",),
            ),
        ):
            if found := re.search(pattern, text):
                if "{v}" in questions[0]:
                    asked.append((f"What did {word} {_DID[found[1]]}?", found[2].strip()))
                elif not _DATES.search(text) or "{w} flow" in questions[0]:
                    asked += [(q.format(w=word), found[1].strip()) for q in questions]
        return asked

    @staticmethod
    def rules(rng: random.Random, text: str) -> list[tuple[str, str]]:
        """Questions that follow from the form of a sentence."""
        asked = []
        if (
            found := re.match(
                r"^((?:The |An? )?[\w.+-]+(?: [\w.+-]+)?) is (an? [^,.;:()]{6,60}?)"
                r"(?= that | which | for | to | with | used | based | written |[,.;:(])",
                text,
            )
        ) and found[1].lower() not in (
            "this",
            "it",
            "there",
            "the goal",
            "this package",
            "this module",
            "this library",
        ):
            asked += [(f"What is {found[1]}?", found[2]), (f"what is {found[1]}", found[2])]
            if by := re.search(r"written in ((?:[A-Z]\w*\+*)|C\+\+|C)\b", text):
                asked.append((f"In what language is {found[1]} written?", by[1]))
            if by := re.search(r"based on ((?:the )?[A-Z]\w+(?: [A-Z]\w+)*)", text):
                asked.append((f"What is {found[1]} based on?", by[1]))
            if by := re.search(r"(?:written|developed|created|designed) by ((?:[A-Z][\w.]+ ?)+)", text):
                asked.append((f"Who wrote {found[1]}?", by[1].strip()))
        if found := re.search(r"(?:stands for|short for) ((?:\"[^\"]+\")|(?:[A-Z]\w+ ?)+)", text):
            asked.append(("What does it stand for?", found[1].strip(' "')))
        return asked

    @staticmethod
    def cloze(rng: random.Random, text: str, count: int) -> list[tuple[str, str]]:
        """Cloze questions: each asks for one to five words of a text and gives the words around them."""
        words = text.split()
        asked = []
        for _ in range(count):
            n = min(rng.choice((1, 1, 2, 2, 3, 4, 5)), len(words) - 3)
            if n < 1:
                break
            i = rng.randrange(0, len(words) - n + 1)
            gone = words[i : i + n]
            if n == 1 and gone[0].lower() in STOP:
                continue
            a, b = rng.choice((4, 6, 8)), rng.choice((0, 3, 6))
            before, after = " ".join(words[max(0, i - a) : i]), " ".join(words[i + n : i + n + b])
            answer = " ".join(gone).strip(".,;:()\"'")
            if answer and (before or after):
                x = rng.random()
                if x < 0.8 or not before:
                    asked.append((f"Fill in: {before} ___ {after}".strip(), answer))
                else:
                    asked.append((f'What comes after "{before}"?', answer))
        return asked
