"""Tasks on the synthetic encyclopedia: its weights, a held-out corpus, rankings, documents for each question."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clara_core import ClaraEngine, Memory
from clara_core.evaluation import exact_match
from clara_core.retrieval.ranking import RERANK
from clara_core.store import MemoryStore
from tools.pocket_factory.world import RELATIONS, Question, make_corpus

SEED = 2024
DOCUMENTS = 5  # documents read for a question
MAX_TOKENS = 64


@dataclass(frozen=True)
class World:
    """Held-out passages and questions.

    Attributes:
        texts: Passages.
        single: Questions that one passage answers.
        double: Questions that need two passages.
    """

    texts: list[str]
    single: list[Question]
    double: list[Question]


def make_world(passages: int, seed: int = SEED) -> World:
    """A corpus with names of no training: a question for each passage, and one about two passages for every second."""
    corpus = make_corpus(
        random.Random(seed),
        passages,
        split="test",
        words=(20, 200),
        questions_per_passage=1,
        two_passage=0.5,
        layout=0.15,
    )
    single = [question for question in corpus.questions if len(question.gold) == 1]
    double = [question for question in corpus.questions if len(question.gold) == 2]
    return World([passage.text for passage in corpus.passages], single, double)


# --- retrieval -------------------------------------------------------------------------------------------


def memory_ranking(engine: ClaraEngine, questions: Sequence[Question], memories: Sequence[Memory]) -> list[list[int]]:
    """All passages in order of their cosine, for each question."""
    scores = engine.score([question.text for question in questions], memories)  # [questions, passages]
    ranking: list[list[int]] = scores.argsort(dim=1, descending=True, stable=True).tolist()
    return ranking


def bm25_ranking(questions: Sequence[Question], texts: Sequence[str]) -> list[list[int]]:
    """All passages in order of BM25 (words in lower case without English stop words), for each question."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), show_progress=False), show_progress=False)
    asked = bm25s.tokenize([question.text for question in questions], show_progress=False)
    found, _ = index.retrieve(asked, k=len(texts), show_progress=False, n_threads=1)  # [questions, passages]
    ranking: list[list[int]] = found.tolist()
    return ranking


def hybrid_ranking(
    engine: ClaraEngine, questions: Sequence[str], texts: Sequence[str], k: int | None = None
) -> list[list[int]]:
    """The best `k` passages, or all, as `clara ask` and the retrievers search: by memory and by words, ranked again."""
    store = MemoryStore.open("memory://", engine)
    store.add(texts, ids=[str(at) for at in range(len(texts))])
    return [[int(hit.id) for hit in store.search(q, k or len(texts), mode="hybrid", rerank=RERANK)] for q in questions]


def rerank(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], depth: int) -> list[list[int]]:
    """For each question the top `depth` of the first ranking, reordered by the second, then the rest of the first."""
    ranking = []
    for one, other in zip(first, second, strict=True):
        top = set(one[:depth])
        ranking.append([*(index for index in other if index in top), *one[depth:]])
    return ranking


# --- answering -------------------------------------------------------------------------------------------


def with_gold(
    questions: Sequence[Question], others: Sequence[Sequence[int]], seed: int = SEED, count: int = DOCUMENTS
) -> list[list[int]]:
    """Documents for each question: the gold ones and the best of the others, in random order."""
    rng = random.Random(seed)
    chosen = []
    for question, ranked in zip(questions, others, strict=True):
        wrong = [index for index in ranked if index not in question.gold]
        documents = [*question.gold, *wrong][:count]
        chosen.append(rng.sample(documents, len(documents)))
    return chosen


def best_first(documents: Sequence[Sequence[int]], rankings: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same documents as ranked by the engine, which is the order in which CLaRa's generator reads them."""
    ordered = []
    for few, ranking in zip(documents, rankings, strict=True):
        place = {index: rank for rank, index in enumerate(ranking)}
        ordered.append(sorted(few, key=place.__getitem__))
    return ordered


@dataclass(frozen=True)
class Reading:
    """Questions and their answers, each from its own documents."""

    questions: Sequence[Question]
    answers: list[str]

    def right(self) -> list[float]:
        """Exact match of each answer."""
        return [exact_match(said, q.answer) for q, said in zip(self.questions, self.answers, strict=True)]

    def by(self, key: Callable[[Question], str]) -> dict[str, float]:
        """Exact match of groups of questions."""
        return by(self.questions, self.right(), key)

    def wrong(self) -> list[dict[str, str]]:
        """All wrong answers."""
        return [
            {"kind": q.kind, "question": q.text, "right": q.answer, "answer": said}
            for q, said, right in zip(self.questions, self.answers, self.right(), strict=True)
            if not right
        ]


def read(
    engine: ClaraEngine,
    questions: Sequence[Question],
    memories: Sequence[Memory],
    documents: Sequence[Sequence[int]],
) -> Reading:
    """Greedy answers to questions, each from its own documents."""
    items = [(q.text, [memories[index] for index in few]) for q, few in zip(questions, documents, strict=True)]
    return Reading(questions, [answer.text for answer in engine.answer_batch(items, max_tokens=MAX_TOKENS)])


# --- groups ----------------------------------------------------------------------------------------------


def by(questions: Sequence[Question], values: Sequence[float], key: Callable[[Question], str]) -> dict[str, float]:
    """Mean of each group of questions, ordered by name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for question, value in zip(questions, values, strict=True):
        groups[key(question)].append(value)
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}


def family_of(question: Question) -> str:
    """Type of a question: pair, compare, same or bridge; "single" for a question about one passage."""
    return question.kind.partition(":")[0] if ":" in question.kind else "single"


def relation_of(question: Question) -> str:
    """The relation that a question asks for, preceded by its type if two passages are needed."""
    return question.kind


def value_of(question: Question) -> str:
    """The sort of value that a question about one passage asks for: a year, a person, a list, ..."""
    return RELATIONS[question.kind].draw.kind
