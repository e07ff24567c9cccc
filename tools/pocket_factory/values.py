"""Draws random values of every sort that a text may contain: people, places, things, numbers, times, codes.

``sorts.txt`` defines the sorts, and ``frames/*.sorts`` those of one file of frames. Sorts that no pattern can describe
are methods of `Pools`.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SLOT = re.compile(r"\{([\^_]?)([^{}]+)\}")
_RANGE = re.compile(r"(\d+)-(\d+)")
_ARTICLE = re.compile(r"\ba~ (\W*)(\w)")
_ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "st",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "y",
    "z",
]
_LONGEST_NAME = 11


def read_sorts(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Word lists and patterns of a file of sorts, by name; a pattern is repeated as often as its weight says."""
    words: dict[str, list[str]] = {}
    patterns: dict[str, list[str]] = {}
    text = re.sub(r"\n +", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if found := re.match(r"(\w+) = (.*)", line):
            words[found[1]] = [word.strip() for word in found[2].split(",") if word.strip()]
        elif found := re.match(r"(\w+): (.*)", line):
            patterns[found[1]] = []
            for entry in found[2].split(" | "):
                weight, _, pattern = entry.partition("* ") if re.match(r"\d+\* ", entry) else ("1", "", entry)
                patterns[found[1]] += [pattern] * int(weight)
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}: {line!r} is neither a list nor patterns")
    return words, patterns


class Pools:
    """Names that `sources` collected; draws values of every sort."""

    def __init__(self, lists: dict[str, Any]) -> None:
        self.lists = lists
        here = Path(__file__).parent
        self.words: dict[str, list[str]] = {}
        self.patterns: dict[str, list[str]] = {}
        for file in (here / "sorts.txt", *sorted((here / "frames").glob("*.sorts"))):
            words, patterns = read_sorts(file)
            if twice := (words.keys() | patterns.keys()) & (self.words.keys() | self.patterns.keys()):
                raise ValueError(f"{file}: {', '.join(sorted(twice))} stands in another file, too")
            self.words |= words
            self.patterns |= patterns
        self.words |= {
            "city": lists["cities"],
            "country": lists["countries"],
            "company": lists["companies"],
            "noun": lists["nouns"],
            "adj": lists["adjectives"],
        }
        self.made_here: dict[str, Callable[[random.Random], str]] = {
            "made": self.made,
            "given": self.given,
            "family": self.family,
            "initial": lambda rng: rng.choice(string.ascii_uppercase),
            "int": self.integer,
            "year": self.year,
            "date": self.date,
            "clock": self.clock,
        }

    def draw(self, rng: random.Random, sort: str) -> str:
        """A value of a sort."""
        if sort in self.words:
            return str(rng.choice(self.words[sort]))
        if sort in self.made_here:
            return self.made_here[sort](rng)
        text = _SLOT.sub(lambda match: self._slot(rng, match[1], match[2]), rng.choice(self.patterns[sort]))
        return _ARTICLE.sub(lambda m: f"{'an' if m[2].lower() in 'aeiou' else 'a'} {m[1]}{m[2]}", text)

    def _slot(self, rng: random.Random, how: str, sort: str) -> str:
        if bounds := _RANGE.fullmatch(sort):
            return str(rng.randint(int(bounds[1]), int(bounds[2])))
        if sort[0] in "#@":
            letters = string.digits if sort[0] == "#" else string.ascii_uppercase
            return "".join(rng.choice(letters) for _ in range(int(sort[1:])))
        value = self.draw(rng, sort)
        if how == "^":
            return value[:1].upper() + value[1:]
        return value.lower() if how == "_" else value

    # --- names ---------------------------------------------------------------------------------------------

    def made(self, rng: random.Random) -> str:
        """An invented word, with sequences of letters as in real names, or of simple syllables."""
        if rng.random() < 0.5:
            word = rng.choice(self.lists["starts"])
            while len(word) < _LONGEST_NAME:
                following = self.lists["chain"].get(word[-2:])
                if not following:
                    break
                letter = rng.choice(following)
                if letter == "$" and len(word) > 3:
                    break
                word += letter.strip("$")
            return str(word).capitalize()
        syllables = (
            rng.choice(_ONSETS) + rng.choice("aeiouaeiouy") + (rng.choice("nrlstkmpdx") if rng.random() < 0.45 else "")
            for _ in range(rng.choice((1, 2, 2, 2, 3)))
        )
        return "".join(syllables).capitalize()

    def given(self, rng: random.Random) -> str:
        """A first name."""
        return str(rng.choice(self.lists["given"])) if rng.random() < 0.85 else self.made(rng)

    def family(self, rng: random.Random) -> str:
        """A family name."""
        return str(rng.choice(self.lists["family"])) if rng.random() < 0.8 else self.made(rng)

    # --- numbers and times ---------------------------------------------------------------------------------

    def integer(self, rng: random.Random) -> str:
        """A whole number in figures or words."""
        x = rng.random()
        if x < 0.6:
            return str(rng.randint(2, 99) if x < 0.45 else rng.randint(100, 999))
        if x < 0.75:
            numeral = rng.choice(self.words["numeral"])
            tens = self.words["numeral"][19:]
            return f"{numeral}-{rng.choice(self.words['numeral'][:9])}" if numeral in tens and x < 0.7 else str(numeral)
        if x < 0.88:
            return f"{rng.randint(1, 999)},{rng.randint(0, 999):03d}"
        return str(rng.randint(1000, 99999)) if x < 0.96 else f"{rng.randint(2, 99)} million"

    def year(self, rng: random.Random) -> str:
        """A year, in most cases of the last two centuries."""
        return str(rng.randint(1850 if rng.random() < 0.6 else 1200, 2026))

    def date(self, rng: random.Random) -> str:
        """A date in one of several common formats."""
        day, month, year = rng.randint(1, 28), rng.randint(1, 12), self.year(rng)
        name = self.words["month"][month - 1]
        ending = "th" if 3 < day < 21 or day % 10 not in (1, 2, 3) else ("st", "nd", "rd")[day % 10 - 1]
        forms = (
            *(f"{day} {name} {year}", f"{day} {name} {year}", f"{day} {name}", f"{day} {name}"),
            *(f"{name} {day}, {year}", f"{name} {day}", f"{name} {year}", f"{day} {name[:3]} {year}"),
            *(f"{year}-{month:02d}-{day:02d}", f"{day:02d}/{month:02d}/{year}", f"{day}.{month}.{year}"),
            *(f"{day}{ending} {name}", f"the {day}{ending}", f"the {day}{ending} of {name}"),
        )
        return str(rng.choice(forms))

    def clock(self, rng: random.Random) -> str:
        """A time of day."""
        hour, numeral = rng.randint(1, 12), rng.choice(self.words["numeral"][:12])
        minute = rng.choice((0, 0, 15, 30, 45, rng.randrange(0, 60, 5), rng.randrange(60)))
        half = rng.choice(("am", "pm"))
        forms = (
            *(f"{hour}:{minute:02d}", f"{rng.randint(0, 23):02d}:{minute:02d}", f"{hour}:{minute:02d} {half}"),
            *(f"{hour} {half}", f"{hour}{half}", f"{hour} {half[0]}.m.", f"{hour} o'clock", f"{hour}.{minute:02d}"),
            *(f"half past {numeral}", f"{numeral} o'clock", f"quarter to {numeral}", f"quarter past {numeral}"),
            *("noon", "midnight", str(numeral)),
        )
        return str(rng.choice(forms))
