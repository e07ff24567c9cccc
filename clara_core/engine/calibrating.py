"""Fitting a calibration: questions with known answers are asked, and what is known of each answer is compared with
whether it was right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clara_core.data.examples import RetrievalLine
from clara_core.engine.answer_options import Wanted
from clara_core.engine.calibration import Calibration, Signals, fit_levels
from clara_core.engine.examining import weigh
from clara_core.engine.quotes import stands_in
from clara_core.engine.sampling import Sampling
from clara_core.engine.steps import together

if TYPE_CHECKING:
    from clara_core.engine.engine import ClaraEngine

_BATCH = 16  # questions that are asked together
_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer whose truth is known.

    Attributes:
        signals: What is known of it without knowing that.
        right: Whether one of the accepted answers stands in it, word for word but for the case.
    """

    signals: Signals
    right: bool


def without_gold(lines: Sequence[RetrievalLine], share: float, seed: int = 0) -> list[RetrievalLine]:
    """The same questions, a share of them without the documents that answer them.

    Of their accepted answers those stay that another document says: any other would be right by chance, as "yes" is.

    Args:
        lines: Those that say which document answers them, and others (which stay as they are).
        share: In [0, 1).
        seed: Of the choice.

    Raises:
        ValueError: The share is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"unanswerable must be at least 0 and below 1, got {share:g}")
    possible = [at for at, line in enumerate(lines) if line.pos_index and len(line.docs) > len(line.pos_index)]
    chosen = set(random.Random(seed).sample(possible, round(share * len(possible))))
    return [_unanswerable(line) if at in chosen else line for at, line in enumerate(lines)]


def _unanswerable(line: RetrievalLine) -> RetrievalLine:
    docs = tuple(text for at, text in enumerate(line.docs) if at not in line.pos_index)
    references = tuple(one for one in line.references if any(stands_in(one, text) for text in docs))
    return replace(line, docs=docs, references=references, pos_index=())


def judge_answers(engine: ClaraEngine, lines: Sequence[RetrievalLine], top_k: int) -> Iterator[list[Judged]]:
    """Ask questions, each over the best ranked of its documents; yields what came of each batch of lines.

    Answers that are empty or were cut are left out: nothing is said of them in use either.
    """
    for start in range(0, len(lines), _BATCH):
        some = lines[start : start + _BATCH]
        sampling, wanted = Sampling(max_tokens=_MAX_TOKENS, recorded=0), Wanted(citations=True)
        asked = []
        for line in some:
            memories = engine.remember(line.docs)
            if engine.ranks:
                memories = [memories[hit.index] for hit in engine.rank(line.question, memories, top_k)]
            messages = [{"role": "user", "content": line.question}]
            asked.append(engine._ask(messages, memories[:top_k], sampling, wanted))  # noqa: SLF001 - a part of it
        answers = engine._wait([one.request for one in asked])  # noqa: SLF001
        work = [weigh(engine, one, answer, wanted) for one, answer in zip(asked, answers, strict=True)]
        weighed = engine._drive(together(work))  # noqa: SLF001
        yield [
            Judged(signals, any(stands_in(reference, reading.answer.text) for reference in line.references))
            for (reading, signals), line in zip(weighed, some, strict=True)
            if signals is not None
        ]


def fit_calibration(engine: ClaraEngine, judged: Sequence[Judged], unanswerable: float, documents: int) -> Calibration:
    """A calibration of every level that the answers have the signals of.

    Args:
        engine: Whose answers they are.
        judged: Answers whose truth is known.
        unanswerable: Share of the questions that no document answered.
        documents: Most documents of a question.

    Raises:
        ValueError: Too few answers, or nearly all of them right, or wrong.
    """
    return Calibration(
        fingerprint=engine.fingerprint,
        levels=fit_levels([one.signals for one in judged], [one.right for one in judged]),
        questions=len(judged),
        unanswerable=unanswerable,
        documents=documents,
        dtype=engine.arguments.dtype,
    )
