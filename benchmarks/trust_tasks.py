"""Questions about the synthetic encyclopedia with known gold passages, including unanswerable ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.encyclopedia_tasks import DOCUMENTS, best_first, make_world, memory_ranking, with_gold
from clara_core import ClaraEngine
from clara_core.data.examples import RetrievalLine

CALIBRATED = 77  # seed of the corpus for fitting confidence; the benchmark uses another one


@dataclass(frozen=True)
class TrustSet:
    """Questions with candidates, best first: the gold passages and the hardest others, one more than an answer reads.

    Attributes:
        single: Questions about one passage.
        double: Questions about two passages.
        families: Type of each question about two passages: pair, compare, same or bridge.
    """

    single: list[RetrievalLine]
    double: list[RetrievalLine]
    families: list[str]


def make_lines(engine: ClaraEngine, passages: int, seed: int, questions: int | None = None) -> TrustSet:
    """Questions about a corpus of `passages` passages, all of which the engine ranks for each question."""
    world = make_world(passages, seed)
    memories = engine.compress(world.texts)
    made = []
    for asked in (world.single[:questions], world.double[:questions]):
        ranking = memory_ranking(engine, asked, memories)
        few = best_first(with_gold(asked, ranking, seed, DOCUMENTS + 1), ranking)
        made.append(
            [
                RetrievalLine(
                    question=question.text,
                    docs=tuple(world.texts[at] for at in chosen),
                    answer=question.answer,
                    references=(question.answer,),
                    pos_index=tuple(chosen.index(at) for at in question.gold),
                )
                for question, chosen in zip(asked, few, strict=True)
            ]
        )
    return TrustSet(made[0], made[1], [question.kind.partition(":")[0] for question in world.double[:questions]])


def answerable(lines: Sequence[RetrievalLine], *, shuffled: int | None = None) -> list[RetrievalLine]:
    """The candidates that are read, including all gold ones; best first, or in an order drawn by a seed."""
    rng = random.Random(shuffled)
    found = []
    for line in lines:
        last = max(at for at in range(len(line.docs)) if at not in line.pos_index)
        order = [at for at in range(len(line.docs)) if at != last]
        if shuffled is not None:
            rng.shuffle(order)
        gold = tuple(order.index(at) for at in line.pos_index)
        found.append(replace(line, docs=tuple(line.docs[at] for at in order), pos_index=gold))
    return found


def unanswerable(lines: Sequence[RetrievalLine]) -> list[RetrievalLine]:
    """The same questions over the hardest documents that do not answer them; no answer is right."""
    return [
        replace(
            line,
            docs=tuple(text for at, text in enumerate(line.docs) if at not in line.pos_index),
            pos_index=(),
            references=(),
        )
        for line in lines
    ]
