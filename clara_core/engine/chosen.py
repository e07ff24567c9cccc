"""The tokens that a pass has chosen, on their way from the device to the host.

A GPU need not wait until the host has read them: the next step takes them on the device, and the host reads them while
it runs. What the host finds out one step late is that an answer has ended; the step that it took beyond its end is
thrown away. Whether numbers were finite comes with the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_core.common.errors import ClaraError
from clara_core.engine.logprobs import Measured, measure
from clara_core.engine.requests import GenerateRequest
from clara_core.model.devices import download, upload
from clara_core.model.kv_memory import KVRow
from clara_core.model.sampler import draw, without_ends


@dataclass(eq=False, slots=True)
class Running:
    """An answer that has a place.

    Attributes:
        request: Whose it is.
        row: Its pages.
        turn: When it was admitted: who came last makes room.
        slot: Where its newest token lies on the device.
        read: Whether its prompt has been read.
        ahead: Tokens that were chosen, and that the host has not read.
        spoiled: Its numbers were not finite.
        gone: It has ended, and keeps its pages for the passes that are still under way.
    """

    request: GenerateRequest
    row: KVRow
    turn: int
    slot: int
    read: bool = False
    ahead: int = 0
    spoiled: bool = False
    gone: bool = False

    @property
    def prompt(self) -> int:
        """Positions to be read: the prompt, and what was written before the answer made room for another."""
        return len(self.request.ids) + len(self.request.sequence.ids)

    @property
    def written(self) -> int:
        """Tokens of the answer, those on their way counted."""
        return len(self.request.sequence.ids) + self.ahead


class Chosen:
    """One token a row of a pass; made without waiting for the device.

    Args:
        part: The rows.
        logits: ``[rows, vocab]``.
        queries: ``[rows, layers, heads, dim]`` that the tokens follow from, where attention is watched.

    Attributes:
        part: The rows.
        tokens: ``[rows]``, on the device.
        queries: As given.
    """

    def __init__(self, part: Sequence[Running], logits: Tensor, queries: Tensor | None = None) -> None:
        self.part = part
        self.queries = queries
        allowed = without_ends(logits, {row: one.request.sequence.barred(one.ahead) for row, one in enumerate(part)})
        best = allowed.max(-1)  # NaN counts as the largest, so that it shows
        self.tokens = _drawn(part, allowed, best.indices)
        numbers = torch.stack([self.tokens, best.values.isfinite().long()], dim=1)
        self._measured = measure(logits, [one.request.sequence.log for one in part], self.tokens)
        self._numbers = download(numbers)
        self._read: list[list[int]] = []
        self._recorded: dict[int, Measured] = {}
        self._arrived: torch.cuda.Event | None = None
        if logits.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(logits.device))

    def wait(self) -> None:
        """Until the host has the numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._read = self._numbers.tolist()
        self._recorded = self._measured.read()

    def finite(self, row: int) -> bool:
        """Whether the numbers of a row were; once they are there."""
        return bool(self._read[row][1])

    def token(self, row: int) -> tuple[int, Measured | None]:
        """The token of a row, and how probable it was, if that is recorded; once they are there."""
        return self._read[row][0], self._recorded.get(row)


def _drawn(part: Sequence[Running], logits: Tensor, best: Tensor) -> Tensor:
    """The next token of each row, ``[rows]``: the best one, or a drawn one where that is asked for."""
    draws = [
        (row, one)
        for row, running in enumerate(part)
        if (one := running.request.sequence.draw(running.ahead)) is not None
    ]
    if not draws:
        return best
    rows = upload([row for row, _ in draws], logits.device)
    return best.index_copy(0, rows, draw(logits.index_select(0, rows), [one for _, one in draws]))


def not_finite(what: str, dtype: torch.dtype) -> ClaraError:
    """The error of numbers that are none."""
    return ClaraError(
        f"the model gave {what} that are not finite in {dtype}: damaged weights, or numbers too large for the type; "
        "try dtype='bfloat16' or 'float32'"
    )
