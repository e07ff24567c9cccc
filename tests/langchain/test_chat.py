"""The chat model with a tiny model, compared with the engine."""

from __future__ import annotations

import asyncio
import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField

from clara_core import ClaraEngine, ContextOverflow, UnknownOption
from langchain_clara import ChatClara
from langchain_clara._messages import block_from_document
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.langchain.data import HOSTILE, make_documents
from tests.served import behind, served
from tests.tiny import FAMILIES, build

QUESTION = "When was the bridge opened?"
TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("chat")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


async def test_an_answer_is_words_of_a_document_where_asked(model):
    """The weights are random, so a free answer is no text at all."""
    texts, question = ["The oat mill opens at 9.", "Ada Quill sailed to Lisbon."], "Who sailed?"
    for llm, asked in ((ChatClara(model=model, verbatim=True), {}), (ChatClara(model=model), {"verbatim": True})):
        quoted = llm.invoke(question, documents=texts, **asked).content
        assert any(quoted in text for text in texts)
        assert "".join(piece.content for piece in llm.stream(question, documents=texts, **asked)) == quoted
        assert (await llm.ainvoke(question, documents=texts, **asked)).content == quoted
    assert not any(ChatClara(model=model).invoke(question, documents=texts).content in text for text in texts)


@pytest.fixture
def llm(model):
    return ChatClara(model=model, max_tokens=TOKENS)


def as_blocks(documents, question=QUESTION):
    return HumanMessage([*map(block_from_document, documents), {"type": "text", "text": question}])


def memories_of(engine, documents):
    return engine.compress([document.page_content for document in documents])


# -- answers ---------------------------------------------------------------------------------------


def test_answers_as_the_engine_does(engine, llm):
    documents = make_documents()
    expected = engine.answer(QUESTION, memories_of(engine, documents), max_tokens=TOKENS)
    answer = llm.invoke(QUESTION, documents=documents)
    assert answer.content == expected.text != engine.answer(QUESTION, max_tokens=TOKENS).text
    assert answer.usage_metadata == {
        "input_tokens": expected.prompt_tokens + expected.memory_tokens,
        "output_tokens": expected.completion_tokens,
        "total_tokens": expected.prompt_tokens + expected.memory_tokens + expected.completion_tokens,
    }
    assert answer.response_metadata == {
        "model_name": llm.model,
        "model_provider": "clara",
        "finish_reason": expected.finish_reason,
        "memory_tokens": expected.memory_tokens,
        "source_tokens": expected.source_tokens,
        "windows_left_out": 0,
        "saved_tokens": expected.source_tokens - expected.memory_tokens,
        "documents": [
            {"id": "weldenia", "title": "w.txt"}, {"title": "b.txt"}, {}, {"title": "Heights"}, {"id": "long"}
        ],
    }  # fmt: skip


def test_without_documents_it_is_a_plain_chat_model(engine, llm):
    conversation = [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Hi"), HumanMessage("Who?")]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who?"},
    ]
    answer = llm.invoke(conversation)
    assert answer.content == engine.chat(turns, max_tokens=TOKENS).text
    assert answer.response_metadata["memory_tokens"] == 0
    assert answer.response_metadata["documents"] == []


@pytest.mark.parametrize("documents", [None, []])
def test_no_documents_at_all(engine, llm, documents):
    assert llm.invoke(QUESTION, documents=documents).content == engine.answer(QUESTION, max_tokens=TOKENS).text


async def test_every_way_in_and_out_gives_the_same_answer(llm):
    documents = make_documents()
    said = llm.invoke(QUESTION, documents=documents).content
    assert llm.invoke([as_blocks(documents)]).content == said
    assert llm.bind(documents=documents).invoke(QUESTION).content == said
    assert llm.invoke(QUESTION, documents=[document.page_content for document in documents]).content == said
    assert (await llm.ainvoke(QUESTION, documents=documents)).content == said
    assert (await llm.ainvoke([as_blocks(documents)])).content == said
    assert "".join(chunk.content for chunk in llm.stream(QUESTION, documents=documents)) == said
    assert "".join([chunk.content async for chunk in llm.astream([as_blocks(documents)])]) == said
    assert llm.batch([QUESTION, [as_blocks(documents)]])[1].content == said
    assert (await llm.abatch([[as_blocks(documents)], QUESTION]))[0].content == said


