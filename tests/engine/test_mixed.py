"""Documents as text beside memories of other documents: the prompt, its reference, and the conditions for it."""

from __future__ import annotations

import json

import pytest
import torch

from clara_core import CheckpointError, ClaraEngine
from clara_core.engine.evidence import Checks
from clara_core.engine.examining import Reading, _as_text
from clara_core.engine.inputs import Chat
from clara_core.engine.sampling import Sampling
from clara_core.engine.steps import drive
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.tokenizer import ANSWER_SYSTEM
from tests.engines import PASSAGES, open_engine, wrapped
from tests.parity_data import PARITY
from tests.reference import Reference
from tests.tiny import FAMILIES, Tiny, build

QUESTION = "When was the bridge over the river Aln opened?"
LONG = " ".join(PASSAGES) * 3


def mixed(tiny: Tiny) -> Tiny:
    """The same checkpoint, whose config states that it was trained to read text beside memories."""
    path = tiny.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mixed": True}))
    return tiny


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return mixed(build(tmp_path_factory.mktemp("mixed"), request.param, seed=9))


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


def plainly(reference: Reference, background: list[str | None], memories: list, max_tokens: int) -> str:
    """An answer of the reference; None in the background stands for a memory."""
    docs = "".join(reference.slots(1) if text is None else f"{text}<SEP>" for text in background)
    prompt = reference.prompt_ids(ANSWER_SYSTEM, f"Background:\n{docs}\n\nQuestion:{QUESTION}")
    tokens = [memory.tokens.float() for memory in memories] or [torch.zeros(0, 1, 1)]
    return reference._write(prompt, torch.cat(tokens), max_tokens)


@pytest.mark.parametrize("as_text", [(0,), (2,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_an_answer_is_that_of_the_plain_twin(tiny: Tiny, engine: ClaraEngine, as_text: tuple[int, ...]) -> None:
    memories = engine.remember(PASSAGES[:4])
    answer = engine.answer(QUESTION, memories, max_tokens=8, as_text=as_text)
    background = [PASSAGES[at] if at in as_text else None for at in range(4)]
    read = [memory for at, memory in enumerate(memories) if at not in as_text]
    assert answer.text == plainly(tiny.reference(), background, read, 8)
    assert answer.memory_tokens == len(read) * engine.n_mem
    assert answer.source_tokens == sum(memory.source_tokens for memory in read)


@pytest.mark.parametrize("name", ["e2e", "instruct"])
def test_checkpoints_in_the_shape_of_the_releases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PARITY / name
    engine = ClaraEngine.from_pretrained(
        str(folder / "checkpoint"), base_model=str(folder / "base"), dtype="float32", device="cpu"
    )
    taught = engine.tokenizer.config.model_copy(update={"mixed": True})
    monkeypatch.setattr(engine.tokenizer, "config", taught)
    memories = engine.remember(PASSAGES[:3])
    answer = engine.answer(QUESTION, memories, max_tokens=6, as_text=[1])
    reference = Reference.load(folder / "checkpoint", folder / "base")
    assert answer.text == plainly(reference, [None, PASSAGES[1], None], [memories[0], memories[2]], 6)
    engine.unload()


def test_a_long_document_is_text_in_pieces_of_a_window(engine: ClaraEngine) -> None:
    memories = engine.remember([LONG, PASSAGES[0]])
    request = engine._chat_request([{"role": "user", "content": QUESTION}], memories, Sampling(max_tokens=2), [0])
    separator = engine.tokenizer.token_id("<SEP>")
    assert request.ids.count(separator) == memories[0].n_windows + 1 > 2
    assert LONG.split()[-1] in engine.tokenizer.decode(request.ids)
    assert sum(request.slots) == engine.n_mem


def test_special_tokens_in_a_text_are_text(engine: ClaraEngine) -> None:
    memories = engine.remember(["Ada </s> <SEP> <MEM0> Quill", PASSAGES[0]])
    request = engine._chat_request([{"role": "user", "content": QUESTION}], memories, Sampling(max_tokens=2), [0])
    assert request.ids.count(engine.tokenizer.token_id("<SEP>")) == 2
    assert sum(request.slots) == engine.n_mem


def test_a_checkpoint_that_was_not_taught_refuses(tiny: Tiny, engine: ClaraEngine, encyclopedia: ClaraEngine) -> None:
    memories = encyclopedia.remember(PASSAGES[:2])
    with pytest.raises(CheckpointError, match="was not trained to read text beside memories"):
        encyclopedia.answer(QUESTION, memories, as_text=[0])
    with pytest.raises(CheckpointError, match="was not trained to read text beside memories"):
        next(iter(encyclopedia.stream(QUESTION, memories, as_text=[0])))
    memories = engine.remember(PASSAGES[:2])
    for wrong, error, match in (
        ({"as_text": [2]}, ValueError, r"as_text must name documents from 0 to 1, got \[2\]"),
        ({"as_text": ["0"]}, TypeError, "as_text\\[0\\] must be the index of a document, got str"),
        ({"as_text": [0], "citations": True}, ValueError, "leave citations= and read= out"),
    ):
        with pytest.raises(error, match=match):
            engine.answer(QUESTION, memories, **wrong)


async def test_streams_and_awaited_answers_read_it_too(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:3])
    answer = engine.answer(QUESTION, memories, max_tokens=5, as_text=[1])
    last = list(engine.stream(QUESTION, memories, max_tokens=5, as_text=[1]))[-1].answer
    assert last == answer
    assert await engine.aanswer(QUESTION, memories, max_tokens=5, as_text=[1]) == answer
    chunks = [chunk async for chunk in engine.astream(QUESTION, memories, max_tokens=5, as_text=[1])]
    assert chunks[-1].answer == answer


def test_a_doubted_answer_reads_the_best_document_as_text_beside_the_others(engine: ClaraEngine) -> None:
    memories = engine.remember(PASSAGES[:3])
    messages, sampling = [{"role": "user", "content": QUESTION}], Sampling(max_tokens=4, recorded=0)
    request = engine._chat_request(messages, memories, sampling)
    [answer] = engine._wait([request])
    doubted = Reading(answer, checks=Checks(cited_first=False))
    seen: list[tuple[Role | None, int, str]] = []

    def look(original, sequences, tokens, slots, cache, **others):
        seen.append((cache.role, sum(slots[0]), engine.tokenizer.decode(list(sequences[0]))))
        return original(sequences, tokens, slots, cache, **others)

    with wrapped(engine.load().model, "prefill", look):
        drive(_as_text(engine, Chat(messages, memories, sampling, request), doubted, [0.1, 0.9, 0.2]), engine._wait)
    [(role, slots, text)] = seen
    assert role is Role.GENERATOR
    assert slots == 2 * engine.n_mem
    assert PASSAGES[1] in text
    assert PASSAGES[0] not in text


def test_the_config_says_it_only_where_it_is_so(tmp_path) -> None:
    config = ClaraConfig(decoder_model_name="base")
    config.write(tmp_path)
    assert "mixed" not in json.loads((tmp_path / "config.json").read_text())
    config.model_copy(update={"mixed": True}).write(tmp_path)
    assert ClaraConfig.read(tmp_path).mixed is True
