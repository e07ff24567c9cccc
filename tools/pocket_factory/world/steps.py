"""Training data of the synthetic encyclopedia: a new corpus for each step, prepared before it is needed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.training.batch import RowBatch, Step, row_batch
from clara_core.training.losses import IGNORE
from tools.pocket_factory.world import Corpus, make_corpus
from tools.pocket_factory.world.rows import Row, build_batch, paraphrase_rows, question_rows
from tools.pocket_factory.world.stages import Stage

LAYOUT = 0.15  # share of passages with a heading and paragraphs, as in files


class WorldSteps:
    """The steps of a stage. A step depends only on the seed, the stage, its number and the process.

    Args:
        tokenizer: Tokenizer of the checkpoint; its base must have the role tokens of `base`.
        seed: Seed of the run.
        stage: The stage.
        process: Number of this process; each process generates its own corpora.
    """

    def __init__(self, tokenizer: ClaraTokenizer, seed: int, stage: Stage, process: int = 0) -> None:
        self.tokenizer = tokenizer
        self.stage = stage
        self.seed = f"{seed} {stage.name}" + (f" {process}" if process else "")

    def __call__(self, number: int) -> list[Step]:
        """Build one step."""
        stage = self.stage
        rng = random.Random(f"{self.seed} {number}")
        corpus = make_corpus(
            rng,
            stage.passages,
            words=stage.words,
            questions_per_passage=5,
            two_passage=stage.two_passage,
            layout=LAYOUT,
            kinds=stage.kinds,
            syllables=stage.syllables,
        )
        asked = rng.sample(corpus.questions, min(stage.asked, len(corpus.questions)))
        sequences, windows = self._windows(corpus)
        rows = retold = None
        if stage.name == "stage2":
            prompts = [self.tokenizer.answer_prompt(q.text, self.tokenizer.config.generation_top_k) for q in asked]
            rows = _single_rows(self.tokenizer, prompts, [q.answer for q in asked])
        elif stage.rows:
            rows = build_batch(self.tokenizer, corpus, self._rows(rng, corpus, stage, stage.rows), windows)
        if stage.name == "base":
            # The base decoder is trained as a language model, too: some rows have labels on every token.
            whole = self._rows(rng, corpus, stage, stage.paraphrases)
            retold = build_batch(self.tokenizer, corpus, whole, windows, whole=True)
        elif stage.paraphrases:
            again = paraphrase_rows(rng, corpus, stage.paraphrases, stage.verbatim, stage.documents)
            retold = build_batch(self.tokenizer, corpus, again, windows)
        questions = self.tokenizer.encode_passages([question.text for question in asked])
        gold = [question.gold for question in asked]
        return [Step(sequences, windows, questions, gold, rows, retold, places=(f"{self.seed} {number}",))]

    def _windows(self, corpus: Corpus) -> tuple[list[list[int]], list[range]]:
        """Split passages as the engine does: ids of all windows, and the windows of each passage."""
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
            mixed=stage.mixed,
        )


def _single_rows(tokenizer: ClaraTokenizer, prompts: list[list[int]], answers: list[str]) -> RowBatch:
    """Rows of one question each; the slots are filled later."""
    tails = tokenizer.encode_markup_batch([f"<|assistant|>{answer}</s>" for answer in answers])
    ids = [prompt + tail[1:] for prompt, tail in zip(prompts, tails, strict=True)]
    labels = [[IGNORE] * len(prompt) + row[len(prompt) :] for prompt, row in zip(prompts, ids, strict=True)]
    return row_batch(ids, labels, [tokenizer.is_slot(row) for row in ids], [])


def sample_texts(seed: int) -> Iterator[str]:
    """Text of the training split for the tokenizer."""
    for number in range(60):
        corpus = make_corpus(random.Random(f"{seed} tokenizer {number}"), 100, two_passage=0.5, layout=LAYOUT)
        for passage in corpus.passages:
            yield passage.text
        for question in corpus.questions:
            yield question.text
            yield question.answer
