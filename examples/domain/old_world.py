"""The world that the first weights know: what is rehearsed against forgetting, and what is measured of it.

A model that learns a new domain alone forgets what it knew. So the training sets of every stage hold lines of the old
world as well (replay): passages and questions of its training half. What is measured is its other half: names that no
training ever sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clara_core.data.jsonl import CompressionLine, InstructionLine, RetrievalLine, write_lines
from clara_core.evaluation import over_corpus
from clara_core.retrieval.bm25 import Bm25
from tools.pocket_factory.world import Corpus, make_corpus, paraphrase

COMPRESSION = "stage1.jsonl"
INSTRUCTION = "stage1_2.jsonl"
RETRIEVAL = "stage2.jsonl"
WORDS = (20, 200)  # of a passage, as in the model's own training and evaluation
ASKED = 8  # questions over each rehearsed passage: somewhat more lines than the new domain has
LAYOUT = 0.15  # share of passages with headings
MEASURED_SEED = 2024


def write_replay(folder: Path, passages: int, seed: int, n_candidates: int = 20, top_k: int = 5) -> None:
    """Write sets of the old world for every stage: ``stage1.jsonl``, ``stage1_2.jsonl`` and ``stage2.jsonl``.

    Args:
        folder: Where to.
        passages: How many.
        seed: Of the passages.
        n_candidates: Candidates of a question: the passages that answer it and those that share words with it.
        top_k: Passages of a line for instruction tuning: the first of the candidates, in any order.
    """
    rng = random.Random(f"replay {seed}")
    corpus = make_corpus(rng, passages, words=WORDS, layout=LAYOUT)
    retold = [CompressionLine("paraphrase", (), (paraphrase(rng, one),), (one.text,)) for one in corpus.passages]
    write_lines(folder / COMPRESSION, [*_lists(corpus), *retold])
    # The same passages, with more questions than a list should hold.
    rng = random.Random(f"replay {seed}")
    lines = _lines(make_corpus(rng, passages, words=WORDS, layout=LAYOUT, questions_per_passage=ASKED))
    search = Bm25(passage.text for passage in corpus.passages)
    asked = [_among(search, line, n_candidates) for line in lines]
    write_lines(folder / INSTRUCTION, (_instruction(rng, line, top_k) for line in asked))
    write_lines(folder / RETRIEVAL, asked)


def _lists(corpus: Corpus) -> Iterator[CompressionLine]:
    """For each passage the questions that it answers."""
    for index, passage in enumerate(corpus.passages):
        asked = [question for question in corpus.questions if question.gold == (index,)]
        texts, answers = tuple(one.text for one in asked), tuple(one.answer for one in asked)
        yield CompressionLine("qa", texts, answers, (passage.text,))


def _among(search: Bm25, line: RetrievalLine, n_candidates: int) -> RetrievalLine:
    """A question whose passages stand among others that share words with it."""
    found = [text for text in search.search(line.question, n_candidates) if text not in line.docs]
    return replace(line, docs=(*line.docs, *found)[:n_candidates])


def _instruction(rng: random.Random, line: RetrievalLine, top_k: int) -> InstructionLine:
    docs = line.docs[: max(top_k, len(line.pos_index))]
    return InstructionLine(line.question, tuple(rng.sample(docs, len(docs))), line.answer, line.references)


def held_out_lines(passages: int) -> tuple[list[RetrievalLine], list[RetrievalLine]]:
    """Questions over one passage and over two, each over all passages of a held-out corpus."""
    corpus = make_corpus(
        random.Random(MEASURED_SEED),
        passages,
        split="test",
        words=WORDS,
        questions_per_passage=1,
        two_passage=0.5,
        layout=LAYOUT,
    )
    lines = over_corpus(_lines(corpus))
    return [line for line in lines if len(line.pos_index) == 1], [line for line in lines if len(line.pos_index) > 1]


def _lines(corpus: Corpus) -> list[RetrievalLine]:
    texts = [passage.text for passage in corpus.passages]
    return [
        RetrievalLine(
            question.text,
            tuple(texts[index] for index in question.gold),
            question.answer,
            (question.answer,),
            tuple(range(len(question.gold))),
        )
        for question in corpus.questions
    ]
