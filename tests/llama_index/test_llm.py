"""ClaraLLM, compared with the engine: completions, conversations, streams, documents."""

from __future__ import annotations

import asyncio
import time

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode

from clara_core import ContextOverflow
from clara_core.model.chat_format import alternating
from llama_index_clara import ClaraLLM
from tests.engines import Counter
from tests.llama_index.doubles import QUESTION, TEXTS, nodes
from tests.served import behind

TURNS = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Hello."),
    ChatMessage(role="assistant", content="Hi."),
    ChatMessage(role="user", content=QUESTION),
]


@pytest.fixture
def llm(model):
    return ClaraLLM(model=model, max_tokens=8)


async def every_way(llm, prompt):
    """The text of an answer from all eight calls; the contract of streams is checked, too."""
    chat = [ChatMessage(content=prompt)]
    texts = [llm.complete(prompt).text, (await llm.acomplete(prompt)).text]
    texts += [llm.chat(chat).message.content, (await llm.achat(chat)).message.content]
    streams = [
        [(piece.text, piece.delta) for piece in llm.stream_complete(prompt)],
        [(piece.text, piece.delta) async for piece in await llm.astream_complete(prompt)],
        [(piece.message.content, piece.delta) for piece in llm.stream_chat(chat)],
        [(piece.message.content, piece.delta) async for piece in await llm.astream_chat(chat)],
    ]
    for stream in streams:
        assert len(stream) > 1
        for at, (text, _) in enumerate(stream):
            assert text == "".join(delta for _, delta in stream[: at + 1])
        texts.append(stream[-1][0])
    return texts


async def test_all_calls_say_what_the_engine_says(llm, engine):
    assert set(await every_way(llm, QUESTION)) == {engine.answer(QUESTION, max_tokens=8).text}


async def test_all_calls_read_documents(llm, engine):
    wanted = engine.answer(QUESTION, engine.remember(list(TEXTS)), max_tokens=8).text
    assert set(await every_way(llm.reading(nodes()), QUESTION)) == {wanted}
    assert llm.complete(QUESTION).raw["usage"]["memory_tokens"] == 0  # the other object did not change


def test_documents_may_be_nodes_with_scores_and_strings(llm, engine):
    node = TextNode(text=TEXTS[0], metadata={"a": 1})
    reader = llm.reading([node, "plain"])
    memories = engine.remember([f"a: 1\n\n{TEXTS[0]}", "plain"])
    assert reader.complete(QUESTION).text == engine.answer(QUESTION, memories, max_tokens=8).text
    with pytest.raises(TypeError, match="got one TextNode"):
        llm.reading(node)
    with pytest.raises(TypeError, match=r"documents\[1\].*int"):
        llm.reading(["a", 1])


def test_conversation(llm, engine):
    turns = [{"role": message.role.value, "content": message.content} for message in TURNS]
    assert llm.chat(TURNS).message.content == engine.chat(turns, max_tokens=8).text


def test_turns_of_odd_shapes():
    def turns(*pairs):
        return [{"role": role, "content": content} for role, content in pairs]

    assert alternating(turns(("user", "a"), ("user", "b"))) == turns(("user", "a\nb"))
    assert alternating(turns(("user", "a"), ("system", "s"), ("system", "t"))) == turns(
        ("system", "s\nt"), ("user", "a")
    )
    assert alternating(turns(("system", "s"))) == turns(("user", "s"))
    assert alternating(turns(("assistant", "x"), ("user", "a"))) == turns(
        ("user", ""), ("assistant", "x"), ("user", "a")
    )
    for bad in ([], turns(("user", "a"), ("assistant", "x"))):
        with pytest.raises(ValueError, match=r"no message|model's own"):
            alternating(bad)


def test_what_cannot_be_read_is_refused(llm):
    with pytest.raises(ValueError, match="cannot call tools"):
        llm.chat([*TURNS, ChatMessage(role=MessageRole.TOOL, content="42")])
    with pytest.raises(ValueError, match="block of type 'image'"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(url="http://example.org/a.png")])])


