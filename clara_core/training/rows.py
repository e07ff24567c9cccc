"""Training rows: what the generator reads and has to say.

A row is one conversation over a few documents, with several questions asked in turn: the documents are read once
for all of them. Labels cover the assistant's turns alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_core.tokens import ANSWER_SYSTEM, PARAPHRASE_INSTRUCTION, PARAPHRASE_SYSTEM, ClaraTokenizer
from clara_core.training.losses import IGNORE
from clara_core.training.world import Corpus, Question, paraphrase


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation.

    Attributes:
        documents: Indices of the passages in the order of their slots; empty where the text itself is in the prompt.
        turns: Pairs of user text and assistant text; ``{docs}`` in the first is the documents' place.
        system: System message.
        text: Whether the documents stand as text instead of memory (the base's own lesson).
    """

    documents: tuple[int, ...]
    turns: tuple[tuple[str, str], ...]
    system: str = ANSWER_SYSTEM
    text: bool = False


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows as tensors.

    Attributes:
        ids: Token ids, one list a row.
        labels: ``[rows, length]``.
        slots: Bool ``[rows, length]``.
        documents: The passages whose memories fill the slots, in order, all rows in one list.
    """

    ids: list[list[int]]
    labels: Tensor
    slots: Tensor
    documents: list[int]


def question_rows(
    rng: random.Random, corpus: Corpus, *, n_rows: int, n_documents: tuple[int, int], n_questions: int, text: bool = False
) -> list[Row]:
    """Rows that ask questions over a few passages of the corpus.

    Args:
        rng: Source of chance.
        corpus: Passages and questions.
        n_rows: Rows to make.
        n_documents: Fewest and most documents in a row.
        n_questions: Most questions in a row.
        text: Documents as text.
    """
    by_passage: dict[int, list[Question]] = defaultdict(list)
    for question in corpus.questions:
        for gold in question.gold:
            by_passage[gold].append(question)
    single = list(by_passage)
    pairs = [question for question in corpus.questions if len(question.gold) > 1]
    rows = []
    for number in range(n_rows):
        wanted = rng.randint(*n_documents)
        if wanted > 1 and pairs and rng.random() < 0.6:  # noqa: PLR2004 - most rows hold a question over two
            chosen = set(rng.choice(pairs).gold)
        else:
            chosen = {single[number % len(single)]}
        while len(chosen) < min(wanted, len(single)):
            chosen.add(rng.choice(single))
        documents = rng.sample(sorted(chosen), len(chosen))
        asked = {id(q): q for d in documents for q in by_passage[d] if set(q.gold) <= chosen}
        both = [q for q in asked.values() if len(q.gold) > 1]
        one = [q for q in asked.values() if len(q.gold) == 1]
        picked = [*rng.sample(both, min(len(both), 2)), *rng.sample(one, min(len(one), n_questions))][:n_questions]
        rng.shuffle(picked)
        if picked:
            rows.append(Row(tuple(documents), _turns(picked), text=text))
    return rows


def paraphrase_rows(rng: random.Random, corpus: Corpus, n_rows: int) -> list[Row]:
    """Rows that say one passage again."""
    chosen = rng.sample(range(len(corpus.passages)), min(n_rows, len(corpus.passages)))
    return [
        Row((index,), ((PARAPHRASE_INSTRUCTION, paraphrase(rng, corpus.passages[index])),), system=PARAPHRASE_SYSTEM)
        for index in chosen
    ]


def _turns(questions: list[Question]) -> tuple[tuple[str, str], ...]:
    first, *rest = questions
    opening = ("Background:\n{docs}\n\nQuestion:" + first.text, first.answer)
    return (opening, *((f"Question:{question.text}", question.answer) for question in rest))


def build_batch(tokenizer: ClaraTokenizer, corpus: Corpus, rows: list[Row], *, whole: bool = False) -> RowBatch:
    """Token ids, labels and slots of rows; `whole` puts the loss on every token instead of the answers alone."""
    markup = [_markup(tokenizer, corpus, row) for row in rows]
    ids = tokenizer.encode_markup_batch(markup)
    length = max(map(len, ids))
    labels = torch.full((len(ids), length), IGNORE)
    slots = torch.zeros((len(ids), length), dtype=torch.bool)
    assistant, eos = tokenizer.token_id("<|assistant|>"), min(tokenizer.eos_ids)
    for index, row in enumerate(ids):
        slots[index, : len(row)] = torch.tensor(tokenizer.is_slot(row))
        answering = False
        for position, token in enumerate(row):
            if answering or whole:
                labels[index, position] = token
            answering = token == assistant or (answering and token != eos)
    documents = [document for row in rows if not row.text for document in row.documents]
    return RowBatch(ids, labels, slots, documents)


def _markup(tokenizer: ClaraTokenizer, corpus: Corpus, row: Row) -> str:
    texts = [corpus.passages[index].text for index in row.documents]
    docs = "\n".join(texts) if row.text else tokenizer.slots * len(row.documents)
    parts = [f"<s><|system|>{row.system}"]
    for user, answer in row.turns:
        parts.append(f"<|user|>{user.replace('{docs}', docs)}<|assistant|>{answer}</s>")
    return "".join(parts)
