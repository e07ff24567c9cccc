"""`batch` and `abatch`: one batch of the engine, with separate results for every conversation."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField

from clara_core import ClaraEngine, ContextOverflow
from langchain_clara import ChatClara
from langchain_clara._messages import block_from_document
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.served import behind, served
from tests.tiny import build

QUESTIONS = [f"What is said of town {number}?" for number in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("batch")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def llm(model):
    return ChatClara(model=model, max_tokens=6)


@pytest.fixture
def batch_sizes(engine, monkeypatch):
    """The sizes of the engine's batches."""
    sizes = []
    original = type(engine).achat_batch

    async def counted(self, conversations, **options):
        sizes.append(len(conversations))
        return await original(self, conversations, **options)

    monkeypatch.setattr(type(engine), "achat_batch", counted)
    return sizes


def with_documents(number):
    documents = [Document(f"Town {at} lies on river {at + number}.") for at in range(number % 4)]
    return [HumanMessage([*map(block_from_document, documents), {"type": "text", "text": QUESTIONS[number]}])]


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.events = []

    def on_chat_model_start(self, serialized, messages, *, run_id, **kwargs):
        self.events.append(("start", run_id, messages[0][-1].text))

    def on_llm_end(self, response, *, run_id, **kwargs):
        self.events.append(("end", run_id, response.generations[0][0].text))

    def on_llm_error(self, error, *, run_id, **kwargs):
        self.events.append(("error", run_id, type(error).__name__))


async def both(llm, inputs, config=None, **kwargs):
    yield await asyncio.to_thread(llm.batch, inputs, config, **kwargs)
    yield await llm.abatch(inputs, config, **kwargs)


async def test_a_batch_is_one_batch_and_equals_a_loop(llm, batch_sizes):
    inputs = [with_documents(number) for number in range(7)]
    alone = [llm.invoke(each) for each in inputs]
    batch_sizes.clear()
    async for answers in both(llm, inputs):
        assert [answer.content for answer in answers] == [answer.content for answer in alone]
        assert [answer.usage_metadata for answer in answers] == [answer.usage_metadata for answer in alone]
        assert [answer.response_metadata for answer in answers] == [answer.response_metadata for answer in alone]
    assert batch_sizes == [7, 7]


async def test_max_concurrency_bounds_a_batch(llm, batch_sizes):
    async for answers in both(llm, QUESTIONS, {"max_concurrency": 3}):
        assert len(answers) == 7
    assert batch_sizes == [3, 3, 1, 3, 3, 1]


async def test_options_of_the_call_are_for_all(llm, batch_sizes):
    documents = [Document("Town 3 lies on the Aln.")]
    alone = [llm.invoke(question, documents=documents, max_tokens=3) for question in QUESTIONS]
    async for answers in both(llm.bind(documents=documents, max_tokens=3), QUESTIONS):
        assert [answer.content for answer in answers] == [answer.content for answer in alone]


async def test_each_has_its_own_callbacks(llm):
    for run in (llm.batch, llm.abatch):
        recorders = [Recorder() for _ in QUESTIONS]
        answers = run(QUESTIONS, [{"callbacks": [recorder]} for recorder in recorders])
        answers = await answers if asyncio.iscoroutine(answers) else answers
        for question, answer, recorder in zip(QUESTIONS, answers, recorders, strict=True):
            (start, first, said), (end, second, text) = recorder.events
            assert (start, said, end, text) == ("start", question, "end", answer.content)
            assert first == second


async def test_all_have_started_before_the_first_ends(llm):
    """A trace then shows how long an answer took, not how long it waited for its turn in a loop."""
    recorder = Recorder()
    await llm.abatch(QUESTIONS, {"callbacks": [recorder]})
    kinds = [kind for kind, *_ in recorder.events]
    assert kinds == ["start"] * 7 + ["end"] * 7


async def test_what_a_cache_knows_is_not_asked(model, batch_sizes):
    llm = ChatClara(model=model, max_tokens=6, cache=InMemoryCache())
    first = llm.batch(QUESTIONS[:3])
    batch_sizes.clear()
    async for answers in both(llm, QUESTIONS[:5]):
        assert [answer.content for answer in answers[:3]] == [answer.content for answer in first]
    assert batch_sizes == [2]


async def test_one_that_fails_fails_alone(llm):
    too_much = [HumanMessage([*(block_from_document(f"Town {at}.") for at in range(600))])]
    tools = [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]
    inputs = [QUESTIONS[0], too_much, tools, QUESTIONS[1]]
    async for answers in both(llm, inputs, return_exceptions=True):
        assert answers[0].content == llm.invoke(QUESTIONS[0]).content
        assert isinstance(answers[1], ContextOverflow)
        assert isinstance(answers[2], ValueError)
        assert answers[3].content == llm.invoke(QUESTIONS[1]).content
    with pytest.raises(ContextOverflow):
        llm.batch([QUESTIONS[0], too_much])
    with pytest.raises(ContextOverflow):
        await llm.abatch([too_much, QUESTIONS[0]])
    assert llm.invoke(QUESTIONS[0]).content  # no request is left


async def test_calls_that_stream_do_not_wait_for_each_other(model, llm):
    streaming = ChatClara(model=model, max_tokens=6, streaming=True)
    expected = [llm.invoke(question).content for question in QUESTIONS]
    async for answers in both(streaming, QUESTIONS):
        assert [answer.content for answer in answers] == expected


async def test_few_and_none(llm, batch_sizes):
    async for answers in both(llm, []):
        assert answers == []
    async for answers in both(llm, QUESTIONS[:1]):
        assert answers[0].content == llm.invoke(QUESTIONS[0]).content
    assert llm.batch([QUESTIONS[0]] * 3)[2].content == llm.invoke(QUESTIONS[0]).content


async def test_cancelling_a_batch_stops_the_work(engine, model):
    long = ChatClara(model=model, max_tokens=3500, temperature=3.0, seed=1)
    task = asyncio.create_task(long.abatch(QUESTIONS))

    async def writing(expected):
        for _ in range(12_000):  # a minute
            if bool(behind(engine).stats().running) is expected:
                return True
            await asyncio.sleep(0.005)
        return False

    assert await writing(True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await writing(False)


async def test_batch_inside_a_running_loop_and_its_threads_end(llm):
    before = threading.active_count()
    assert len(llm.batch(QUESTIONS)) == 7  # blocks this loop, as the docs of `batch` say, but works
    assert threading.active_count() <= before + 1  # the engine's own task, if this was the first call


def test_configurable_fields_batch(llm):
    flexible = llm.configurable_fields(max_tokens=ConfigurableField(id="n"))
    answers = flexible.batch(QUESTIONS, {"configurable": {"n": 2}})
    assert all(answer.usage_metadata["output_tokens"] <= 2 for answer in answers)
    mixed = flexible.batch(QUESTIONS[:2], [{"configurable": {"n": 1}}, {"configurable": {"n": 4}}])
    assert [answer.usage_metadata["output_tokens"] for answer in mixed] == [1, 4]


async def test_a_batch_keeps_the_loop_ticking(engine, llm):
    model = behind(engine).load().model
    with LoopWitness() as witness, wrapped(model, "prefill", witness.around), wrapped(model, "step", witness.around):
        answers = await llm.abatch(QUESTIONS * 4)
    assert len(answers) == 28
