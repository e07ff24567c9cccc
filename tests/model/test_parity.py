"""The public calls of the engine, compared with recorded results and with the reference implementation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clara_core import ClaraEngine, Memory, RoleError
from tests.parity_data import FIXTURES, Golden, read_golden
from tests.reference import Reference
from tests.tiny import FAMILIES, TEXTS, Tiny, build

TOKENS = 16
QUESTIONS = (
    "To which family does Weldenia belong?",
    "When was the bridge opened, and how long is it?",
    "How high is 富士山?",
)


def engine_for(folder: Path, base: Path, reasoner: str = "auto") -> ClaraEngine:
    return ClaraEngine.from_pretrained(
        str(folder), base_model=str(base), dtype="float32", device="cpu", reasoner=reasoner
    )


def stacked(memories: list[Memory]) -> Tensor:
    """Memories of one window each as one tensor [n, n_mem, hidden]."""
    assert all(len(memory.tokens) == 1 for memory in memories)
    return torch.cat([memory.tokens for memory in memories])


# -- the recorded results of the published code ----------------------------------------------------


@pytest.fixture(scope="module", params=FIXTURES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


@pytest.fixture(scope="module")
def engine(golden: Golden) -> ClaraEngine:
    return engine_for(golden.checkpoint, golden.base)


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine, golden: Golden) -> list[Memory]:
    # The published code truncates longer texts to the window.
    return engine.compress(golden.documents, overflow="truncate")


def test_passage_ids(engine: ClaraEngine, golden: Golden) -> None:
    assert engine.tokenizer.encode_passages(golden.documents) == golden.document_ids


def test_memory(memories: list[Memory], golden: Golden) -> None:
    torch.testing.assert_close(stacked(memories), golden.memory, atol=1e-4, rtol=0)


def test_query_scores_and_top_k(engine: ClaraEngine, memories: list[Memory], golden: Golden) -> None:
    if golden.query is None or golden.scores is None:
        with pytest.raises(RoleError, match="query reasoner"):
            engine.reason(golden.questions)
        return
    torch.testing.assert_close(engine.reason(golden.questions), golden.query, atol=1e-4, rtol=0)
    scores = engine.score(golden.questions, memories)
    torch.testing.assert_close(scores, golden.scores, atol=1e-5, rtol=0)
    for row, case in zip(golden.scores, golden.from_questions, strict=True):
        ranked = engine.rank(case.question, memories, top_k=len(case.documents))
        assert [hit.index for hit in ranked] == case.documents
        assert [hit.score for hit in ranked] == pytest.approx(row[case.documents].tolist(), abs=1e-5)
        best = [memories[hit.index] for hit in ranked]
        assert engine.answer(case.question, best, max_tokens=TOKENS).text == case.answer


def test_answers_one_by_one(engine: ClaraEngine, memories: list[Memory], golden: Golden) -> None:
    for case in golden.from_text:
        documents = [memories[index] for index in case.documents]
        assert engine.answer(case.question, documents, max_tokens=TOKENS).text == case.answer


def test_answers_of_one_ragged_batch(engine: ClaraEngine, memories: list[Memory], golden: Golden) -> None:
    """Eleven questions with one to four documents each, in one batch."""
    cases = golden.from_text + golden.from_questions
    pairs = [(case.question, [memories[index] for index in case.documents]) for case in cases]
    answers = engine.answer_batch(pairs, max_tokens=TOKENS)
    assert [answer.text for answer in answers] == [case.answer for case in cases]


def test_streamed_answers(engine: ClaraEngine, memories: list[Memory], golden: Golden) -> None:
    for case in golden.from_text:
        documents = [memories[index] for index in case.documents]
        chunks = engine.stream(case.question, documents, max_tokens=TOKENS)
        assert "".join(chunk.text for chunk in chunks) == case.answer


def test_paraphrases(engine: ClaraEngine, memories: list[Memory], golden: Golden) -> None:
    for instruction, answer in golden.paraphrases:
        assert engine.paraphrase(memories[0], instruction, max_tokens=TOKENS).text == answer


# -- the reference, on three kinds of base ---------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def reference(tiny: Tiny) -> Reference:
    return tiny.reference()


def test_twin_tokens_and_tensors(tiny: Tiny, reference: Reference) -> None:
    engine = engine_for(tiny.folder, tiny.base)
    assert engine.tokenizer.encode_passages(TEXTS) == [reference.passage_ids(text) for text in TEXTS]
    memories = engine.compress(TEXTS)
    expected = reference.compress(TEXTS)
    torch.testing.assert_close(stacked(memories), expected, atol=1e-4, rtol=0)
    query = reference.reason(QUESTIONS)
    torch.testing.assert_close(engine.reason(QUESTIONS), query, atol=1e-4, rtol=0)
    scores = reference.score(query, expected)
    torch.testing.assert_close(engine.score(QUESTIONS, memories), scores, atol=1e-5, rtol=0)
    for question, row in zip(QUESTIONS, scores, strict=True):
        ranked = engine.rank(question, memories, top_k=3)
        assert [hit.index for hit in ranked] == row.topk(3).indices.tolist()


def test_twin_answers(tiny: Tiny, reference: Reference) -> None:
    engine = engine_for(tiny.folder, tiny.base)
    memories = engine.compress(TEXTS)
    tokens = reference.compress(TEXTS)
    picks = [[0], [1, 4], [3, 2, 0, 1, 4]]
    expected = [
        reference.answer(question, tokens[pick], TOKENS) for question, pick in zip(QUESTIONS, picks, strict=True)
    ]
    pairs = [(question, [memories[index] for index in pick]) for question, pick in zip(QUESTIONS, picks, strict=True)]
    assert [engine.answer(*pair, max_tokens=TOKENS).text for pair in pairs] == expected
    together = engine.answer_batch(pairs, max_tokens=TOKENS)
    assert [answer.text for answer in together] == expected


def test_twin_paraphrase(tiny: Tiny, reference: Reference) -> None:
    engine = engine_for(tiny.folder, tiny.base)
    [memory] = engine.compress(TEXTS[:1])
    instruction = "Background: {docs} means the same as"
    expected = reference.paraphrase(reference.compress(TEXTS[:1])[0], instruction, TOKENS)
    assert engine.paraphrase(memory, instruction, max_tokens=TOKENS).text == expected


def test_repeated_memory_token(tmp_path: Path) -> None:
    """``different_mem_tokens: false``: one token, repeated in all slots."""
    tiny = build(tmp_path, "mistral", distinct_memory_tokens=False, seed=1)
    engine, reference = engine_for(tiny.folder, tiny.base), tiny.reference()
    memories, expected = engine.compress(TEXTS), reference.compress(TEXTS)
    torch.testing.assert_close(stacked(memories), expected, atol=1e-4, rtol=0)
    written = engine.answer(QUESTIONS[0], memories[:3], max_tokens=TOKENS).text
    assert written == reference.answer(QUESTIONS[0], expected[:3], TOKENS)


def test_own_format_gives_the_same_numbers(tmp_path: Path) -> None:
    released = build(tmp_path / "pth", seed=2)
    own = build(tmp_path / "safetensors", seed=2, file_format="safetensors")
    left, right = engine_for(released.folder, released.base), engine_for(own.folder, own.base)
    assert torch.equal(stacked(left.compress(TEXTS)), stacked(right.compress(TEXTS)))
    assert torch.equal(left.reason(QUESTIONS), right.reason(QUESTIONS))
    assert left.fingerprint == right.fingerprint


# -- a checkpoint without a query reasoner ---------------------------------------------------------


def test_missing_reasoner_is_named_and_can_be_stood_in_for() -> None:
    golden = read_golden("base")
    engine = engine_for(golden.checkpoint, golden.base)
    with pytest.raises(RoleError) as caught:
        engine.reason(["Where?"])
    assert "query reasoner" in str(caught.value)
    assert str(golden.checkpoint) in str(caught.value)
    assert re.search(r"""reasoner=["']encoder["']""", str(caught.value))

    stand_in = engine_for(golden.checkpoint, golden.base, reasoner="encoder")
    reference = Reference.load(golden.checkpoint, golden.base)
    expected = reference.reason(QUESTIONS, adapter="encoder_adapter")
    torch.testing.assert_close(stand_in.reason(QUESTIONS), expected, atol=1e-4, rtol=0)
