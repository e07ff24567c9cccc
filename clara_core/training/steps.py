"""What the bundled model learns from: for each step a corpus that is made up anew, ready before it is needed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from clara_core.tokens import ClaraTokenizer
from clara_core.training.losses import IGNORE
from clara_core.training.rows import Row, RowBatch, build_batch, paraphrase_rows, question_rows
from clara_core.training.stages import CONFIG, Stage
from clara_core.training.world import Corpus, make_corpus

LAYOUT = 0.15  # share of passages with a heading and paragraphs, as in files


@dataclass(frozen=True, slots=True)
class Step:
    """What one step learns from, ready before it is needed.

    Attributes:
        sequences: Token ids of the windows of all passages.
        windows: For each passage which of them are its own.
        questions: Token ids of the questions for the query reasoner.
        gold: For each of them the passages that answer it.
        rows: What the generator answers.
        retold: What it says again.
    """

    sequences: list[list[int]]
    windows: list[range]
    questions: list[list[int]]
    gold: list[tuple[int, ...]]
    rows: RowBatch | None
    retold: RowBatch | None


class StepMaker:
    """Makes the steps of a run; each follows from the seed, the stage and the number alone.

    Args:
        tokenizer: The checkpoint's.
        seed: Of the run.
    """

    def __init__(self, tokenizer: ClaraTokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed

    def ahead(self, stage: Stage, first: int) -> Iterator[tuple[int, Step]]:
        """The steps of a stage from `first` on with their numbers, the next one made while one is learned from."""
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self.make, stage, first)
            for number in range(first, stage.steps):
                step = pending.result()
                if number + 1 < stage.steps:
                    pending = pool.submit(self.make, stage, number + 1)
                yield number, step

    def make(self, stage: Stage, number: int) -> Step:
        """One step, whole."""
        rng = random.Random(f"{self.seed} {stage.name} {number}")
        corpus = make_corpus(
            rng,
            stage.passages,
            words=stage.words,
            questions_per_passage=5,
            two_passage=stage.two_passage,
            layout=LAYOUT,
        )
        asked = rng.sample(corpus.questions, min(stage.asked, len(corpus.questions)))
        sequences, windows = self._windows(corpus)
        rows = retold = None
        if stage.name == "stage2":
            prompts = [self.tokenizer.answer_prompt(q.text, CONFIG.generation_top_k) for q in asked]
            rows = _single_rows(self.tokenizer, prompts, [q.answer for q in asked])
        elif stage.rows:
            rows = build_batch(self.tokenizer, corpus, self._rows(rng, corpus, stage, stage.rows), windows)
        if stage.name == "base":
            # The base reads like any language model: part of its rows teach every token.
            whole = self._rows(rng, corpus, stage, stage.paraphrases)
            retold = build_batch(self.tokenizer, corpus, whole, windows, whole=True)
        elif stage.paraphrases:
            again = paraphrase_rows(rng, corpus, stage.paraphrases, stage.verbatim, stage.documents)
            retold = build_batch(self.tokenizer, corpus, again, windows)
        return Step(
            sequences=sequences,
            windows=windows,
            questions=self.tokenizer.encode_passages([question.text for question in asked]),
            gold=[question.gold for question in asked],
            rows=rows,
            retold=retold,
        )

    def _windows(self, corpus: Corpus) -> tuple[list[list[int]], list[range]]:
        """Passages cut as the engine cuts them: ids of all windows, and which belong to each passage."""
        pieces: list[str] = []
        windows = []
        for passage in corpus.passages:
            spans = self.tokenizer.windows(passage.text)
            windows.append(range(len(pieces), len(pieces) + len(spans)))
            pieces += [passage.text[start:end] for start, end in spans]
        return self.tokenizer.encode_passages(pieces), windows

    @staticmethod
    def _rows(rng: random.Random, corpus: Corpus, stage: Stage, n_rows: int) -> list[Row]:
        return question_rows(
            rng,
            corpus,
            n_rows=n_rows,
            n_documents=stage.documents,
            n_questions=stage.questions,
            pairs=stage.pairs,
            shuffled=stage.shuffled,
            text=stage.name == "base",
        )


def _single_rows(tokenizer: ClaraTokenizer, prompts: list[list[int]], answers: list[str]) -> RowBatch:
    """One question a row, every slot filled later."""
    tails = tokenizer.encode_markup_batch([f"<|assistant|>{answer}</s>" for answer in answers])
    ids = [prompt + tail[1:] for prompt, tail in zip(prompts, tails, strict=True)]
    length = max(map(len, ids))
    labels = torch.full((len(ids), length), IGNORE)
    slots = torch.zeros((len(ids), length), dtype=torch.bool)
    for index, (prompt, row) in enumerate(zip(prompts, ids, strict=True)):
        labels[index, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
        slots[index, : len(row)] = torch.tensor(tokenizer.is_slot(row))
    return RowBatch(ids, labels, slots, [])


def sample_texts(seed: int) -> Iterator[str]:
    """Text of the training world for the tokenizer."""
    for number in range(60):
        corpus = make_corpus(random.Random(f"{seed} tokenizer {number}"), 100, two_passage=0.5, layout=LAYOUT)
        for passage in corpus.passages:
            yield passage.text
        for question in corpus.questions:
            yield question.text
            yield question.answer
