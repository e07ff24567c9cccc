"""Fits the weights of `clara_core.engine.quoting.answerability` to passages that a search finds.

    python -m tools.pocket_factory.answerability pocket

The questions are those of typed passages that the hints were not fitted to, each among 150 of them, and of passages of
the invented encyclopedia. A linear model tells which of the best passages is the right one; it is first fitted without
each fifth of the typed questions, to tell how often it is right about others.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clara_core import ClaraEngine
from clara_core.engine.quoting.answerability import WEIGHTS, text_features
from clara_core.retrieval.ranking import RERANK
from clara_core.store import MemoryStore
from clara_core.store.search import DEFAULT_TEXT_WEIGHT
from tools.pocket_factory.typed import FOLDER, read_typed
from tools.pocket_factory.world import make_corpus

AMONG = 150  # typed passages of a corpus
WORLDS = 8  # corpora of the encyclopedia
WORLD = 250  # passages of each
PARTS = 5  # of the typed questions; each is left out once
FEWEST = 80  # questions of a sort with weights of its own
EPOCHS = 30
BATCH = 128
RATE = 0.01
PENALTY = 1e-4  # of the weights, three times as much of those of a sort
# Least weight of the share of names. The written passages hardly have a name that is part of another one, so what is
# fitted is too little for two places with one name; more costs nothing among the questions left out.
NAMES = 5.0
Asked = tuple[str, tuple[int, ...]]  # a question, and the numbers of its passages


@dataclass(frozen=True)
class Example:
    """What a search found for a question: its sort, ``[found, features]``, and which are right."""

    sort: str
    features: Tensor
    right: Tensor


def examples(engine: ClaraEngine, texts: Sequence[str], asked: Sequence[Asked]) -> Iterator[Example]:
    """The best passages for each question, as a search finds them."""
    store = MemoryStore.open("memory://", engine)
    store.add(texts, ids=[str(number) for number in range(len(texts))])
    questions = [question for question, _ in asked]
    found = store.search(questions, RERANK, mode="hybrid")
    by_memory, by_words = (
        [{hit.id: hit.relevance for hit in hits} for hits in store.search(questions, len(texts), mode=mode)]
        for mode in ("memory", "text")
    )
    for (question, own), hits, near, having in zip(asked, found, by_memory, by_words, strict=True):
        relevances = [(near[hit.id], having.get(hit.id, 0.0)) for hit in hits]
        sort, features = text_features(question, [hit.text for hit in hits], relevances)
        yield Example(sort, features.float(), torch.tensor([int(hit.id) in own for hit in hits]))


def typed_examples(engine: ClaraEngine, seed: int = 3) -> Iterator[Example]:
    """Examples of the typed passages that the hints were not fitted to."""
    passages = [one for folder in (FOLDER, FOLDER / "hints") for one in read_typed(folder, held=True)]
    random.Random(seed).shuffle(passages)
    for start in range(0, len(passages), AMONG):
        among = passages[start : start + AMONG]
        asked = [(question, (number,)) for number, one in enumerate(among) for question, _ in one.asked]
        yield from examples(engine, [one.text for one in among], asked)


def world_examples(engine: ClaraEngine, seed: int = 11) -> Iterator[Example]:
    """Examples of the encyclopedia, of its training's names."""
    for number in range(WORLDS):
        rng = random.Random(seed + number)
        made = make_corpus(rng, WORLD, split="train", words=(20, 200), questions_per_passage=2, layout=0.15)
        asked = [(one.text, one.gold) for one in made.questions if len(one.gold) == 1]
        yield from examples(engine, [one.text for one in made.passages], asked)


