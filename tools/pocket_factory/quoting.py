"""What a verbatim answer may say at each token of a lesson: the model is trained on the choice that it has in use.

The bundled model answers in the words of its documents. Which tokens these are, the texts tell; which of them, the
model. A loss over all tokens of the vocabulary is mostly about spelling, which the texts do for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.verbatim import Quotation
from clara_core.model.sampler import only
from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.training.batch import RowBatch
from clara_core.training.losses import IGNORE
from tools.pocket_factory.world.rows import OPENING

Allowed = Mapping[int, float]
"""The tokens that may come next, each with what its logit gains."""


def allowed_tokens(
    tokenizer: ClaraTokenizer, batch: RowBatch, texts: Sequence[str], asked: str
) -> list[Allowed | None]:
    """For each token with a label, row after row, what may come next; None if the answer is no quotation.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        batch: Conversations over memories.
        texts: For each window of the step the text of its document.
        asked: What stands before a question in a prompt; turns without it are no questions.
    """
    user, assistant = tokenizer.token_id("<|user|>"), tokenizer.token_id("<|assistant|>")
    found: list[Allowed | None] = []
    for ids, labels, windows in zip(batch.ids, batch.labels.tolist(), batch.windows, strict=True):
        documents = _documents(tokenizer, ids, windows, texts)
        at = 0
        while at < len(ids):
            if labels[at] == IGNORE:
                at += 1
                continue
            end = next((one for one in range(at, len(ids)) if labels[one] == IGNORE), len(ids))
            before = max(one for one in range(at) if ids[one] == user)
            said = tokenizer.decode(ids[before + 1 : ids.index(assistant, before)])
            question = said.partition(asked)[2].strip()
            found += _along(tokenizer, ids[at:end], documents, question) if question else [None] * (end - at)
            at = end
    return found


def _documents(
    tokenizer: ClaraTokenizer, ids: Sequence[int], windows: Sequence[int], texts: Sequence[str]
) -> list[str]:
    """The documents of a row in the order of its prompt, also those that it reads as text."""
    separator, slots, compressed = tokenizer.token_id("<SEP>"), tokenizer.is_slot(list(ids)), iter(windows)
    found, start = [], 0
    for end in [at for at, token in enumerate(ids) if token == separator]:
        if any(slots[start:end]):
            found.append(texts[next(compressed)])
        else:
            piece = tokenizer.decode(list(ids[start:end])).rpartition(OPENING)[2].strip()
            found.append(next(text for text in texts if piece in text))
        start = end + 1
    return [text for text, _ in groupby(found)]


def _along(
    tokenizer: ClaraTokenizer, answer: Sequence[int], documents: Sequence[str], question: str
) -> list[Allowed | None]:
    quotation = Quotation(documents, tokenizer, LearnedHints(question, documents))
    choices: list[Allowed | None] = []
    for token in answer:
        allowed = quotation.allowed(tokenizer.eos_ids)
        if token not in allowed:
            return [None] * len(answer)
        choices.append(allowed)
        quotation.feed(token)
    return choices


def quoting_loss(logits: Tensor, targets: Tensor, allowed: Sequence[Allowed | None], weight: float) -> Tensor:
    """Mean loss of ``logits [n, vocab]``; `weight` is the share of the choice among allowed tokens."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")  # [n]
    quoted = {row: tokens for row, tokens in enumerate(allowed) if tokens is not None}
    if quoted:
        rows = torch.tensor(list(quoted))
        own = only(logits[rows].float(), dict(enumerate(quoted.values())))
        among = F.cross_entropy(own, targets[rows], reduction="none")
        losses = losses.index_put((rows,), (1 - weight) * losses[rows] + weight * among)
    return losses.mean()
