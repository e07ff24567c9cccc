"""Compresses passages, paraphrases them from their memories alone, and compares the result with the passage."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara_core.common.errors import ContextOverflow
from clara_core.evaluation.text_overlap import entity_preservation, lost_entities, rouge

if TYPE_CHECKING:
    from clara_core.data.memory import Memory
    from clara_core.engine.engine import ClaraEngine

_LENGTH_RATIO = 1.5  # most tokens of a paraphrase per token of its passage, ...
_LEAST = 32  # ... but at least this many


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """A passage and its paraphrase.

    Attributes:
        passage: The passage.
        again: The paraphrase.
        rouge1: F measure of words.
        rouge2: F measure of pairs of words.
        rougeL: F measure of the longest common subsequence.
        entities: Share of the passage's names and numbers in the paraphrase; None if it has none.
        lost: Names and numbers that the paraphrase lacks.
    """

    passage: str
    again: str
    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815 - the measure's name
    entities: float | None
    lost: tuple[str, ...]


def paraphrase_passages(
    engine: ClaraEngine, passages: Sequence[str], batch: int, *, show_progress: bool = False
) -> list[Paraphrase]:
    """Paraphrase passages from their memories, `batch` at a time; passages that do not fit the context are left out.

    Raises:
        ImportError: rouge-score is not installed.
    """
    from tqdm.auto import tqdm

    def paraphrase(memory: Memory) -> str | None:
        try:
            limit = max(_LEAST, int(memory.source_tokens * _LENGTH_RATIO))
            return engine.paraphrase(memory, max_tokens=limit).text
        except ContextOverflow:
            return None

    memories = engine.remember(passages)
    with (
        ThreadPoolExecutor(batch) as pool,  # the engine batches concurrent calls
        tqdm(
            pool.map(paraphrase, memories),
            desc="paraphrasing",
            unit="passage",
            total=len(memories),
            disable=not show_progress or not memories,
        ) as progress,
    ):
        texts = list(progress)
    return [_measured(passage, text) for passage, text in zip(passages, texts, strict=True) if text is not None]


def _measured(passage: str, again: str) -> Paraphrase:
    kept, lost = entity_preservation(passage, again), tuple(lost_entities(passage, again))
    return Paraphrase(passage, again, **rouge(again, passage), entities=kept, lost=lost)
