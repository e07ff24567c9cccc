"""The training objective of every stage: computes the named losses of a model on a step.

Letters in shapes: B questions, N candidate windows of a question, W windows of the step, k windows that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clara_core.model.checkpoint.config import Role
from clara_core.training.batch import RowBatch, Step, split_rows
from clara_core.training.losses import (
    IGNORE,
    TAU,
    alignment_loss,
    answer_loss,
    contrastive_loss,
    cosine_scores,
    pointing_loss,
    straight_through_top_k,
)

if TYPE_CHECKING:
    from clara_core.model.decoder import ClaraModel
    from clara_core.training.memory_cache import MemoryCache

CHUNK = 32  # windows of a compressor pass
HARDEST = 20  # windows of a question without candidates: its gold windows and those with the highest scores
_BELOW_ANY_COSINE = -2.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The losses of a stage with their weights.

    Attributes:
        text: Whether the generator reads plain text and nothing is compressed (training of a bare base).
        frozen: Whether the compressor is frozen, so that memories carry no gradient.
        end_to_end: Whether the generator reads the windows that the query reasoner picks.
        top_k: Windows that the query reasoner picks.
        top_k_gradient: Whether the loss of the answer reaches the query reasoner.
        in_batch: Whether the candidates of the other questions of the step are negatives, too.
        alignment: Weight of the alignment loss.
        paraphrase: Weight of the loss of paraphrases.
        contrastive: Weight of the contrastive loss.
        pointing: Weight of the pointing loss (see `pointing_loss`).
        tau: Temperature of the contrastive loss.
    """

    text: bool = False
    frozen: bool = False
    end_to_end: bool = False
    top_k: int = 5
    top_k_gradient: bool = True
    in_batch: bool = True
    alignment: float = 0.1
    paraphrase: float = 0.5
    contrastive: float = 0.0
    pointing: float = 0.0
    tau: float = TAU


