"""The input of one forward and backward pass as token ids and tensors; every source of data produces it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from clara_core.training.losses import IGNORE

if TYPE_CHECKING:
    from clara_core.training.distributed import Processes
    from clara_core.training.objective import Outcome

SPLIT_FROM = 8  # a batch of this many rows or more is split in two passes

# The unit over which each loss and each metric is averaged.
MEAN_OF = {
    "answer": "answer tokens",
    "accuracy": "answer tokens",
    "text": "retold tokens",
    "pointing": "answer tokens",
    "paraphrase": "retold tokens",
    "pointing again": "retold tokens",
    "again": "retold tokens",
    "alignment": "windows",
    "contrastive": "questions",
    "recall@1": "questions",
}
METRICS = {"accuracy", "again", "recall@1"}  # all others are losses


class Pointers(NamedTuple):
    """`RowBatch.sources` and `RowBatch.wanted`, one list a row."""

    sources: Sequence[Sequence[int]]
    wanted: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Prompts of the generator with their answers, as tensors.

    Attributes:
        ids: Token ids, one list a row.
        labels: ``[rows, length]``: the token at each position, or `IGNORE`.
        slots: Bool ``[rows, length]``: positions of memory tokens.
        windows: For each row the compressed windows that fill its slots, in order; empty if the query reasoner picks
            them.
        sources: ``[rows, length]``: the document of each slot as one bit, 0 elsewhere; None without pointing loss.
        wanted: ``[rows, length]``: the documents that a position's next token comes from, as bits; 0 for none.
    """

    ids: list[list[int]]
    labels: Tensor
    slots: Tensor
    windows: list[tuple[int, ...]]
    sources: Tensor | None = None
    wanted: Tensor | None = None

    @property
    def labelled(self) -> int:
        """Number of tokens with a loss."""
        return int((self.labels != IGNORE).sum())


@dataclass(frozen=True, slots=True)
class Step:
    """The input of one pass.

    Attributes:
        sequences: Token ids of the windows of all documents.
        windows: For each document the range of its windows in `sequences`.
        questions: Token ids of the questions for the query reasoner; may be empty.
        gold: For each question the documents that answer it; may be empty.
        rows: Prompts and answers of the generator.
        retold: Rows whose answers are paraphrases of the documents.
        candidates: For each question its candidate documents; None if all documents of the step are candidates.
        places: Origin of the data (``file:line``), for messages.
    """

    sequences: list[list[int]]
    windows: list[range]
    questions: list[list[int]]
    gold: list[tuple[int, ...]]
    rows: RowBatch | None = None
    retold: RowBatch | None = None
    candidates: list[tuple[int, ...]] | None = None
    places: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """The number of each unit of `MEAN_OF` in this step."""
        return {
            "answer tokens": 0 if self.rows is None else self.rows.labelled,
            "retold tokens": 0 if self.retold is None else self.retold.labelled,
            "windows": len(self.sequences),
            "questions": sum(map(bool, self.gold)),
        }


class BatchMeans:
    """Means of losses and metrics over all passes of a batch, in all processes.

    Args:
        passes: The passes of this process.
        processes: The processes of the run.
    """

    def __init__(self, passes: Sequence[Step], processes: Processes) -> None:
        self._processes = processes
        units = sorted(set(MEAN_OF.values()))
        counts = [step.counts for step in passes]
        own = torch.tensor([sum(one[unit] for one in counts) for unit in units], device=processes.device)
        self._totals = dict(zip(units, processes.sum(own).tolist(), strict=True))
        self._parts: dict[str, list[tuple[float | Tensor, float]]] = defaultdict(list)  # values with their weights

    def add(self, step: Step, outcome: Outcome) -> Tensor | None:
        """Add the outcome of a pass; returns its part of the loss of the batch, None if the pass has no loss."""
        counts = step.counts
        weights = {name: counts[unit] / max(self._totals[unit], 1) for name, unit in MEAN_OF.items()}
        for name, loss in outcome.losses.items():
            self._parts[name].append((loss.detach(), weights[name]))
        for name, metric in outcome.metrics.items():
            self._parts[name].append((metric, weights[name]))
        losses = [loss * weights[name] for name, loss in outcome.losses.items()]
        return torch.stack(losses).sum() if losses else None

    def result(self) -> dict[str, float]:
        """The means by name; all processes call this together, and some of them may lack a name."""
        sums = {name: sum(float(value) * weight for value, weight in parts) for name, parts in self._parts.items()}
        if self._processes.count == 1:
            return sums
        names = sorted({*sums, *self._processes.gather(list(sums))})
        values = torch.tensor([sums.get(name, 0.0) for name in names], device=self._processes.device)
        return dict(zip(names, self._processes.sum(values).tolist(), strict=True))


def row_batch(
    ids: list[list[int]],
    labels: Sequence[Sequence[int]],
    slots: Sequence[Sequence[bool]],
    windows: list[tuple[int, ...]],
    pointers: Pointers | None = None,
) -> RowBatch:
    """Pad rows to one batch, shortest first if `windows` is given, otherwise in the order of their questions."""
    order = list(range(len(ids)))
    if windows:
        order.sort(key=lambda index: len(ids[index]))

    def table(values: Sequence[Sequence[int]], padding: int) -> Tensor:
        length = max(map(len, ids))
        return torch.tensor([[*values[index], *[padding] * (length - len(values[index]))] for index in order])

    return RowBatch(
        [ids[index] for index in order],
        table(labels, IGNORE),
        table(slots, 0).bool(),
        [windows[index] for index in order] if windows else [],
        None if pointers is None else table(pointers.sources, 0),
        None if pointers is None else table(pointers.wanted, 0),
    )


def split_rows(batch: RowBatch) -> list[RowBatch]:
    """Split a batch, which is sorted by length, in two to save padding; a batch of few rows stays whole."""
    if len(batch.ids) < SPLIT_FROM:
        return [batch]
    middle = (len(batch.ids) * 3) // 5
    return [_part(batch, part) for part in (slice(0, middle), slice(middle, None))]


def _part(batch: RowBatch, part: slice) -> RowBatch:
    ids = batch.ids[part]
    length = max(map(len, ids))
    return RowBatch(
        ids,
        batch.labels[part, :length],
        batch.slots[part, :length],
        batch.windows[part],
        None if batch.sources is None else batch.sources[part, :length],
        None if batch.wanted is None else batch.wanted[part, :length],
    )
