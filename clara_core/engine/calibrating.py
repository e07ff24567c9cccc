"""Collects the data of a calibration: the signals of answers to questions with known answers, and their correctness."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
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

_BATCH = 16  # questions to answer together
_MAX_TOKENS = 64


def fit_calibration(
    engine: ClaraEngine, lines: Sequence[RetrievalLine], top_k: int, unanswerable: float, *, show_progress: bool
) -> Calibration:
    """Fit a calibration of every level that the answers have the signals of; see `ClaraEngine.calibrate`."""
    from tqdm.auto import tqdm

    asked = without_gold(lines, unanswerable)
    removed = sum(bool(before.pos_index) and not after.pos_index for before, after in zip(lines, asked, strict=True))
    judged: list[tuple[Signals, bool]] = []
    with tqdm(total=len(asked), desc="calibrating", unit="question", disable=not show_progress) as bar:
        for start in range(0, len(asked), _BATCH):
            some = asked[start : start + _BATCH]
            judged += _judge_answers(engine, some, top_k)
            bar.update(len(some))
    return Calibration(
        fingerprint=engine.fingerprint,
        levels=fit_levels([signals for signals, _ in judged], [right for _, right in judged]),
        questions=len(judged),
        unanswerable=(removed + sum(not line.references for line in lines)) / len(lines),
        documents=top_k,
        dtype=engine.arguments.dtype,
    )


def without_gold(lines: Sequence[RetrievalLine], share: float) -> list[RetrievalLine]:
    """Remove the gold documents of a share of the questions.

    These questions keep the accepted answers that another document contains; any other answer, such as "yes", would be
    right by chance.

    Args:
        lines: Questions; those without known gold documents stay as they are.
        share: Share of the questions, in [0, 1); the choice is the same in each call.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"unanswerable must be at least 0 and below 1, got {share:g}")
    possible = [at for at, line in enumerate(lines) if line.pos_index and len(line.docs) > len(line.pos_index)]
    chosen = set(random.Random(0).sample(possible, round(share * len(possible))))
    return [_unanswerable(line) if at in chosen else line for at, line in enumerate(lines)]


def _unanswerable(line: RetrievalLine) -> RetrievalLine:
    docs = tuple(text for at, text in enumerate(line.docs) if at not in line.pos_index)
    references = tuple(one for one in line.references if any(stands_in(one, text) for text in docs))
    return replace(line, docs=docs, references=references, pos_index=())


def _judge_answers(engine: ClaraEngine, lines: Sequence[RetrievalLine], top_k: int) -> list[tuple[Signals, bool]]:
    """Answer questions, each over its best ranked documents; returns signals, and whether the answer is right.

    An answer is right if it contains one of the accepted answers, word for word, ignoring case. Answers that are empty
    or were cut are left out, because they have no confidence in use either.
    """
    sampling, wanted = Sampling(max_tokens=_MAX_TOKENS, recorded=0), Wanted(citations=True)
    asked = []
    for line in lines:
        memories = engine.remember(line.docs)
        if engine.ranks:
            memories = [memories[hit.index] for hit in engine.rank(line.question, memories, top_k)]
        messages = [{"role": "user", "content": line.question}]
        asked.append(engine._ask(messages, memories[:top_k], sampling, wanted))  # noqa: SLF001 - a part of the engine
    answers = engine._wait([one.request for one in asked])  # noqa: SLF001
    work = [weigh(engine, one, answer, wanted) for one, answer in zip(asked, answers, strict=True)]
    weighed = engine._drive(together(work))  # noqa: SLF001
    return [
        (signals, any(stands_in(reference, reading.answer.text) for reference in line.references))
        for (reading, signals), line in zip(weighed, lines, strict=True)
        if signals is not None
    ]
