"""Tokenizes the lines of training sets into the steps of a phase."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from clara_core.common.errors import DataError
from clara_core.data.examples import CompressionLine, InstructionLine, Line, RetrievalLine
from clara_core.model.tokenizer import ANSWER_SYSTEM, PARAPHRASE_INSTRUCTION, PARAPHRASE_SYSTEM, ClaraTokenizer, Windows
from clara_core.training.batch import RowBatch, Step, row_batch
from clara_core.training.losses import IGNORE

SCP_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all key "
    "information of the document and answer them sequentially."
)
_SCP_USER = "Background:\n{docs}"
_TEMPLATE = 200  # positions
_EDGE = 2  # tokens by which a text may be longer among others than by itself
_ANSWER_USER = "Background:\n{docs}\n\nQuestion:"
_ALL_TEXT = 0.15  # share of the rows with text that read all of their documents as text
_SECOND_TEXT = 0.25  # share of the others that read the second document as text, too


def leading_texts(rng: random.Random, count: int) -> int:
    """How many of the documents of a row with text are read as text: the best ranked, sometimes the second or all.

    A generator that sees text anywhere among its memories does not learn to prefer it: docs/trust.md.
    """
    return count if rng.random() < _ALL_TEXT else min(count, 1 + (rng.random() < _SECOND_TEXT))


Overflow = Literal["split", "truncate"]


@dataclass(slots=True)
class _Documents:
    """The windows of the documents of a step."""

    tokenizer: ClaraTokenizer
    overflow: Overflow
    pieces: list[str] = field(default_factory=list)
    windows: list[range] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def add(self, text: str, *, once: bool) -> int:
        """Add a document and return its number; with `once`, a text that was added before keeps its number."""
        if once and text in self.known:
            return self.known[text]
        spans = self.tokenizer.windows(text) if self.overflow == "split" else [(0, len(text))]
        self.windows.append(range(len(self.pieces), len(self.pieces) + len(spans)))
        self.pieces += [text[start:end] for start, end in spans]
        return self.known.setdefault(text, len(self.windows) - 1) if once else len(self.windows) - 1

    def of(self, documents: Iterable[int]) -> tuple[int, ...]:
        """The windows of documents, in order."""
        return tuple(window for document in documents for window in self.windows[document])


@dataclass(frozen=True, slots=True)
class LineReader:
    """Tokenizes lines into steps.

    Attributes:
        tokenizer: Tokenizer of the checkpoint.
        context: Most positions of a prompt and its answer together.
        top_k: Windows that the generator reads for a line with candidates.
        overflow: "split" a document that is longer than a window into several, as the engine does, or "truncate" it,
            as the published code does.
        answers: Whether the generator is trained on the answers of lines with candidates.
        mixed: Share of the lines of stage 1_2 whose first documents are read as text.
    """

    tokenizer: ClaraTokenizer
    context: int
    top_k: int
    overflow: Overflow = "split"
    _: KW_ONLY
    answers: bool = True
    mixed: float = 0.0

    def step(self, lines: Sequence[Line], rng: random.Random | None = None) -> Step:
        """Make one step of lines of one stage.

        Args:
            lines: The lines.
            rng: Draws which documents are read as text; without one, none is.

        Raises:
            DataError: A prompt with its answer is longer than the context; the message names file and line.
        """
        documents = _Documents(self.tokenizer, self.overflow)
        rows: list[tuple[list[int], int]] = []
        read: list[tuple[int, ...]] = []
        retrieval = [line for line in lines if isinstance(line, RetrievalLine)]
        listed = [[documents.add(text, once=True) for text in line.docs] for line in retrieval]
        candidates = [tuple(dict.fromkeys(own)) for own in listed]
        if self.answers:
            pairs = zip(retrieval, candidates, strict=True)
            rows = [self._row(line, min(self.top_k, len(documents.of(numbers)))) for line, numbers in pairs]
        for line in lines:
            if not isinstance(line, RetrievalLine):
                as_text = self._drawn(line, rng)
                own = {at: documents.add(text, once=False) for at, text in enumerate(line.docs) if at not in as_text}
                read.append(documents.of(own.values()))
                layout: list[str | None] = []
                for at, text in enumerate(line.docs):
                    layout += [None] * len(documents.windows[own[at]]) if at in own else self._pieces(text)
                rows.append(self._row(line, layout))
        gold = [
            tuple(numbers[position] for position in line.pos_index)
            for line, numbers in zip(retrieval, listed, strict=True)
        ]
        return Step(
            sequences=self.tokenizer.encode_passages(documents.pieces),
            windows=documents.windows,
            questions=self.tokenizer.encode_passages([line.question for line in retrieval]),
            gold=gold,
            rows=self._batch(rows, read) if rows else None,
            candidates=candidates or None,
            places=tuple(line.where for line in lines),
        )

    def windows(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of the windows of documents."""
        documents = _Documents(self.tokenizer, self.overflow)
        for text in texts:
            documents.add(text, once=True)
        return self.tokenizer.encode_passages(documents.pieces)

    def check(self, line: Line) -> None:
        """Check that a line fits the context, without tokenizing it if its length in bytes suffices to tell.

        Raises:
            DataError: Prompt and answer together are too long; the message names file and line.
        """
        texts = _texts(line)
        slots = len(self.tokenizer.memory_ids) + 1
        # A token has at least one byte, and a chat template at most `_TEMPLATE` tokens.
        most = sum(len(text.encode()) for text in texts) + len(SCP_SYSTEM) + _TEMPLATE
        if isinstance(line, RetrievalLine):
            most += self.top_k * slots
        elif all(len(text.encode()) <= self.tokenizer.config.doc_max_length for text in line.docs):
            most += len(line.docs) * slots
        else:
            most = self.context + 1
        if most > self.context or self.mixed:
            self._check_longest(line, self.step([line]))

    def _check_longest(self, line: Line, step: Step) -> None:
        if not self.mixed or not isinstance(line, InstructionLine) or step.rows is None:
            return
        pieces = [piece for text in line.docs for piece in self._pieces(text)]
        slots = len(self.tokenizer.memory_ids)
        more = [max(0, self.tokenizer.count_plain(one) + _EDGE - slots) for one in pieces]
        longest = len(step.rows.ids[0]) + sum(more)
        if longest > self.context:
            raise DataError(
                f"{line.where}: with its documents as text (mixed), prompt and answer take {longest} positions, but "
                f"the context of the model is {self.context}: give fewer or shorter documents"
            )

    def _drawn(self, line: Line, rng: random.Random | None) -> set[int]:
        """Documents of a line that are read as text."""
        if rng is None or not self.mixed or not isinstance(line, InstructionLine) or rng.random() >= self.mixed:
            return set()
        return set(range(leading_texts(rng, len(line.docs))))

    def _pieces(self, text: str) -> list[str]:
        """A document as text, in pieces of a window."""
        spans = self.tokenizer.windows(text, first_only=self.overflow != "split")
        return [text[start:end] for start, end in spans]

    def _row(self, line: Line, n_windows: Windows) -> tuple[list[int], int]:
        """Ids of prompt and answer, and the position at which the answer begins."""
        if isinstance(line, CompressionLine):
            if line.kind == "qa":
                pairs = zip(line.questions, line.answers, strict=True)
                target = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
                row = self.tokenizer.taught(SCP_SYSTEM, _SCP_USER, n_windows, target)
            else:
                row = self.tokenizer.taught(PARAPHRASE_SYSTEM, PARAPHRASE_INSTRUCTION, n_windows, line.answers[0])
        else:
            row = self.tokenizer.taught(ANSWER_SYSTEM, _ANSWER_USER + line.question, n_windows, line.answer)
        ids, start = row
        if len(ids) > self.context:
            raise DataError(
                f"{line.where}: the prompt takes {start} positions ({_count(n_windows)}) and the answer "
                f"{len(ids) - start}, but the context of the model is {self.context}: shorten the answer or the "
                "documents, or give fewer documents"
            )
        return row

    def _batch(self, rows: list[tuple[list[int], int]], read: list[tuple[int, ...]]) -> RowBatch:
        ids = [row for row, _ in rows]
        labels = [[IGNORE] * start + row[start:] for row, start in rows]
        return row_batch(ids, labels, [self.tokenizer.is_slot(row) for row in ids], read)


