"""What a passage is after a round trip: compressed, and said again from its memory alone."""

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

_ROOM = 1.5  # a paraphrase may take this many times the tokens of its passage, ...
_LEAST = 32  # ... or so many


@dataclass(frozen=True, slots=True)
class Paraphrase:
    """A passage that was said again.

    Attributes:
        passage: The passage.
        again: What the model said.
        rouge1: F measure of the words.
        rouge2: F measure of the pairs of words.
        rougeL: F measure of the longest common run.
        entities: Share of its names and numbers that were said; None where it has none.
        lost: Those that were not.
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
    """Say passages again from their memories, `batch` at a time; those that do not fit the context are left out.

    Raises:
        ImportError: rouge-score is not installed.
    """
    from tqdm.auto import tqdm

    def again(memory: Memory) -> str | None:
        room = max(_LEAST, int(memory.source_tokens * _ROOM))
        try:
            return engine.paraphrase(memory, max_tokens=room).text
        except ContextOverflow:
            return None

    memories = engine.remember(passages)
    with (
        ThreadPoolExecutor(batch) as pool,  # the engine's worker writes together what is asked for together
        tqdm(
            pool.map(again, memories),
            desc="paraphrasing",
            unit="passage",
            total=len(memories),
            disable=not show_progress or not memories,
        ) as under_way,
    ):
        said = list(under_way)
    return [_measured(passage, text) for passage, text in zip(passages, said, strict=True) if text is not None]


def _measured(passage: str, again: str) -> Paraphrase:
    kept, lost = entity_preservation(passage, again), tuple(lost_entities(passage, again))
    return Paraphrase(passage, again, **rouge(again, passage), entities=kept, lost=lost)