@dataclass(frozen=True, slots=True)
class Outcome:
    """Losses and metrics of a step, each averaged over the unit in `MEAN_OF`.

    Attributes:
        losses: Weighted losses by name, with gradient.
        metrics: Metrics by name.
        chosen: ``[B, k]``: indices of the candidate windows that each question picked, best first; None if not
            `end_to_end`.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, float]
    chosen: Tensor | None = None


class Objective:
    """Computes the losses of a stage.

    Args:
        model: The model to train.
        terms: The losses.
        memories: Cached memories, if the compressor is frozen.
    """

    def __init__(self, model: ClaraModel, terms: Terms, memories: MemoryCache | None = None) -> None:
        self.model = model
        self.terms = terms
        self.memories = memories

    def __call__(self, step: Step) -> Outcome:
        """Compute the losses of a step."""
        terms = self.terms
        losses: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        if terms.text:
            losses["answer"], metrics["accuracy"], _ = self.generate(_rows(step.rows), None)
            if step.retold is not None:
                losses["text"] = self.generate(step.retold, None)[0]
            return Outcome(losses, metrics)
        memories, alignment = self.compress(step.sequences)  # [W, n_mem, hidden]
        chosen = None
        if step.questions:
            by_window = self.rank(step.questions, memories)  # [B, W]
            scores, positives = _document_scores(step, by_window, in_batch=terms.in_batch)  # [B, documents]
            if positives.any():
                metrics["recall@1"] = _recall(scores, positives)
                if terms.contrastive:
                    losses["contrastive"] = terms.contrastive * contrastive_loss(scores, positives, terms.tau)
            if terms.end_to_end:
                losses["answer"], metrics["accuracy"], chosen = self.end_to_end(step, by_window, memories)
        if not terms.end_to_end and step.rows is not None:
            losses["answer"], metrics["accuracy"], pointing = self.generate(step.rows, memories)
            if pointing is not None:
                losses["pointing"] = terms.pointing * pointing
        if alignment is not None and step.rows is not None:
            losses["alignment"] = terms.alignment * alignment
        if step.retold is not None:
            retold, metrics["again"], pointing = self.generate(step.retold, memories)
            losses["paraphrase"] = terms.paraphrase * retold
            if pointing is not None:
                losses["pointing again"] = terms.paraphrase * terms.pointing * pointing
        return Outcome(losses, metrics, chosen)

    # --- the parts ---------------------------------------------------------------------------------------

    def compress(self, sequences: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        """Memories ``[W, n_mem, hidden]`` and the alignment loss, in passes over windows of similar length.

        With a frozen compressor, memories have no gradient and the loss is None.
        """
        if self.terms.frozen:
            if self.memories is not None:
                return self.memories.get(sequences), None
            return compress_frozen(self.model, sequences), None
        parts, alignments = [], []
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        n_mem = self.model.config.n_mem
        for start in range(0, len(order), CHUNK):
            chunk = [sequences[index] for index in order[start : start + CHUNK]]
            states = self.model.hidden_states(chunk, Role.COMPRESSOR)  # [rows, length, hidden]
            ends = torch.tensor([len(ids) for ids in chunk], device=states.device)[:, None]
            columns = torch.arange(states.shape[1], device=states.device)[None]
            is_memory = (columns < ends) & (columns >= ends - n_mem)
            parts.append(states[is_memory].view(len(chunk), n_mem, -1))
            aligned = alignment_loss(states.float(), is_memory, columns < ends - n_mem)
            alignments.append(aligned * (len(chunk) / len(order)))
        restore = torch.tensor(order, device=self.model.device).argsort()
        return torch.cat(parts)[restore], torch.stack(alignments).sum()

    def rank(self, questions: list[list[int]], memories: Tensor) -> Tensor:
        """Cosines ``[B, W]`` of questions, encoded by the query reasoner, with memories ``[W, n_mem, hidden]``."""
        reasoned = self.model.encode(questions, Role.REASONER)  # [B, n_mem, hidden]
        return cosine_scores(reasoned.flatten(1), memories.flatten(1))

    def generate(self, rows: RowBatch, memories: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
        """Answer loss, token accuracy and pointing loss of rows over memories (None: text rows of the bare base)."""
        role = None if memories is None else Role.GENERATOR
        losses, hits, total = [], 0.0, 0
        pointing: list[Tensor] = []
        for part in split_rows(rows):
            read = [window for row in part.windows for window in row]
            filled = None if memories is None else memories[read].flatten(0, 1)  # [slots, hidden]
            with _attention_of(self._pointers() if part.wanted is not None else ()) as paid:
                states = self.model.hidden_states(
                    part.ids, role, memories=filled, slots=part.slots.to(self.model.device)
                )
            loss, accuracy = self._answer(states, part.labels)
            losses.append(loss * part.labelled)
            hits, total = hits + accuracy * part.labelled, total + part.labelled
            if part.wanted is not None and part.sources is not None:
                sources, wanted = part.sources.to(self.model.device), part.wanted.to(self.model.device)
                pointing += [pointing_loss(one, sources, wanted) / len(paid) for one in paid]
        return (
            torch.stack(losses).sum() / total,
            hits / total,
            torch.stack(pointing).sum() / total if pointing else None,
        )

    def _pointers(self) -> Sequence[nn.Module]:
        """The attention layers with a pointing loss: the upper half."""
        if not self.terms.pointing:
            return ()
        layers: nn.ModuleList = self.model.trunk.layers  # type: ignore[assignment]
        return [layer.get_submodule("self_attn") for layer in layers[len(layers) // 2 :]]

    def end_to_end(self, step: Step, by_window: Tensor, memories: Tensor) -> tuple[Tensor, float, Tensor]:
        """Answer loss over the windows that the query reasoner picks by their scores ``by_window [B, W]``.

        Returns:
            tuple: Loss, token accuracy, and the picks ``[B, k]`` as indices among the candidates.
        """
        rows = _rows(step.rows)
        candidates, real = _candidate_windows(step, by_window.detach())  # [B, N] each
        scores = by_window.gather(1, candidates).masked_fill(~real, _BELOW_ANY_COSINE)
        k = min(self.terms.top_k, candidates.shape[1])
        weights, chosen = straight_through_top_k(scores, k)  # [B, k, N]
        if not self.terms.top_k_gradient:
            weights = weights.detach()
        picked = torch.einsum("bkn,bnmh->bkmh", weights.to(memories.dtype), memories[candidates])
        filled = picked[
            torch.arange(k, device=real.device) < real.sum(1, keepdim=True)
        ]  # [read windows, n_mem, hidden]
        slots = rows.slots.to(self.model.device)
        states = self.model.hidden_states(rows.ids, Role.GENERATOR, memories=filled.flatten(0, 1), slots=slots)
        loss, accuracy = self._answer(states, rows.labels)
        return loss, accuracy, chosen

    def _answer(self, states: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        labels = labels.to(states.device)
        # Logits are computed only for the positions with a loss.
        kept = labels[:, 1:] != IGNORE
        logits = self.model.head(states[:, :-1][kept])  # [kept, vocab]
        targets = labels[:, 1:][kept]
        return self._token_loss(logits, targets), float((logits.argmax(-1) == targets).float().mean())

    def _token_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of ``logits [tokens, vocab]``, in the order of the rows."""
        return answer_loss(F.pad(logits[None], (0, 0, 0, 1)), F.pad(targets[None], (1, 0), value=IGNORE))