def _count(windows: Windows) -> str:
    texts = 0 if isinstance(windows, int) else sum(text is not None for text in windows)
    memories = windows if isinstance(windows, int) else len(windows) - texts
    return f"{memories} windows of memory" + (f", {texts} of text" if texts else "")


def _texts(line: Line) -> list[str]:
    """The texts of a line's prompt and answer."""
    if isinstance(line, CompressionLine):
        return [*line.questions, *line.answers, *["Question: Answer: "] * len(line.answers)]
    return [line.question, line.answer]


@dataclass(slots=True)
class LineSteps:
    """The steps of a phase over lines; each depends only on the seed and its number.

    A step takes the next `batch` lines of an order that is shuffled for each epoch; the last step of an epoch may be
    smaller. Each process takes its share of them, in passes of at most `micro` lines.

    Attributes:
        lines: The training set.
        reader: Tokenizes the lines.
        seed: Seed of the order.
        batch: Lines of a step, over all processes.
        micro: Most lines of a pass.
        process: Rank of this process.
        processes: Number of processes.
    """

    lines: Sequence[Line]
    reader: LineReader
    _: KW_ONLY
    seed: int
    batch: int
    micro: int
    process: int = 0
    processes: int = 1
    _order: tuple[int, list[int]] = field(default=(-1, []), init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.lines) // self.batch)

    def __call__(self, number: int) -> list[Step]:
        """This process's passes of a step; empty if the batch is too small for all processes."""
        epoch, place = divmod(number, self.per_epoch)
        if self._order[0] != epoch:
            order = list(range(len(self.lines)))
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
            self._order = (epoch, order)
        batch = self._order[1][place * self.batch : (place + 1) * self.batch]
        rng = random.Random(f"{self.seed} mixed {number} {self.process}")
        return list(self.passes([self.lines[index] for index in batch[self.process :: self.processes]], rng))

    def passes(self, lines: Sequence[Line], rng: random.Random | None = None) -> Iterator[Step]:
        """Split lines into passes; `rng` as in `LineReader.step`."""
        for start in range(0, len(lines), self.micro):
            yield self.reader.step(lines[start : start + self.micro], rng)
