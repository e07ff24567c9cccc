"""Passes that judge an answer: log-probabilities of given tokens while windows of the prompt are hidden.

A judge request is short work, like a question: it runs between decode steps and between the layers of a corpus batch.
Its rows share the beginning of their prompt within a pass (`clara_core.model.forked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from clara_core.engine.chosen import not_finite
from clara_core.engine.requests import JudgeRow, fail, resolve
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import upload


def judge_rows(model: ClaraModel, rows: Sequence[JudgeRow]) -> None:
    """Compute rows in one pass and store them in their requests; the last row of a request resolves its future.

    Args:
        model: The model.
        rows: The rows, those of a request next to each other.
    """
    groups = [(request, list(some)) for request, some in groupby(rows, key=lambda row: row.request)]
    prompts = [request.forked(row.index for row in some) for request, some in groups]
    memories = [request.memories for request, _ in groups if len(request.memories)]
    filled = torch.cat(memories or [torch.zeros(0, model.hidden)])  # [slots, hidden]
    found = model.judge(prompts, upload(filled, model.device))
    sizes = [part.numel() for part in found]
    numbers = torch.cat([part.flatten() for part in found]).cpu()  # waits for the device, once
    for (request, some), part in zip(groups, numbers.split(sizes), strict=True):
        if not bool(part.isfinite().all()):
            fail(request.future, not_finite("log-probabilities", model.dtype))
            continue
        for row, values in zip(some, part.view(len(some), -1), strict=True):
            request.rows[row.index] = values
        if len(request.rows) == len(request.hidden):
            resolve(request.future, torch.stack([request.rows[index] for index in range(len(request.hidden))]))
