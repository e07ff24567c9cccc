"""Training sets of the later stages, made from a set of stage 1 by searching candidate passages for each question.

    stage1_2.jsonl   the `top_k` best passages, for instruction tuning
    stage2.jsonl     all candidates, for the contrastive and the end-to-end stage
    evaluation.jsonl all candidates of the held-out questions

The gold passage is always among the candidates, at a random position. The report counts how often the search had
missed it, because in use nothing adds a missed passage.
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
    """Interface of the search for candidates: `MemoryStore`, `clara_core.retrieval.bm25.Bm25`, or your own object."""

    def search(self, question: str, k: int) -> Iterable[Any]:
        """At most `k` hits, best first: texts, or objects with a ``text`` (LangChain Documents, LlamaIndex nodes)."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """A question with its candidate passages.

    Attributes:
        question: Question.
        answer: Its answer.
        docs: Candidates, best first, including a gold passage.
        gold: The passages that answer the question.
        missed: Whether the search found no gold passage.
    """

    question: str
    answer: str
    docs: tuple[str, ...]
    gold: tuple[str, ...]
    missed: bool

    def is_gold(self, text: str) -> bool:
        """Whether a candidate is or contains a gold passage."""
        return any(passage in text for passage in self.gold)


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """Result of `end_to_end_sets`.

    Attributes:
        questions: Questions for which lines were written, including held-out ones.
        ambiguous: Questions that were left out because several passages answer them differently.
        missed: Questions for which the search did not find a gold passage.
        n_candidates: Candidates of a question.
        files: Files that were written.
    """

    questions: int
    ambiguous: int
    missed: int
    n_candidates: int
    files: tuple[Path, ...]

    @property
    def missed_rate(self) -> float:
        """Share of the questions for which the search did not find a gold passage."""
        return self.missed / self.questions if self.questions else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.questions} questions with candidates ({self.ambiguous} left out as ambiguous)",
            f"{self.missed} of them ({self.missed_rate:.1%}) whose gold passage the search missed; it was added",
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
    """Write the sets of the later stages beside ``stage1.jsonl``, and an evaluation set if ``held_out.jsonl`` exists.

    Args:
        folder: Output folder of `synthesize`, or any folder with a ``stage1.jsonl`` in the published layout.
        search: Finds candidates; None for BM25 over the passages of the folder.
        n_candidates: Candidates of a question; random passages are added if the search finds fewer.
        top_k: Passages of a line for instruction tuning.
        seed: Seed of the random passages and of the order of candidates.
        show_progress: Show a progress bar.

    Raises:
        ValueError: `top_k` or `n_candidates` is out of range.
        DataError: ``stage1.jsonl`` is missing or invalid, or a set cannot be written.
    """
    if not 1 <= top_k <= n_candidates:
        raise ValueError(f"top_k must lie between 1 and n_candidates, got {top_k} of {n_candidates}")
    from tqdm.auto import tqdm

    folder = Path(folder)
    train = list(_compression_lines(folder / STAGE1))
    held_out = list(_compression_lines(folder / HELD_OUT)) if (folder / HELD_OUT).exists() else []
    passages = list(dict.fromkeys(doc for line in (*train, *held_out) for doc in line.docs))
    finder = Bm25(passages) if search is None else search
    questions = _questions([*train, *held_out])
    clear = {words: entry for words, entry in questions.items() if entry is not None}
    total = tqdm(clear.values(), desc="candidates", unit="question", disable=not show_progress)
    found = dict(zip(clear, find_candidates(total, finder, passages, n_candidates, seed), strict=True))
    evaluated = {same_words(question) for line in held_out for question in line.questions}
    trained = [one for words, one in found.items() if words not in evaluated]
    files = [folder / INSTRUCTION, folder / RETRIEVAL]
    write_lines(files[0], (_instruction_line(one, top_k, seed) for one in trained))
    write_lines(files[1], (_retrieval_line(one, seed) for one in trained))
    (folder / EVALUATION).unlink(missing_ok=True)
    if held_out:
        files.append(folder / EVALUATION)
        write_lines(files[2], (_retrieval_line(one, seed) for words, one in found.items() if words in evaluated))
    missed = sum(one.missed for one in found.values())
    report = CandidateReport(len(found), len(questions) - len(clear), missed, n_candidates, tuple(files))
    if missed:
        log.warning(
            "the search missed the gold passage of %d of %d questions (%.1f %%) with %d candidates; it was added",
            missed,
            len(found),
            100 * report.missed_rate,
            n_candidates,
        )
    return report


def find_candidates(
    questions: Iterable[tuple[str, str, tuple[str, ...]]],
    search: Search,
    passages: Sequence[str],
    n_candidates: int,
    seed: int = 0,
) -> Iterator[Candidates]:
    """Candidates of each question: the hits of a search, a gold passage if it was missed, and random passages.

    Args:
        questions: Tuples of question, answer and gold passages.
        search: Finds candidates.
        passages: Passages to add if the search finds too few.
        n_candidates: Candidates of a question; there are fewer only if there are not enough passages.
        seed: Seed of the random passages.
    """
    for question, answer, gold in questions:
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
    # A draw may hold every candidate, so draw that many more.
    drawn = rng.sample(passages, min(len(passages), n + len(docs)))
    return [text for text in drawn if text not in docs][:n]


def _compression_lines(path: Path) -> Iterator[CompressionLine]:
    for line in read_lines(path, "stage1"):
        if isinstance(line, CompressionLine):
            yield line


def _questions(lines: Iterable[CompressionLine]) -> dict[str, tuple[str, str, tuple[str, ...]] | None]:
    """Question, answer and gold passages by the words of the question; None if passages answer differently."""
    found: dict[str, tuple[str, str, tuple[str, ...]] | None] = {}
    for line in lines:
        for question, answer in zip(line.questions, line.answers, strict=False):
            words = same_words(question)
            before = found.setdefault(words, (question, answer, line.docs))
            if before is not None and same_words(before[1]) == same_words(answer):
                found[words] = (*before[:2], tuple(dict.fromkeys((*before[2], *line.docs))))
            else:
                found[words] = None
    return found


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
    """Shuffle by the question alone, so that the position of the gold passage carries no information."""
    random.Random(f"{seed} {found.question}").shuffle(docs)
    return tuple(docs)
