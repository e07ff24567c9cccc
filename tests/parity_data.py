"""Reads the recorded results of the published code in ``tests/parity``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

PARITY = Path(__file__).parent / "parity"
FIXTURES = ("e2e", "instruct", "base")


@dataclass(frozen=True)
class Case:
    """A question, the indices of the documents in its prompt, in order, and its greedy answer."""

    question: str
    documents: list[int]
    answer: str


@dataclass(frozen=True)
class Golden:
    """One fixture: the files of its checkpoint and the results of the published code."""

    checkpoint: Path
    base: Path
    documents: list[str]
    questions: list[str]
    document_ids: list[list[int]]
    memory: Tensor  # [6, n_mem, hidden]
    query: Tensor | None  # [3, n_mem, hidden]; None without a query reasoner
    scores: Tensor | None  # [3, 6]
    from_text: list[Case]  # single questions, then two questions of one batch
    from_questions: list[Case]  # documents = the top-k of all six, best first
    paraphrases: list[tuple[str, str]]  # (instruction, answer) for the first document


def read_golden(name: str) -> Golden:
    """Read the fixture ``name`` (one of ``FIXTURES``)."""
    folder = PARITY / name
    facts = json.loads((folder / "golden.json").read_text())
    tensors = load_file(folder / "golden.safetensors")
    single = [Case(case["question"], list(range(case["n_documents"])), case["answer"]) for case in facts["from_text"]]
    # Recorded in one call: question i has the three documents from 2i on.
    batch = [
        Case(facts["questions"][i], [2 * i, 2 * i + 1, 2 * i + 2], answer)
        for i, answer in enumerate(facts["from_text_batch"])
    ]
    query = tensors.get("query")
    return Golden(
        checkpoint=folder / "checkpoint",
        base=folder / "base",
        documents=facts["documents"],
        questions=facts["questions"],
        document_ids=facts["document_input_ids"],
        memory=tensors["memory"],
        query=None if query is None else query.unflatten(1, tensors["memory"].shape[1:]),
        scores=tensors.get("scores"),
        from_text=single + batch,
        from_questions=[
            Case(case["question"], case["topk"], case["answer"]) for case in facts.get("from_questions", [])
        ],
        paraphrases=[(case["instruction"], case["answer"]) for case in facts["paraphrase"]],
    )
