"""ClaraLLM and conversations: documents, system prompts, messages of other components, refused content."""

from __future__ import annotations

import io

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.prompts import PromptTemplate

from llama_index_clara import ClaraLLM
from tests.llama_index.doubles import QUESTION, TEXTS
from tests.llama_index.test_llm import every_way


@pytest.fixture
def llm(model):
    return ClaraLLM(model=model, max_tokens=8)


LETTER = "The letter of Ada Quill was sealed in 1803."


def block(text, **fields):
    return DocumentBlock(data=text.encode(), title="letter", **fields)


async def test_documents_in_messages_are_read_as_memories(llm, engine):
    wanted = engine.answer(QUESTION, engine.remember([LETTER]), max_tokens=8).text
    ways = (
        [block(LETTER), TextBlock(text=QUESTION)],
        [TextBlock(text=QUESTION), block(LETTER, document_mimetype="text/plain")],
        [DocumentBlock(data=io.BytesIO(LETTER.encode()), document_mimetype="text/markdown"), TextBlock(text=QUESTION)],
        [CitableBlock(title="Letter", source="archive", content=[TextBlock(text=LETTER)]), TextBlock(text=QUESTION)],
        [CitableBlock(title="Letter", source="archive", content=[block(LETTER)]), TextBlock(text=QUESTION)],
    )
    for blocks in ways:
        messages = [ChatMessage(role="user", blocks=blocks)]
        assert llm.chat(messages).message.content == wanted
        assert (await llm.achat(messages)).message.content == wanted
        assert list(llm.stream_chat(messages))[-1].message.content == wanted
        assert [piece async for piece in await llm.astream_chat(messages)][-1].message.content == wanted
        assert llm.chat(messages).raw["usage"]["memory_tokens"] == engine.n_mem


def test_documents_of_a_conversation(llm, engine):
    """A repeated document is read once; a message with only documents is not a question; `reading` comes first."""
    history = [
        ChatMessage(role="user", blocks=[block(LETTER)]),
        ChatMessage(role="user", blocks=[TextBlock(text="Who sealed it?"), block(LETTER)]),
        ChatMessage(role="assistant", content="Ada."),
        ChatMessage(role="user", content=QUESTION),
    ]
    turns = [{"role": m.role.value, "content": m.content} for m in history[1:]]
    assert llm.chat(history).message.content == engine.chat(turns, engine.remember([LETTER]), max_tokens=8).text
    both = engine.chat(turns, engine.remember([TEXTS[1], LETTER]), max_tokens=8)
    assert llm.reading([TEXTS[1]]).chat(history).message.content == both.text
    with pytest.raises(ValueError, match="documents and no question"):
        llm.chat(history[:1])


def test_what_others_left_in_a_history_is_passed_over(llm, engine):
    history = [
        ChatMessage(role="user", content="Hello."),
        ChatMessage(
            role="assistant",
            blocks=[
                ThinkingBlock(content="Greet back."),
                TextBlock(text="Hi."),
                CitationBlock(cited_content="Hi", source="s", title="t", additional_location_info={}),
            ],
        ),
        ChatMessage(
            role="user", blocks=[TextBlock(text=QUESTION), CachePoint(cache_control=CacheControl(type="ephemeral"))]
        ),
    ]
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    assert llm.chat(history).message.content == engine.chat(turns, max_tokens=8).text


@pytest.mark.parametrize(
    "wrong, words",
    [
        (DocumentBlock(path="/etc/hostname", title="names"), r"'names' points at '/etc/hostname', which is not opened"),
        (DocumentBlock(url="https://example.org/a.pdf"), "points at 'https://example.org/a.pdf'"),
        (DocumentBlock(data=b"%PDF-1.7 \xff"), "application/pdf, and only text"),
        (DocumentBlock(data=b"\xff\xfea b"), "not text in UTF-8"),
        (DocumentBlock(data=b""), "is empty"),
        (CitableBlock(title="t", source="s", content=[ImageBlock(url="https://example.org/a.png")]), "type 'image'"),
        (ToolCallBlock(tool_name="weather"), "calls the tool 'weather'.*function calling"),
    ],
)
def test_documents_that_are_no_text_are_refused(llm, wrong, words):
    with pytest.raises(ValueError, match=words):
        llm.chat([ChatMessage(role="user", blocks=[wrong, TextBlock(text=QUESTION)])])
    calls = [ChatMessage(role="user", content="x"), ChatMessage(additional_kwargs={"tool_calls": ["x"]}, content="")]
    with pytest.raises(ValueError, match="cannot call tools"):
        llm.chat(calls)


async def test_system_prompts_count(model, engine):
    """The prompt of the object or of the call is used in all eight calls; one in the conversation replaces it."""
    system, ask = "Answer with a name.", {"role": "user", "content": QUESTION}
    wanted = engine.chat([{"role": "system", "content": system}, ask], max_tokens=8)
    assert wanted.prompt_tokens > engine.chat([ask], max_tokens=8).prompt_tokens
    named = ClaraLLM(model=model, max_tokens=8, system_prompt=system)
    assert set(await every_way(named, QUESTION)) == {wanted.text}
    assert named.predict(PromptTemplate("{q}"), q=QUESTION) == wanted.text
    plain = ClaraLLM(model=model, max_tokens=8)
    messages = [ChatMessage(content=QUESTION)]
    for answer in (
        plain.complete(QUESTION, system_prompt=system),
        plain.chat(messages, system_prompt=system),
        await plain.acomplete(QUESTION, system_prompt=system),
        list(plain.stream_complete(QUESTION, system_prompt=system))[-1],
        list(plain.stream_chat(messages, system_prompt=system))[-1],
    ):
        assert answer.raw["usage"]["prompt_tokens"] == wanted.prompt_tokens
    own = ClaraLLM(model=model, max_tokens=8, system_prompt="Another.")
    assert own.chat([ChatMessage(role="system", content=system), *messages]).message.content == wanted.text
    unasked = engine.chat([ask], max_tokens=8).prompt_tokens
    assert own.complete(QUESTION, system_prompt="").raw["usage"]["prompt_tokens"] == unasked
    assert own.complete(QUESTION, formatted=True).raw["usage"]["prompt_tokens"] == unasked


def test_the_wrapper_of_questions_counts(model, engine):
    wrapped = ClaraLLM(model=model, max_tokens=8, query_wrapper_prompt=PromptTemplate("In a word: {query_str}"))
    assert wrapped.complete(QUESTION).text == engine.answer(f"In a word: {QUESTION}", max_tokens=8).text
    with pytest.raises(ValueError, match="messages_to_prompt= would do nothing"):
        ClaraLLM(model=model, messages_to_prompt=str)