def test_documents_both_ways_at_once(llm):
    with pytest.raises(ValueError, match="use one way"):
        llm.invoke([as_blocks(make_documents())], documents=make_documents())


def test_inputs_are_not_changed(llm):
    documents = make_documents()
    message = as_blocks(documents)
    before = copy.deepcopy((documents, message))
    llm.invoke(QUESTION, documents=documents)
    llm.invoke([message])
    list(llm.stream([message]))
    assert (documents, message) == before


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(engine, llm, text):
    document = Document(text)
    expected = engine.answer(text, engine.compress([text]), max_tokens=TOKENS)
    answer = llm.invoke([as_blocks([document], text)])
    assert answer.content == expected.text
    assert answer.usage_metadata["input_tokens"] == expected.prompt_tokens + expected.memory_tokens
    assert "".join(chunk.content for chunk in llm.stream(text, documents=[document])) == expected.text


@pytest.mark.parametrize("family", FAMILIES)
def test_doubled_messages_pass_every_template(tmp_path, family):
    llm = ChatClara(model=str(build(tmp_path, family).folder), max_tokens=4)
    doubled = [
        SystemMessage("s1"), SystemMessage("s2"), HumanMessage("h1"), HumanMessage("h2"),
        AIMessage("a1"), AIMessage("a2"), as_blocks(make_documents()), HumanMessage("h3"),
    ]  # fmt: skip
    assert llm.invoke(doubled).usage_metadata["output_tokens"] > 0


def test_more_documents_than_the_context_holds(llm):
    many = [Document(f"Passage {number} about the town and its bridge.") for number in range(600)]
    with pytest.raises(ContextOverflow, match="600 documents"):
        llm.invoke(QUESTION, documents=many)
    with pytest.raises(ContextOverflow, match="600 documents"):
        list(llm.stream(QUESTION, documents=many))


# -- options ---------------------------------------------------------------------------------------


def test_options_of_the_object_and_of_the_call(engine, model):
    sampled = {"max_tokens": 6, "temperature": 1.5, "top_p": 0.9, "seed": 7}
    expected = engine.answer(QUESTION, **sampled)
    assert ChatClara(model=model, **sampled).invoke(QUESTION).content == expected.text
    llm = ChatClara(model=model, max_tokens=50)
    assert llm.invoke(QUESTION, **sampled).content == expected.text
    assert llm.bind(**sampled).invoke(QUESTION).usage_metadata["output_tokens"] <= 6
    assert llm.invoke(QUESTION, **{**sampled, "seed": 8}).content != expected.text


async def test_stop(model, llm):
    whole = llm.invoke(QUESTION).content
    stop = whole[len(whole) // 2 :][:3]
    until = whole[: whole.index(stop)]
    assert stop.strip()
    answer = llm.invoke(QUESTION, stop=[stop])
    assert (answer.content, answer.response_metadata["finish_reason"]) == (until, "stop")
    assert "".join(chunk.content for chunk in llm.stream(QUESTION, stop=[stop])) == until
    assert (await llm.bind(stop=[stop]).ainvoke(QUESTION)).content == until
    stopping = ChatClara(model=model, max_tokens=TOKENS, stop=[stop])
    assert stopping.invoke(QUESTION).content == until
    assert stopping.invoke(QUESTION, stop=[]).content == whole


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 2}, {"stop": "text"}]
)
def test_values_out_of_range_are_refused_at_once(model, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ChatClara(model=model, **wrong)


def test_unknown_names_are_refused_and_the_nearest_is_named(model, llm):
    with pytest.raises(UnknownOption, match=r"temprature.*did you mean 'temperature'"):
        ChatClara(model=model, temprature=0.5)
    with pytest.raises(UnknownOption, match=r"max_token.*did you mean 'max_tokens'"):
        llm.invoke(QUESTION, max_token=3)


def test_names_that_generic_code_passes_are_accepted():
    llm = ChatClara(api_key="k", timeout=60, max_retries=2, temperature=0, max_tokens=100, stop=[], streaming=True)
    assert llm.temperature == 0
    assert not hasattr(llm, "api_key")


@pytest.mark.parametrize("name", ["tools", "functions", "tool_choice", "response_format"])
def test_tools_are_refused(llm, name):
    with pytest.raises(ValueError, match=f"{name}= cannot be used: ChatClara cannot"):
        llm.invoke(QUESTION, **{name: [{"type": "function"}]})


def test_tools_cannot_be_bound(llm):
    with pytest.raises(NotImplementedError, match="cannot call tools"):
        llm.bind_tools([{"type": "function"}])
    with pytest.raises(NotImplementedError, match="cannot return structured output"):
        llm.with_structured_output({"title": "x", "type": "object"})


async def test_images_are_refused(llm):
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}])
    with pytest.raises(ValueError, match="image_url"):
        llm.invoke([image])
    with pytest.raises(ValueError, match="image_url"):
        await llm.ainvoke([image])