def test_options_of_object_and_call(model, engine, llm):
    assert ClaraLLM(model=model, max_tokens=3).complete(QUESTION).raw["finish_reason"] == "length"
    sampled = {"temperature": 2.0, "seed": 5, "top_p": 0.9, "max_tokens": 6}
    wanted = engine.answer(QUESTION, **sampled).text
    assert ClaraLLM(model=model, **sampled).complete(QUESTION).text == wanted
    assert llm.complete(QUESTION, **sampled).text == wanted
    stopped = wanted[2:4]
    assert llm.complete(QUESTION, **sampled, stop=[stopped]).text == wanted[: wanted.index(stopped)]
    for call in (llm.complete, llm.stream_complete):
        with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
            call(QUESTION, max_token=5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ClaraLLM(model=model, max_tokens=0)


def test_account_is_numbers(llm, engine):
    raw = llm.reading(nodes(2)).complete(QUESTION).raw
    usage = raw["usage"]
    assert usage["memory_tokens"] == 2 * engine.n_mem
    assert usage["source_tokens"] == sum(memory.source_tokens for memory in engine.remember(list(TEXTS[:2])))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert raw["finish_reason"] in ("stop", "length")
    last = list(llm.stream_complete(QUESTION))[-1]
    assert last.raw["usage"]["completion_tokens"] > 0


def test_token_counting_handler_counts(llm):
    counter = TokenCountingHandler(tokenizer=llm.tokenizer)
    llm.callback_manager = CallbackManager([counter])
    usage = llm.complete(QUESTION).raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]


def test_metadata(llm, engine):
    assert llm.metadata.context_window == behind(engine).load().model.context
    assert llm.metadata.num_output == 8
    assert llm.metadata.model_name == llm.model
    Settings.tokenizer = llm.tokenizer
    assert len(Settings.tokenizer(QUESTION)) == engine.count_tokens(QUESTION)


def test_prompt_that_does_not_fit_says_both_numbers(llm):
    with pytest.raises(ContextOverflow, match=r"\d+ positions.*holds 4096"):
        llm.complete("word " * 5000)


async def test_events_of_every_call(llm, recorder):
    await every_way(llm, "Hi")
    names = recorder.names
    for kind in ("Completion", "Chat"):
        assert names.count(f"LLM{kind}StartEvent") == names.count(f"LLM{kind}EndEvent") == 4
        assert names.count(f"LLM{kind}InProgressEvent") > 4
    said = recorder.events[0].model_dict  # before llama-index-core 0.14.23 all fields
    assert said.get("model_name", said.get("model")) == llm.model


async def test_predict_and_templates(llm, engine):
    template = PromptTemplate("Say: {word}")
    wanted = engine.answer("Say: ship", max_tokens=8).text
    assert llm.predict(template, word="ship") == await llm.apredict(template, word="ship") == wanted
    assert "".join(llm.stream(template, word="ship")) == wanted
    assert "".join([piece async for piece in await llm.astream(template, word="ship")]) == wanted


def test_system_prompt_is_a_system_turn(model, engine):
    llm = ClaraLLM(model=model, max_tokens=8, system_prompt="Be brief.")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert llm.predict(PromptTemplate("{x}"), x="Hi") == engine.chat(turns, max_tokens=8).text


def idle(engine):
    """Whether no answer is running."""
    worker = behind(engine)._worker
    deadline = time.monotonic() + 60
    while worker._has_work() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not worker._has_work()


LONG = {"max_tokens": 3000, "temperature": 1.5, "seed": 1}  # answers never end by themselves


def test_leaving_a_stream_stops_the_work(llm, engine):
    with Counter(behind(engine).load().model, "step") as steps:
        stream = llm.stream_complete(QUESTION, **LONG)
        next(stream)
        stream.close()
        assert idle(engine)
        assert steps.calls < 500


async def test_leaving_an_async_stream_stops_the_work(llm, engine):
    with Counter(behind(engine).load().model, "step") as steps:
        stream = await llm.astream_chat(TURNS, **LONG)
        await anext(stream)
        await stream.aclose()
        assert await asyncio.to_thread(idle, engine)
        assert steps.calls < 500


async def test_cancelling_stops_the_work(llm, engine):
    with Counter(behind(engine).load().model, "step") as steps:
        task = asyncio.create_task(llm.acomplete(QUESTION, **LONG))
        await asyncio.to_thread(steps.wait_for, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(idle, engine)
        assert steps.calls < 500


@pytest.mark.in_process
async def test_error_in_the_worker_reaches_whoever_listens(llm, engine):
    from tests.engines import wrapped

    def broken(original, *args, **kwargs):
        raise RuntimeError("device on fire")

    with wrapped(engine.load().model, "step", broken):
        with pytest.raises(RuntimeError, match="on fire"):
            list(llm.stream_complete(QUESTION))
        with pytest.raises(RuntimeError, match="on fire"):
            [piece async for piece in await llm.astream_complete(QUESTION)]
    assert llm.complete(QUESTION).text
