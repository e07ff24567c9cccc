"""The answers of a pass: the prompts that it reads, the tokens that it chooses, and their transfer to the host.

A GPU does not wait for the host: the next step takes the tokens on the device, and the host reads them while that step
runs. So the host learns one step late that an answer has ended, and discards the token of the extra step. The transfer
also tells whether the logits were finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_core.common.errors import ClaraError
from clara_core.engine.logprobs import Measured, measure
from clara_core.engine.requests import GenerateRequest
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import download, upload
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory, KVRow
from clara_core.model.paid_attention import paid_attention
from clara_core.model.sampler import draw, only, without_ends


@dataclass(eq=False, slots=True)
class Running:
    """An answer with pages in the KV cache."""

    request: GenerateRequest
    row: KVRow
    turn: int  # number of its admission; the answer that was admitted last is preempted first
    slot: int  # index of its newest token in the tensor of newest tokens on the device
    read: bool = False  # whether its prompt has been read
    ahead: int = 0  # number of tokens that were chosen and that the host has not read yet
    spoiled: bool = False  # whether its logits were not finite
    gone: bool = False  # whether it has ended; it keeps its pages until the passes that still write to them have ended

    @property
    def prompt(self) -> int:
        """Positions to prefill: the prompt, and the tokens that were generated before the answer was preempted."""
        return len(self.request.ids) + len(self.request.sequence.ids)

    @property
    def written(self) -> int:
        """Tokens of the answer, including those that the host has not read yet."""
        return len(self.request.sequence.ids) + self.ahead

    @property
    def ended(self) -> bool:
        """Whether it has reached its largest length, including tokens that the host has not read."""
        return self.written >= self.request.sequence.limit

    def measure_attention(self, memory: KVMemory) -> None:
        """Compute what a finished answer attended to; call it before its keys are freed."""
        request = self.request
        queries, request.queries = request.queries[: len(request.sequence.ids)], []
        if request.sequence.finish_reason is not None and queries:
            request.paid = paid_attention(memory, self.row, torch.stack(queries), request.watched, len(request.ids))

    def keep_head(self, memory: KVMemory) -> None:
        """Keep the head of a finished answer that will be judged; call it before its keys are freed."""
        request = self.request
        if request.judged_head and request.sequence.finish_reason is not None:
            request.kept = memory.keep(self.row, request.judged_head)


def choose_prompts(running: Sequence[Running], budget: int, long_next: bool, *, packed: bool) -> list[Running]:
    """Choose the prompts of one pass, in the order of admission: short ones of one role, or one long one.

    Args:
        running: Admitted answers.
        budget: Positions of a pass, including padding; a prompt with more is long and takes several passes.
        long_next: Whether the long prompt is chosen if both kinds wait.
        packed: Whether rows are packed, so that nothing is padded.
    """
    waiting = sorted((one for one in running if not one.read), key=lambda one: one.turn)
    long = [one for one in waiting if one.prompt > budget]
    short = [one for one in waiting if one.prompt <= budget]
    if long and (long_next or not short):
        return long[:1]
    batch: list[Running] = []
    longest = total = 0
    for one in short:
        if batch and one.request.role is not batch[0].request.role:
            continue
        longest, total = max(longest, one.prompt), total + one.prompt
        if batch and (total if packed else longest * (len(batch) + 1)) > budget:
            break
        batch.append(one)
    return batch


def read_prompts(
    model: ClaraModel, part: Sequence[Running], cache: KVCache, budget: int, pause: Callable[[], None]
) -> Tensor | None:
    """Read prompts: logits of the next token ``[rows, vocab]``; None if the rest of a long prompt follows.

    Args:
        model: The model.
        part: Result of `choose_prompts`, or a part of it.
        cache: Rows of the prompts.
        budget: Positions of a piece of a long prompt.
        pause: Called between layers.
    """
    requests = [one.request for one in part]
    # The prompt of an answer that was preempted includes the tokens that were generated before.
    sequences = [request.ids + request.sequence.ids for request in requests]
    if part[0].prompt <= budget:
        memories = _filled(model, [request.memories for request in requests])
        return model.prefill(sequences, memories, [request.slots for request in requests], cache, pause=pause)
    [one], [ids] = part, sequences
    start, end = one.row.length, one.row.length + budget
    slots = [*one.request.slots, *[False] * (len(ids) - len(one.request.slots))]
    first = sum(slots[:start])
    memories = _filled(model, [one.request.memories[first : first + sum(slots[start:end])]])
    logits = model.read_on(ids[start:end], memories, slots[start:end], cache, pause=pause)
    return logits if end >= len(ids) else None


def _filled(model: ClaraModel, memories: Sequence[Tensor]) -> Tensor:
    """Memory tokens of several prompts on the device: ``[slots, hidden]``."""
    held = [tokens for tokens in memories if len(tokens)]
    return upload(torch.cat(held or [torch.zeros(0, model.hidden)]), model.device)


class Chosen:
    """The next token of each row of a pass, chosen without waiting for the device.

    Args:
        part: The rows.
        logits: ``[rows, vocab]``.
        queries: Attention queries ``[rows, layers, heads, dim]`` at the last positions, if a request needs them.

    Attributes:
        part: The rows.
        tokens: ``[rows]``, on the device.
        queries: The argument.
    """

    def __init__(self, part: Sequence[Running], logits: Tensor, queries: Tensor | None = None) -> None:
        self.part = part
        self.queries = queries
        allowed = without_ends(logits, {row: one.request.sequence.barred(one.ahead) for row, one in enumerate(part)})
        quoting = {
            row: tokens for row, one in enumerate(part) if (tokens := one.request.sequence.allowed()) is not None
        }
        allowed = only(allowed, quoting)
        best = allowed.max(-1)  # NaN counts as the largest, so it is detected here
        self.tokens = _drawn(part, allowed, best.indices)
        numbers = torch.stack([self.tokens, best.values.isfinite().long()], dim=1)
        self._measured = measure(logits, allowed, [one.request.sequence.log for one in part], self.tokens)
        self._numbers = download(numbers)
        self._read: list[list[int]] = []
        self._recorded: dict[int, Measured] = {}
        self._arrived: torch.cuda.Event | None = None
        if logits.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(logits.device))

    def wait(self) -> None:
        """Wait until the tokens have arrived on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._read = self._numbers.tolist()
        self._recorded = self._measured()

    def finite(self, row: int) -> bool:
        """Whether the logits of a row were finite; call `wait` first."""
        return bool(self._read[row][1])

    def token(self, row: int) -> tuple[int, Measured | None]:
        """The token of a row and its log-probabilities, if they are recorded; call `wait` first."""
        return self._read[row][0], self._recorded.get(row)


def _drawn(part: Sequence[Running], logits: Tensor, best: Tensor) -> Tensor:
    """The next token of each row, ``[rows]``: the best one, or a sample if the request has a temperature."""
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
    """The error for values of the model that are NaN or infinite."""
    return ClaraError(
        f"the model gave {what} that are not finite in {dtype}: damaged weights, or numbers too large for the type; "
        "try dtype='bfloat16' or 'float32'"
    )
