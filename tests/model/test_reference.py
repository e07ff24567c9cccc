"""The reference implementation, compared with the results of the published code for three small checkpoints.

All other results are compared with ``tests/reference.py``, which this file tests. The recorded results in
``tests/parity`` are float32 on a CPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.parity_data import FIXTURES, Golden, read_golden
from tests.reference import Reference

TOKENS = 16


@pytest.fixture(scope="module", params=FIXTURES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


@pytest.fixture(scope="module")
def reference(golden: Golden) -> Reference:
    return Reference.load(golden.checkpoint, golden.base)


@pytest.fixture(scope="module")
def memories(reference: Reference, golden: Golden) -> torch.Tensor:
    return reference.compress(golden.documents)


def test_passage_ids(reference: Reference, golden: Golden) -> None:
    assert [reference.passage_ids(text) for text in golden.documents] == golden.document_ids


def test_memory(memories: torch.Tensor, golden: Golden) -> None:
    torch.testing.assert_close(memories, golden.memory, atol=1e-4, rtol=0)


def test_query_scores_and_top_k(reference: Reference, memories: torch.Tensor, golden: Golden) -> None:
    if golden.query is None:
        pytest.skip("the checkpoint has no query reasoner")
    query = reference.reason(golden.questions)
    torch.testing.assert_close(query, golden.query, atol=1e-4, rtol=0)
    scores = reference.score(query, memories)
    torch.testing.assert_close(scores, golden.scores, atol=1e-5, rtol=0)
    for row, case in zip(scores, golden.from_questions, strict=True):
        top = row.topk(reference.top_k).indices
        assert top.tolist() == case.documents
        assert reference.answer(case.question, memories[top], TOKENS) == case.answer


def test_answers(reference: Reference, memories: torch.Tensor, golden: Golden) -> None:
    for case in golden.from_text:
        written = reference.answer(case.question, memories[case.documents], TOKENS)
        assert written == case.answer


def test_paraphrases(reference: Reference, memories: torch.Tensor, golden: Golden) -> None:
    for instruction, answer in golden.paraphrases:
        assert reference.paraphrase(memories[0], instruction, TOKENS) == answer


def test_an_untrained_generator_would_be_noticed(golden: Golden) -> None:
    """The fixtures can tell a trained generator from a missing one (the released loader's bug)."""
    full = Reference.load(golden.checkpoint, golden.base)
    memories = full.compress(golden.documents)
    full.models["decoder_adapter"] = Reference.load(golden.checkpoint, golden.base).bare
    case = golden.from_text[0]
    assert full.answer(case.question, memories[case.documents], TOKENS) != case.answer
