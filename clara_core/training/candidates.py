"""Sets of the later stages from a set of stage 1: each question over the passages that a search finds for it.

    stage1_2.jsonl   the `top_k` best passages, for instruction tuning
    stage2.jsonl     all candidates, for the contrastive and the end-to-end stage
    evaluation.jsonl the same for the questions that were held out

The passage that a question was written about is always among them, at a place that says nothing; how often the search
had missed it is measured and told, since that is what a model trained on these lines will not meet in use.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from clara_core.data.jsonl import CompressionLine, InstructionLine, RetrievalLine, read_lines, write_lines
from clara_core.data.llm import text_of
from clara_core.retrieval.bm25 import Bm25
from clara_core.training.synthesis import HELD_OUT, STAGE1
from clara_core.training.synthesis_replies import same_words

__all__ = ["CandidateReport", "Candidates", "Search", "end_to_end_sets", "find_candidates"]

log = logging.getLogger(__name__)

INSTRUCTION: Final = "stage1_2.jsonl"
RETRIEVAL: Final = "stage2.jsonl"
EVALUATION: Final = "evaluation.jsonl"


class Search(Protocol):
    """What finds candidates: `MemoryStore`, `clara_core.retrieval.bm25.Bm25`, or an object of your own."""

    def search(self, question: str, k: int) -> Iterable[Any]:
        """At most `k` hits, best first: texts, or objects with one (``text``, a LangChain Document, a node)."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """A question with what was found for it.

    Attributes:
        question: Question.
        answer: Its answer.
        docs: Candidates, best first, gold ones among them.
        gold: The passages that answer it.
        missed: Whether the search had found no gold passage.
    """

    question: str
    answer: str
    docs: tuple[str, ...]
    gold: tuple[str, ...]
    missed: bool

    def is_gold(self, text: str) -> bool:
        """Whether a candidate answers the question: a gold passage, or a document that holds one."""
        return any(passage in text for passage in self.gold)


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """What came of making sets.

    Attributes:
        questions: Questions that lines were written for, held out ones included.
        ambiguous: Questions that were left out because several passages answer them differently.
        missed: Questions for which the search had not found the gold passage.
        n_candidates: Among how many candidates.
        files: What was written.
    """

    questions: int
    ambiguous: int
    missed: int
    n_candidates: int
    files: tuple[Path, ...]

    @property
    def missed_rate(self) -> float:
        """Share of the questions for which the gold passage was missing."""
        return self.missed / self.questions if self.questions else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.questions} questions with candidates ({self.ambiguous} left out as ambiguous)",
            f"{self.missed} of them ({self.missed_rate:.1%}) whose gold passage the search had missed and was put in",
        ]
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


def end_to_end_sets(
    folder: str | Path,
    search: Search | None = None,
    *,
    n_candidates: int = 20,
    top_k: int = 5,
    seed: int = 0,
    show_progress: bool = False,
) -> CandidateReport:
    """Make the sets of the later stages beside ``stage1.jsonl``, and one of ``held_out.jsonl`` where it is there.

    Args:
        folder: Where `synthesize` wrote; any ``stage1.jsonl`` in the published layout will do.
        search: Finds candidates; None for BM25 over the passages of the folder.
        n_candidates: Candidates of a question, filled up with other passages where the search finds fewer.
        top_k: Passages of a line for instruction tuning.
        seed: Of the order of candidates and of what fills them up.
        show_progress: Show a bar.

    Raises:
        DataError: ``stage1.jsonl`` is not there or not right, or a set cannot be written.
    """
    if not 1 <= top_k <= n_candidates:
        raise ValueError(f"top_k must lie between 1 and n_candidates, got {top_k} of {n_candidates}")
    from tqdm.auto import tqdm

    folder = Path(folder)
    train = list(_compression_lines(folder / STAGE1))
    apart = list(_compression_lines(folder / HELD_OUT)) if (folder / HELD_OUT).exists() else []
    passages = list(dict.fromkeys(doc for line in (*train, *apart) for doc in line.docs))
    finder = Bm25(passages) if search is None else search
    asked = _questions([*train, *apart])
    clear = {words: entry for words, entry in asked.items() if entry is not None}
    total = tqdm(clear.values(), desc="candidates", unit="question", disable=not show_progress)
    found = dict(zip(clear, find_candidates(total, finder, passages, n_candidates, seed), strict=True))
    held_out = {same_words(question) for line in apart for question in line.questions}
    learned = [one for words, one in found.items() if words not in held_out]
    files = [folder / INSTRUCTION, folder / RETRIEVAL]
    write_lines(files[0], (_instruction_line(one, top_k, seed) for one in learned))
    write_lines(files[1], (_retrieval_line(one, seed) for one in learned))
    (folder / EVALUATION).unlink(missing_ok=True)
    if apart:
        files.append(folder / EVALUATION)
        write_lines(files[2], (_retrieval_line(one, seed) for words, one in found.items() if words in held_out))
    missed = sum(one.missed for one in found.values())
    report = CandidateReport(len(found), len(asked) - len(clear), missed, n_candidates, tuple(files))
    if missed:
        log.warning(
            "in %d of %d questions (%.1f %%) the gold passage was not among the %d candidates found; it was put in",
            missed,
            len(found),
            100 * report.missed_rate,
            n_candidates,
        )
    return report


def find_candidates(
    asked: Iterable[tuple[str, str, tuple[str, ...]]],
    search: Search,
    passages: Sequence[str],
    n_candidates: int,
    seed: int = 0,
) -> Iterator[Candidates]:
    """For each question what a search finds, with a gold passage among it and filled up to `n_candidates`.

    Args:
        asked: Question, answer and gold passages.
        search: Finds candidates.
        passages: What they are filled up from.
        n_candidates: How many there are to be; fewer only where there are not so many passages.
        seed: Of what fills them up.
    """
    for question, answer, gold in asked:
        hits = dict.fromkeys(text for hit in search.search(question, n_candidates) if (text := text_of(hit)).strip())
        docs = list(hits)[:n_candidates]
        missed = not any(passage in text for text in docs for passage in gold)
        if missed:
            docs[n_candidates - 1 :] = [gold[0]]
        docs += _others(docs, passages, n_candidates - len(docs), random.Random(f"{seed} {question}"))
        yield Candidates(question, answer, tuple(docs), gold, missed)


def _others(docs: list[str], passages: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """Passages that are not among the candidates yet, drawn at random."""
    if n <= 0:
        return []
    # Enough to choose from even if every candidate is drawn.
    drawn = rng.sample(passages, min(len(passages), n + len(docs)))
    return [text for text in drawn if text not in docs][:n]


def _compression_lines(path: Path) -> Iterator[CompressionLine]:
    for line in read_lines(path, "stage1"):
        if isinstance(line, CompressionLine):
            yield line


def _questions(lines: Iterable[CompressionLine]) -> dict[str, tuple[str, str, tuple[str, ...]] | None]:
    """Question, answer and gold passages by the words of the question; None where passages answer differently."""
    asked: dict[str, tuple[str, str, tuple[str, ...]] | None] = {}
    for line in lines:
        for question, answer in zip(line.questions, line.answers, strict=False):
            words = same_words(question)
            before = asked.setdefault(words, (question, answer, line.docs))
            if before is not None and same_words(before[1]) == same_words(answer):
                asked[words] = (*before[:2], tuple(dict.fromkeys((*before[2], *line.docs))))
            else:
                asked[words] = None
    return asked


def _instruction_line(found: Candidates, top_k: int, seed: int) -> InstructionLine:
    best = list(found.docs[:top_k])
    if not any(map(found.is_gold, best)):
        best[-1] = next(filter(found.is_gold, found.docs))
    return InstructionLine(found.question, _shuffled(best, found, seed), found.answer, (found.answer,))


def _retrieval_line(found: Candidates, seed: int) -> RetrievalLine:
    docs = _shuffled(list(found.docs), found, seed)
    gold = tuple(number for number, text in enumerate(docs) if found.is_gold(text))
    return RetrievalLine(found.question, docs, found.answer, (found.answer,), gold)


def _shuffled(docs: list[str], found: Candidates, seed: int) -> tuple[str, ...]:
    """In an order that follows from the question alone, so that the place of the gold passage says nothing."""
    random.Random(f"{seed} {found.question}").shuffle(docs)
    return tuple(docs)
