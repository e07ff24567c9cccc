"""A procedurally generated encyclopedia in plain English, to train and to test small models.

Its people, places, species, companies, works, events, buildings and inventions have invented names;
the words of the names fall into a training and a test split that have none in common. Everything is
deterministic in the `random.Random` that is passed in.
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

# Weights that know this world and do not change: tests, benchmarks and examples of it ask them.
ENCYCLOPEDIA = str(Path(__file__).parents[3] / "tests" / "data" / "encyclopedia")