@contextmanager
def _attention_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the attention weights ``[rows, heads, length, length]`` of modules in a pass (eager attention only)."""
    paid: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _module, _args, output: paid.append(output[1])) for module in modules]
    try:
        yield paid
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def compress_frozen(model: ClaraModel, sequences: list[list[int]]) -> Tensor:
    """Memories ``[W, n_mem, hidden]`` without gradient, in passes over windows of similar length."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    parts = [
        model.encode([sequences[index] for index in order[start : start + CHUNK]], Role.COMPRESSOR)
        for start in range(0, len(order), CHUNK)
    ]
    return torch.cat(parts)[torch.tensor(order, device=model.device).argsort()]


def _document_scores(step: Step, by_window: Tensor, *, in_batch: bool) -> tuple[Tensor, Tensor]:
    """Scores ``[B, documents]``, minus infinity for documents that are not candidates, and a mask of the gold ones."""
    # The score of a document is that of its best window.
    scores = torch.stack([by_window[:, own.start : own.stop].amax(1) for own in step.windows], dim=1)
    positives = torch.zeros_like(scores, dtype=torch.bool)  # [B, documents]
    for index, gold in enumerate(step.gold):
        positives[index, list(gold)] = True
    if step.candidates is not None and not in_batch:
        allowed = torch.zeros_like(positives)
        for index, own in enumerate(step.candidates):
            allowed[index, list(own)] = True
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores, positives


def _recall(scores: Tensor, positives: Tensor) -> float:
    """Share of the questions with a gold document that rank one first."""
    hit = positives.gather(1, scores.argmax(-1, keepdim=True))[:, 0]  # [B]
    return float(hit[positives.any(-1)].float().mean())


def _candidate_windows(step: Step, by_window: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate windows of each question, ``[B, N]``, and a mask that is false for padding."""
    if step.candidates is None:
        raised = by_window.clone()
        for index, gold in enumerate(step.gold):
            raised[index, [window for passage in gold for window in step.windows[passage]]] = float("inf")
        hardest = raised.topk(min(HARDEST, raised.shape[1]), dim=-1).indices
        return hardest, torch.ones_like(hardest, dtype=torch.bool)
    own = [[window for passage in passages for window in step.windows[passage]] for passages in step.candidates]
    most = max(map(len, own))
    table = torch.tensor([[*windows, *[0] * (most - len(windows))] for windows in own], device=by_window.device)
    counts = torch.tensor([len(windows) for windows in own], device=by_window.device)
    return table, torch.arange(most, device=by_window.device) < counts[:, None]


def _rows(rows: RowBatch | None) -> RowBatch:
    if rows is None:
        raise ValueError("this step has no rows for the generator")
    return rows