# -- streaming -------------------------------------------------------------------------------------


async def test_chunks_add_up_to_the_message(llm):
    documents = make_documents()
    message = llm.invoke(QUESTION, documents=documents)
    streams = [
        list(llm.stream(QUESTION, documents=documents)),
        [chunk async for chunk in llm.astream(QUESTION, documents=documents)],
    ]
    for chunks in streams:
        assert len(chunks) > 2
        whole = sum(chunks[1:], chunks[0])
        assert whole.content == message.content
        assert whole.usage_metadata == message.usage_metadata
        assert whole.response_metadata == message.response_metadata
        assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
        assert chunks[-1].chunk_position == "last"


def test_streaming_flag_streams_inside_invoke(model, llm):
    seen = []

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token, **kwargs):
            seen.append(token)

    streaming = ChatClara(model=model, max_tokens=TOKENS, streaming=True)
    answer = streaming.invoke(QUESTION, config={"callbacks": [Listener()]})
    assert "".join(seen) == answer.content == llm.invoke(QUESTION).content
    assert len(seen) > 2


def wait_for(condition, seconds=60.0):
    """Whether a condition becomes true within some seconds."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def idle(engine):
    return wait_for(lambda: not behind(engine).stats().running)


async def test_leaving_a_stream_stops_the_work(engine, model):
    long = ChatClara(model=model, max_tokens=3500, temperature=3.0, seed=1)
    stream = long.stream(QUESTION)
    next(stream)
    assert behind(engine).stats().running
    stream.close()
    assert idle(engine)
    pieces = long.astream(QUESTION)
    await anext(pieces)
    assert behind(engine).stats().running
    await pieces.aclose()
    assert await asyncio.to_thread(idle, engine)


async def test_cancelling_a_task_stops_the_work(engine, model):
    long = ChatClara(model=model, max_tokens=3500, temperature=3.0, seed=1)
    task = asyncio.create_task(long.ainvoke(QUESTION))
    assert await asyncio.to_thread(wait_for, lambda: behind(engine).stats().running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(idle, engine)


# -- together --------------------------------------------------------------------------------------


def test_threads_share_one_engine_and_get_their_own_answers(engine, model):
    questions = [f"What of town {number}?" for number in range(12)]
    documents = make_documents()
    alone = [
        engine.answer(question, memories_of(engine, documents[: number % 5]), max_tokens=TOKENS).text
        for number, question in enumerate(questions)
    ]

    def ask(number):
        llm = ChatClara(model=model, max_tokens=TOKENS)
        assert llm.shared_engine is engine
        return llm.invoke(questions[number], documents=documents[: number % 5]).content

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(len(questions)))) == alone


async def test_concurrent_calls_keep_the_loop_ticking(engine, model):
    llm = ChatClara(model=model, max_tokens=60, temperature=3.0, seed=1)
    await llm.ainvoke(QUESTION)
    model = behind(engine).load().model
    with LoopWitness() as witness, wrapped(model, "prefill", witness.around), wrapped(model, "step", witness.around):
        answers = await asyncio.gather(*(llm.ainvoke(f"{QUESTION} {number}") for number in range(30)))
    assert len(answers) == 30


# -- identity and tokens ---------------------------------------------------------------------------


def test_making_one_loads_nothing():
    llm = ChatClara(model="/nowhere/at/all")
    assert "shared_engine" not in llm.__dict__
    assert "nowhere" in repr(llm)


@pytest.mark.in_process
def test_cache_tells_models_and_options_apart(model, llm):
    def key(llm, **call):
        return llm._get_llm_string(**call)

    assert key(llm) == key(ChatClara(model=model, max_tokens=TOKENS))
    assert key(llm) == key(ChatClara(engine=ClaraEngine.from_pretrained(model), max_tokens=TOKENS))
    others = [
        ChatClara(model=model, max_tokens=TOKENS, **{name: value})
        for name, value in (
            ("temperature", 1.0), ("top_p", 0.5), ("seed", 1), ("stop", ["x"]), ("dtype", "bfloat16"),
            ("compression", 16), ("revision", "x"), ("base_model", "/elsewhere"),
        )
    ]  # fmt: skip
    others += [ChatClara(model=model, max_tokens=TOKENS + 1), ChatClara(model="/elsewhere", max_tokens=TOKENS)]
    assert len({key(llm), *map(key, others)}) == len(others) + 1
    assert key(llm, documents=[Document("a")]) != key(llm, documents=[Document("b")])


def test_langchains_cache_serves_the_right_answers(model):
    cache = InMemoryCache()
    llm = ChatClara(model=model, max_tokens=TOKENS, cache=cache)
    documents = make_documents()
    first = llm.invoke([as_blocks(documents)])
    assert len(cache._cache) == 1
    assert llm.invoke([as_blocks(make_documents())]).content == first.content
    assert len(cache._cache) == 1
    assert llm.invoke([as_blocks(documents[:1])]).content != first.content
    assert len(cache._cache) == 2


def test_answers_can_be_written_as_json(llm):
    assert "not_implemented" not in dumps(llm.invoke(QUESTION, documents=make_documents()))


def test_configurable_fields_reload_nothing(engine, model, llm):
    flexible = llm.configurable_fields(temperature=ConfigurableField(id="t"))
    prepared, _ = flexible.prepare({"configurable": {"t": 1.0}})
    assert prepared.temperature == 1.0
    assert prepared.model == model
    assert prepared.shared_engine is engine
    of_engine = ChatClara(engine=engine).configurable_fields(seed=ConfigurableField(id="s"))
    prepared, _ = of_engine.prepare({"configurable": {"s": 3}})
    assert (prepared.seed, prepared.shared_engine) == (3, engine)


def test_counts_tokens_with_its_own_tokenizer(engine, llm):
    for text in ("", "The bridge over the Aln.", *HOSTILE):
        assert llm.get_num_tokens(text) == engine.count_tokens(text)
    conversation = [SystemMessage("Be brief."), as_blocks(make_documents())]
    answer = llm.invoke(conversation)
    assert llm.get_num_tokens_from_messages(conversation) == answer.usage_metadata["input_tokens"]
    with pytest.raises(ValueError, match="tools"):
        llm.get_num_tokens_from_messages(conversation, tools=[{}])
    assert behind(engine).tokenizer.decode(llm.get_token_ids("The bridge over the Aln.")) == "The bridge over the Aln."
    llm.custom_get_token_ids = lambda text: [1] * len(text)
    assert (llm.get_token_ids("abc"), llm.get_num_tokens("abc")) == ([1, 1, 1], 3)


def test_says_to_traces_what_it_is(model):
    llm = ChatClara(model=model, max_tokens=9, stop=["x"])
    params = llm._get_ls_params()
    assert params["ls_provider"] == "clara"
    assert params["ls_model_type"] == "chat"
    assert params["ls_model_name"] == model
    assert params["ls_max_tokens"] == 9
    assert params["ls_stop"] == ["x"]
    assert ChatClara(engine=llm.shared_engine)._get_ls_params()["ls_model_name"] == model
    assert ChatClara()._get_ls_params()["ls_model_name"] == "pocket"
