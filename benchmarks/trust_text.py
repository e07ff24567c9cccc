"""Text beside memories: the rows of `benchmarks.trust` for adapters that were taught to read it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.encyclopedia_tasks import MAX_TOKENS
from benchmarks.report import Row
from clara_core import ClaraEngine
from clara_core.data.examples import RetrievalLine
from clara_core.evaluation import exact_match
from tools.pocket_factory.world import ENCYCLOPEDIA

# Adapters after the lesson `stage1_2_mixed`, and their config.json.
TAUGHT = Path(ENCYCLOPEDIA).with_name("encyclopedia_text")


def taught(folder: Path) -> str:
    """The checkpoint of the encyclopedia with these adapters, in a new folder."""
    shutil.copytree(ENCYCLOPEDIA, folder, ignore=shutil.ignore_patterns("calibration.json", "README.md"))
    shutil.copytree(TAUGHT, folder, dirs_exist_ok=True)
    return str(folder)


def text_rows(lines: Sequence[RetrievalLine], untaught: float) -> list[Row]:
    """Row 13 for questions with their documents, best ranked first.

    Args:
        lines: The questions.
        untaught: Exact match of the weights before the lesson, from the memories.
    """
    alone = own_passages(lines)
    with TemporaryDirectory() as folder:
        engine = ClaraEngine.from_pretrained(taught(Path(folder) / "checkpoint"))
        five, one, words, memories = (
            exact_share(engine, *asked)
            for asked in ((lines, True, False), (alone, True, False), (lines, True, True), (lines, False, False))
        )
        engine.unload()
    return [
        Row("13 exact match, best document as text among five", f"{five:.3f}", "", five, 0.95),
        Row("13 the same in words of a document", f"{words:.3f}", "", words, 0.95),
        Row("13 right document alone, as text", f"{one:.3f}", "", one, 0.95),
        Row("13 memories alone", f"{memories:.3f}", f"before {untaught:.3f}", memories, untaught),
    ]


def own_passages(lines: Sequence[RetrievalLine]) -> list[RetrievalLine]:
    """The same questions, each with the right passage alone."""
    return [replace(line, docs=(line.docs[line.pos_index[0]],), pos_index=(0,)) for line in lines]


def exact_share(engine: ClaraEngine, lines: Sequence[RetrievalLine], text: bool, verbatim: bool) -> float:
    """Share of right answers, with the first document as text or as memory like the others."""
    items = [(line.question, engine.remember(line.docs)) for line in lines]
    answers = engine.answer_batch(items, max_tokens=MAX_TOKENS, as_text=[0] if text else (), verbatim=verbatim)
    return sum(exact_match(said.text, line.answer) for said, line in zip(answers, lines, strict=True)) / len(lines)
