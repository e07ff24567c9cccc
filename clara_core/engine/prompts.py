"""Prefill: chooses the prompts of the next pass, several short ones or a piece of a long one, and reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clara_core.engine.chosen import Running
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import upload
from clara_core.model.kv_cache import KVCache


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
    model: ClaraModel, part: Sequence[Running], cache: KVCache, budget: int, pause: Callable[[], None] | None
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
