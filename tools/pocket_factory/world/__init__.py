"""A synthetic encyclopedia in plain English, to train and test small models.

Its people, places, species, companies, works, events, buildings and inventions have invented names. The words of these
names are divided into a training split and a test split without common words. All functions depend only on the
`random.Random` that is passed in.
"""

from __future__ import annotations

from pathlib import Path

from .corpus import make_corpus
from .kinds import KINDS, RELATIONS, VOCABULARY
from .names import SYLLABLES, split_of
from .passages import paraphrase
from .types import Corpus, Fact, Passage, Question, Split

__all__ = [
    "ENCYCLOPEDIA",
    "KINDS",
    "RELATIONS",
    "SYLLABLES",
    "VOCABULARY",
    "Corpus",
    "Fact",
    "Passage",
    "Question",
    "Split",
    "make_corpus",
    "paraphrase",
    "split_of",
]

# Frozen weights that were trained on this encyclopedia; its tests, benchmarks and examples use them.
ENCYCLOPEDIA = str(Path(__file__).parents[3] / "tests" / "data" / "encyclopedia")
