"""Invents names: syllables, a training and a test split of the words, and the pools of a corpus."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

from .types import Split

SYLLABLES: tuple[str, ...] = tuple(
    """
    ba be bo da de do fa fe ga go ka ke ko la le li lo lu ma me mi mo na ne ni no pa pe po
    ra re ri ro ru sa se si so ta te ti to tu va ve vi vo za ze zo
    bal ban bar bel ber bin bor dal dan dar del den dor fal fen fin gal gar gol han har hel
    kal kar kel kin kor lan lar len lin lor mal mar mel mer min mir mor nal nar nel ner nin nor
    pal par pel per pin rak ran rel ren rin ros sal san sar sel sen sil sol sun tal tan tar tel
    ten tor tul val van var vel ven ver vin vor wen wil yar yel zan zel zor
    """.split()  # noqa: SIM905 - a table is easier to read than a list of strings
)

# One word in this many belongs to the test split, in every corpus.
TEST_SHARE = 8


def split_of(word: str) -> Split:
    """Return the split of an invented word; its case does not matter."""
    return "test" if zlib.crc32(word.lower().encode()) % TEST_SHARE == 0 else "train"


def invent(rng: random.Random, split: Split, reserved: frozenset[str], syllables: Sequence[str] = SYLLABLES) -> str:
    """Draw a capitalised word of two or three syllables that belongs to `split`.

    Ordinary words (`reserved`, in lower case) are never returned, so that a town is not called "Carbon".
    """
    while True:
        count = 2 if rng.random() < 0.7 else 3
        word = "".join([rng.choice(syllables) for _ in range(count)])
        if split_of(word) == split and word not in reserved:
            return word.capitalize()


class Names:
    """The names of one corpus. Every word is new, and many names share a word on purpose.

    Args:
        rng: Random generator.
        split: The split of the words to draw from.
        reserved: Ordinary words in lower case that must not be invented.
        stems: Number of words that several subjects share.
        syllables: Number of syllables from which words are made; None: all of them. With few the names are similar.
    """

    def __init__(
        self,
        rng: random.Random,
        split: Split,
        reserved: frozenset[str],
        stems: int,
        syllables: int | None = None,
    ) -> None:
        self._rng = rng
        self._split: Split = split
        self._reserved = reserved
        self._syllables = SYLLABLES if syllables is None else rng.sample(SYLLABLES, syllables)
        self._words: set[str] = set()
        self._names: set[str] = set()
        self._stems = [self.word() for _ in range(stems)]
        self._given = [self.word() for _ in range(4 + stems // 4)]

    def word(self) -> str:
        """Return a word that this corpus has not used yet."""
        while True:
            word = invent(self._rng, self._split, self._reserved, self._syllables)
            if word not in self._words:
                self._words.add(word)
                return word

    def words(self, count: int) -> list[str]:
        """Return `count` fresh words."""
        return [self.word() for _ in range(count)]

    def stem(self) -> str:
        """Return a word that the names of other subjects of the corpus probably contain, too."""
        return self._rng.choice(self._stems) if self._rng.random() < 0.75 else self.word()

    def unique(self, make: Callable[[], str]) -> str:
        """Call `make` until it returns a name that no other subject or pool value has."""
        while True:
            name = make()
            if name not in self._names:
                self._names.add(name)
                return name

    def person(self) -> str:
        """Return a given and a family name; other people have the same ones."""
        return self.unique(lambda: f"{self._rng.choice(self._given)} {self.stem()}")

    def town(self) -> str:
        """Return a town's name, sometimes a namesake such as "New Sarn" beside "Sarn"."""

        def make() -> str:
            chance = self._rng.random()
            if chance < 0.7:
                return self.stem()
            return f"{self._rng.choice(('New', 'Port', 'Upper', 'Old'))} {self.stem()}"

        return self.unique(make)

    def river(self) -> str:
        """Return a river's name, without its article."""
        return self.unique(lambda: f"River {self.stem()}")

    def mountain(self) -> str:
        """Return a mountain's name."""

        def make() -> str:
            stem = self.stem()
            return f"Mount {stem}" if self._rng.random() < 0.7 else f"{stem} Peak"

        return self.unique(make)

    def pattern(self, patterns: tuple[str, ...]) -> str:
        """Return a unique name made from one of `patterns`, whose "@" becomes a word."""

        def make() -> str:
            pattern = self._rng.choice(patterns)
            if "~" in pattern:  # a second word in lower case that looks like Latin
                pattern = pattern.replace("~", self.stem().lower())
            return pattern.replace("@", self.stem())

        return self.unique(make)
