"""Documents longer than the context are read from their best windows, or refused with advice to split them."""

from __future__ import annotations

import asyncio
import warnings

import pytest

from clara_core import ClaraEngine, ContextOverflow, Memory
from tests.engines import PASSAGES, open_engine
from tests.tiny import build

QUESTION = "Who sailed the Merganser?"
LONG = "\n\n".join(f"Note {number}. {PASSAGES[number % len(PASSAGES)]}" for number in range(1500))


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("long")))


@pytest.fixture(scope="module")
def long(engine: ClaraEngine) -> Memory:
    [memory] = engine.compress([LONG])
    assert memory.n_windows * (engine.n_mem + 1) > engine.context
    return memory


@pytest.fixture(scope="module")
def short(engine: ClaraEngine) -> list[Memory]:
    return engine.compress(PASSAGES[:2])


def windows_of(memory: Memory) -> list[Memory]:
    return [
        Memory(memory.tokens[i : i + 1], memory.text, (span,), 0, memory.fingerprint)
        for i, span in enumerate(memory.spans)
    ]


def test_it_is_read_from_its_best_windows_best_first(engine, long, short):
    windows = windows_of(long)
    best = [windows[hit.index] for hit in engine.rank(QUESTION, windows, top_k=engine.config.generation_top_k)]
    with pytest.warns(UserWarning, match=rf"documents\[1\] is read from its best 2 of {long.n_windows} windows"):
        answer = engine.answer(QUESTION, [short[0], long, short[1]], max_tokens=8)
    by_hand = engine.answer(QUESTION, [short[0], *best, short[1]], max_tokens=8)
    assert answer.text == by_hand.text
    assert answer.memory_tokens == by_hand.memory_tokens == 4 * engine.n_mem
    assert answer.windows_left_out == long.n_windows - 2
    assert by_hand.windows_left_out == 0
    texts = [LONG[slice(*memory.spans[0])] for memory in best]
    assert answer.source_tokens == sum(map(engine.tokenizer.count, texts)) + sum(one.source_tokens for one in short)


@pytest.mark.filterwarnings("ignore:the documents do not fit")
def test_every_call_reads_the_same(engine, long):
    expected = engine.answer(QUESTION, [long], max_tokens=8)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]

    async def awaited():
        chunks = [chunk async for chunk in engine.astream(QUESTION, [long], max_tokens=8)]
        return await engine.aanswer(QUESTION, [long], max_tokens=8), chunks[-1].answer

    assert engine.answer_batch([(QUESTION, [long]), (QUESTION, [])], max_tokens=8)[0] == expected
    assert list(engine.stream(QUESTION, [long], max_tokens=8))[-1].answer == expected
    assert asyncio.run(awaited()) == (expected, expected)
    assert engine.chat(turns, [long], max_tokens=8).windows_left_out == expected.windows_left_out


def test_a_document_whose_windows_fit_is_read_whole(engine):
    [memory] = engine.compress([LONG[:4000]])
    assert memory.n_windows > engine.config.generation_top_k
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = engine.answer(QUESTION, [memory], max_tokens=2)
    assert answer.memory_tokens == memory.n_windows * engine.n_mem
    assert answer.windows_left_out == 0


def test_an_answer_has_room_beside_a_long_document(engine, long):
    """A document must not fill the context so that only three tokens are left for the answer."""
    fixed = len(engine.tokenizer.answer_prompt(QUESTION, 0)) + 40
    fitting = (engine.context - fixed) // (engine.n_mem + 1)
    most = Memory(long.tokens[:fitting], long.text, long.spans[:fitting], 0, long.fingerprint)
    with pytest.warns(UserWarning, match=f"2 of {fitting} windows"):
        assert engine.answer(QUESTION, [most], max_tokens=200).windows_left_out == fitting - 2


def test_short_documents_are_never_left_out(engine, short):
    with pytest.raises(ContextOverflow, match=r"600 documents in 600 windows.*; give fewer documents$"):
        engine.answer(QUESTION, short * 300)


def test_without_a_reasoner_the_splitter_is_named(tmp_path):
    tiny = build(tmp_path, roles=("encoder_adapter", "decoder_adapter"))
    engine = open_engine(tiny)
    [long] = engine.compress([LONG])
    with pytest.raises(ContextOverflow) as caught:
        engine.answer(QUESTION, [long])
    said = str(caught.value)
    assert f"(1 document in {long.n_windows} windows)" in said
    assert f"documents[0] alone has {long.n_windows} windows. Split long documents (ClaraTextSplitter" in said
    assert "fewer documents" not in said
    with pytest.warns(UserWarning, match="best 2 of"):
        answer = open_engine(tiny, reasoner="encoder").answer(QUESTION, [long], max_tokens=2)
    assert answer.windows_left_out == long.n_windows - 2


def test_a_paraphrase_cannot_choose(engine, long):
    with pytest.raises(ContextOverflow, match="Split long documents"):
        engine.paraphrase(long)


def test_a_conversation_that_is_too_long_by_itself(engine, short):
    with pytest.raises(ContextOverflow, match=r"; shorten the conversation$"):
        engine.answer("Where? " * 5000)
    with pytest.raises(ContextOverflow, match=r"; shorten the conversation$"):
        engine.answer("Where? " * 5000, short)


# -- the frameworks --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the documents do not fit")
def test_langchain_and_llama_index_read_the_same(engine, long):
    from langchain_clara import ChatClara
    from llama_index_clara import ClaraLLM

    left_out = long.n_windows - engine.config.generation_top_k
    said = ChatClara(engine=engine, max_tokens=4).invoke(QUESTION, documents=[LONG])
    assert said.response_metadata["windows_left_out"] == left_out
    reply = ClaraLLM(engine=engine, max_tokens=4).reading([LONG]).complete(QUESTION)
    assert reply.raw["windows_left_out"] == left_out
    assert said.content == reply.text == engine.answer(QUESTION, [long], max_tokens=4).text
