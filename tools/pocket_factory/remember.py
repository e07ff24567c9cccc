"""The contrastive loss with passages of earlier steps, because one step has too few similar passages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara_core.training.losses import contrastive_loss
from clara_core.training.objective import Objective, Outcome, Terms, _document_scores
from tools.pocket_factory.quoting import Allowed, quoting_loss

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel
    from clara_core.training.batch import Step
    from tools.pocket_factory.lesson import Taught

_NEVER = -2.0  # below any cosine


class Earlier:
    """Memories of the most recent windows, without gradient, each with the kind of its passage."""

    def __init__(self, most: int) -> None:
        self.kept: deque[tuple[str, Tensor]] = deque(maxlen=most)

    def add(self, kinds: tuple[str, ...], memories: Tensor) -> None:
        """Keep the windows of a step, ``[W, n_mem, hidden]``."""
        self.kept.extend(zip(kinds, memories.detach(), strict=True))


class Remembering(Objective):
    """An objective that also ranks earlier passages for each question, and the questions for each passage.

    Args:
        model: The model to train.
        terms: The losses.
        earlier: Memories of earlier steps; every step adds its own.
    """

    def __init__(self, model: ClaraModel, terms: Terms, earlier: Earlier) -> None:
        super().__init__(model, terms)
        self.earlier = earlier
        self.step: Taught
        self.scores: Tensor | None = None
        self.quoting = 0.0
        self._allowed: Iterator[Allowed | None] | None = None

    def quote(self, allowed: Sequence[Allowed | None], weight: float) -> None:
        """Give the choice among the allowed tokens of the step's rows this weight in their loss (`quoting_loss`)."""
        self._allowed, self.quoting = iter(allowed), weight

    def __call__(self, step: Step) -> Outcome:
        """The losses of a step, and `reverse`: the contrastive loss of each passage over the questions of the step."""
        self.step = step  # type: ignore[assignment]  # `Lesson` builds no other steps
        count, more = len(step.sequences), len(self.earlier.kept)
        windows = [*step.windows, *(range(at, at + 1) for at in range(count, count + more))]
        outcome = super().__call__(replace(step, windows=windows))
        if self.scores is not None and self.terms.contrastive:
            scores, positives = _document_scores(step, self.scores[:, :count], in_batch=True)
            loss = contrastive_loss(scores.T, positives.T, self.terms.tau)
            outcome.losses["reverse"] = 0.5 * self.terms.contrastive * loss
        return outcome

    def rank(self, questions: list[list[int]], memories: Tensor) -> Tensor:
        """Cosines ``[B, W + earlier]``; passages that may also answer a vague question are no candidates for it."""
        step, kept = self.step, list(self.earlier.kept)
        self.earlier.add(step.kinds, memories)
        together = torch.cat([memories, torch.stack([memory for _, memory in kept])]) if kept else memories
        scores = super().rank(questions, together)
        kinds = [*step.kinds, *(kind for kind, _ in kept)]
        alike = torch.tensor([[bool(vague) and kind == vague for kind in kinds] for vague in step.vague])
        for question, gold in enumerate(step.gold):
            for passage in gold:
                alike[question, step.windows[passage].start : step.windows[passage].stop] = False
        self.scores = scores.masked_fill(alike.to(scores.device), _NEVER)
        return self.scores

    def _token_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The rows of a step come before its repetitions, which the allowed tokens do not cover."""
        allowed = [] if self._allowed is None else list(islice(self._allowed, len(targets)))
        if not allowed:
            return super()._token_loss(logits, targets)
        return quoting_loss(logits, targets, allowed, self.quoting)