class Batch:
    """Examples side by side: ``[questions, found, features]``; the absent are masked."""

    def __init__(self, some: Sequence[Example], sorts: Sequence[str]) -> None:
        self.features = pad_sequence([one.features for one in some], batch_first=True)
        self.right = pad_sequence([one.right for one in some], batch_first=True)
        self.there = pad_sequence([torch.ones(len(one.right), dtype=torch.bool) for one in some], batch_first=True)
        self.sort = torch.tensor([sorts.index(one.sort) if one.sort in sorts else 0 for one in some])

    def scores(self, weights: Tensor) -> Tensor:
        """The score of each passage, by the weights ``[sorts, features]``."""
        found = (self.features * weights[self.sort][:, None]).sum(-1)
        return found.masked_fill(~self.there, float("-inf"))

    @property
    def fused(self) -> Tensor:
        """The score of each passage in the search."""
        by_memory, by_words = self.features[..., 0], self.features[..., 1]
        mean = (1 - DEFAULT_TEXT_WEIGHT) * by_memory + DEFAULT_TEXT_WEIGHT * by_words
        return mean.masked_fill(~self.there, float("-inf"))

    def loss(self, weights: Tensor) -> Tensor:
        """Mean negative log-probability of the right passages."""
        scores = self.scores(weights)
        return (scores.logsumexp(1) - scores.masked_fill(~self.right, float("-inf")).logsumexp(1)).mean()

    def first(self, scores: Tensor) -> float:
        """How often the best passage is right."""
        return float(self.right.gather(1, scores.argmax(1, keepdim=True)).float().mean())


def fit(some: Sequence[Example], sorts: Sequence[str]) -> Tensor:
    """Fit weights, ``[sorts, features]``; the features are scaled to a deviation of 1 meanwhile."""
    torch.manual_seed(0)
    kept = [one for one in some if bool(one.right.any())]
    random.Random(0).shuffle(kept)
    scale = torch.cat([one.features for one in kept]).std(0) + 1e-3
    batches = [Batch(kept[at : at + BATCH], sorts) for at in range(0, len(kept), BATCH)]
    plain = torch.zeros(len(scale), requires_grad=True)
    of_sort = torch.zeros(len(sorts), len(scale), requires_grad=True)
    optimizer = torch.optim.Adam([plain, of_sort], lr=RATE)
    for _ in range(EPOCHS):
        for batch in batches:
            loss = batch.loss((plain + of_sort) / scale) + PENALTY * (plain.abs().sum() + 3 * of_sort.abs().sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ((plain + of_sort) / scale).detach()


def with_names(weights: Tensor) -> Tensor:
    """The weights, ``[sorts, features]``, with at least `NAMES` for the last feature, the share of names."""
    return torch.cat([weights[:, :-1], weights[:, -1:].clamp(min=NAMES)], dim=1)


def main(
    model: Annotated[str, typer.Argument(help="The model that searches.")] = "pocket",
    out: Annotated[Path, typer.Option(help="The file of weights.")] = WEIGHTS,
) -> None:
    """Fit the weights and write them."""
    engine = ClaraEngine.from_pretrained(model)
    typed, world = list(typed_examples(engine)), list(world_examples(engine))
    counts = Counter(one.sort for one in typed + world)
    sorts = ["", *sorted(sort for sort, count in counts.items() if count >= FEWEST)]
    found = []
    for part in range(PARTS):
        start, end = (len(typed) * at // PARTS for at in (part, part + 1))
        batch = Batch(typed[start:end], sorts)
        shares = batch.scores(with_names(fit([*typed[:start], *typed[end:], *world], sorts))).softmax(1)
        found.append((batch.first(batch.fused), batch.first((batch.fused + shares) / 2)))
    before, after = (sum(column) / PARTS for column in zip(*found, strict=True))
    print(f"{len(typed)} typed questions left out: first {before:.3f} as found, {after:.3f} ranked again")
    rows = [[round(weight, 4) for weight in row] for row in with_names(fit(typed + world, sorts)).tolist()]
    lines = ",\n".join(f"{json.dumps(sort)}: {json.dumps(row)}" for sort, row in zip(sorts, rows, strict=True))
    out.write_text(f"{{\n{lines}\n}}\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
