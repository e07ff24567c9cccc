"""The losses of CLaRa's stages (arXiv 2511.18659), as functions of tensors.

Letters in shapes: B questions, N candidates, k selected documents, D = n_mem * hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # label of a position without loss
SMALLEST = 1e-5  # lower bound of an attention share before its logarithm, which bounds loss and gradient
TAU = 0.02  # temperature of the contrastive loss and of the soft top-k


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Causal cross-entropy, averaged over the labelled tokens of the batch.

    Args:
        logits: ``[rows, length, vocab]``.
        labels: ``[rows, length]``: the token at each position (not the next one), or `IGNORE`.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE)


def alignment_loss(states: Tensor, is_memory: Tensor, is_text: Tensor) -> Tensor:
    """Mean squared error between the mean state over memory positions and the mean over text positions.

    Args:
        states: Last hidden states of a compressor pass, ``[rows, length, hidden]``.
        is_memory: Bool ``[rows, length]``: the appended memory positions.
        is_text: Bool ``[rows, length]``: every other position that is not padding.
    """
    return F.mse_loss(_masked_mean(states, is_memory), _masked_mean(states, is_text))


def _masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def cosine_scores(questions: Tensor, memories: Tensor) -> Tensor:
    """Cosine in float32: ``[B, D]`` against ``[N, D]`` -> ``[B, N]``, or against ``[B, N, D]`` -> ``[B, N]``."""
    questions = F.normalize(questions.float(), dim=-1)
    memories = F.normalize(memories.float(), dim=-1)
    if memories.dim() == 2:
        return questions @ memories.T
    return torch.einsum("bd,bnd->bn", questions, memories)


def contrastive_loss(scores: Tensor, positives: Tensor, tau: float = TAU) -> Tensor:
    """Multi-positive InfoNCE: ``-(logsumexp(positives) - logsumexp(all))``, mean over questions.

    Args:
        scores: Cosines ``[B, N]``.
        positives: Bool ``[B, N]``; rows without a positive are left out.
        tau: Temperature.
    """
    logits = scores / tau
    hit = logits.masked_fill(~positives, float("-inf")).logsumexp(-1)
    loss = logits.logsumexp(-1) - hit
    return loss[positives.any(-1)].mean()


def pointing_loss(attention: Tensor, sources: Tensor, wanted: Tensor) -> Tensor:
    """Penalize attention to the memory tokens of other documents than those that the next token comes from.

    The loss is ``-log(share)``, where share is the part of a head's attention to slots that goes to the right
    documents: averaged over heads, and summed over the positions with a right document.

    Args:
        attention: Attention weights ``[rows, heads, length, length]``.
        sources: ``[rows, length]``: the document of each slot as one bit, 0 elsewhere.
        wanted: ``[rows, length]``: the right documents of each position as bits, 0 for a position without loss.
    """
    row, place = wanted.nonzero(as_tuple=True)
    paid = attention[row, :, place].float()  # [positions, heads, length]
    slots = sources[row][:, None]  # [positions, 1, length]
    right = (slots & wanted[row, place][:, None, None]) != 0
    share = (paid * right).sum(-1) / (paid * (slots != 0)).sum(-1).clamp_min(SMALLEST)  # [positions, heads]
    return -share.clamp_min(SMALLEST).log().mean(-1).sum()


def straight_through_top_k(scores: Tensor, k: int, tau: float = TAU) -> tuple[Tensor, Tensor]:
    """Differentiable top-k: the forward pass is exact, the gradient is that of a softmax without replacement.

    Args:
        scores: Cosines ``[B, N]``.
        k: Documents to select, at most N.
        tau: Temperature of the soft selection.

    Returns:
        tuple: Weights ``[B, k, N]`` (one-hot in the forward pass) and the chosen indices ``[B, k]``, best first.
    """
    chosen = scores.topk(k, dim=-1).indices  # [B, k]
    hard = F.one_hot(chosen, scores.shape[-1]).to(scores.dtype)  # [B, k, N]
    taken = hard.cumsum(1) - hard  # [B, k, N]: documents that were chosen before each pick
    soft = torch.softmax(scores[:, None] / tau + torch.log(1 - taken + 1e-8), dim=-1)
    return hard + (soft - soft.detach()), chosen
