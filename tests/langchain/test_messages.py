"""Messages, content blocks and the placeholder of documents in a prompt, without a model."""

from __future__ import annotations

import copy

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from langchain_clara import DocumentsPlaceholder
from langchain_clara._messages import read_messages
from tests.langchain.data import HOSTILE, make_documents

PLAIN = {"type": "text-plain", "mime_type": "text/plain", "text": "Aln", "id": "a", "title": "Rivers"}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Tyne"}, "title": "T"}
CONTENT = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "Tees"}]}}
RESULT = {
    "type": "search_result",
    "source": "https://example.org/wear",
    "title": "Wear",
    "content": [{"type": "text", "text": "Wear"}, {"type": "text", "text": "flows"}],
}


def turns(*messages):
    return [(turn["role"], turn["content"]) for turn in read_messages(messages)[0]]


def texts(*messages, documents=None):
    return [document.text for document in read_messages(messages, documents)[1]]


# -- turns -----------------------------------------------------------------------------------------


def test_roles():
    conversation = [SystemMessage("s"), HumanMessage("h"), AIMessage("a"), HumanMessage("h2")]
    assert turns(*conversation) == [("system", "s"), ("user", "h"), ("assistant", "a"), ("user", "h2")]
    roles = [ChatMessage("s", role="system"), ChatMessage("h", role="user"), ChatMessage("a", role="assistant")]
    assert turns(*roles, HumanMessage("h2")) == turns(*conversation)


def test_messages_in_a_row_become_one():
    doubled = [
        SystemMessage("s1"), SystemMessage("s2"), HumanMessage("h1"), HumanMessage("h2"),
        AIMessage("a1"), AIMessage("a2"), HumanMessage("h3"), SystemMessage("s3"),
    ]  # fmt: skip
    assert turns(*doubled) == [
        ("system", "s1\ns2\ns3"),
        ("user", "h1\nh2"),
        ("assistant", "a1\na2"),
        ("user", "h3"),
    ]


def test_a_system_message_alone_is_the_question():
    assert turns(SystemMessage("Say hello.")) == [("user", "Say hello.")]


def test_a_conversation_that_the_model_opened():
    assert turns(AIMessage("Hello!"), HumanMessage("h")) == [("user", ""), ("assistant", "Hello!"), ("user", "h")]


def test_text_blocks_are_joined_as_langchain_joins_them():
    message = HumanMessage(["one ", {"type": "text", "text": "two"}])
    assert turns(message) == [("user", str(message.text))] == [("user", "one two")]


def test_thoughts_of_other_models_are_left_out():
    thought = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "a"}])
    assert turns(HumanMessage("h"), thought, HumanMessage("h2"))[1] == ("assistant", "a")


@pytest.mark.parametrize(
    "conversation, named",
    [
        ([], "no message"),
        ([HumanMessage("h"), AIMessage("a")], "last message"),
        ([HumanMessage("h"), ToolMessage("t", tool_call_id="1")], "ToolMessage"),
        ([HumanMessage("h"), FunctionMessage("t", name="f")], "FunctionMessage"),
        ([ChatMessage("h", role="judge")], "judge"),
        ([HumanMessage("h"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])], "tool calls"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])], "image_url"),
        ([HumanMessage([{"type": "image", "base64": "aa", "mime_type": "image/png"}])], "image/png"),
        ([HumanMessage([{"type": "file", "base64": "aa", "mime_type": "application/pdf"}])], "application/pdf"),
        ([HumanMessage([{"type": "audio", "url": "x"}])], "audio"),
        ([HumanMessage([{"type": "text-plain", "mime_type": "text/plain", "file_id": "f"}])], "without text"),
        ([HumanMessage([{"type": "document", "source": {"type": "url", "url": "x"}}])], "url"),
        ([HumanMessage([{"type": "document", "source": "x"}])], "source"),
        ([HumanMessage([{"type": "search_result", "source": "x", "content": [{"type": "image"}]}])], "image"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(conversation, named):
    with pytest.raises(ValueError, match=named):
        read_messages(conversation)


# -- documents -------------------------------------------------------------------------------------


def test_every_kind_of_document_block():
    message = HumanMessage([PLAIN, DOCUMENT, CONTENT, RESULT, {"type": "text", "text": "Which?"}])
    (turn,), found = read_messages([message])
    assert turn == {"role": "user", "content": "Which?"}
    assert [(document.text, document.title) for document in found] == [
        ("Aln", "Rivers"),
        ("Tyne", "T"),
        ("Tees", None),
        ("Wear\nflows", "Wear"),
    ]
    assert found[0].account() == {"id": "a", "title": "Rivers"}


def test_documents_of_the_history_stay_and_are_read_once():
    first = HumanMessage([PLAIN, {"type": "text", "text": "One?"}])
    second = HumanMessage([PLAIN, DOCUMENT, {"type": "text", "text": "Two?"}])
    assert texts(first, AIMessage("a"), second) == ["Aln", "Tyne"]


def test_documents_beside_the_messages():
    assert texts(HumanMessage("h"), documents=[Document("d"), "s"]) == ["d", "s"]
    assert texts(HumanMessage("h"), documents=(Document("d"),)) == ["d"]
    assert texts(HumanMessage("h"), documents=[]) == []
    assert texts(HumanMessage([PLAIN]), documents=[]) == ["Aln"]


def test_documents_both_ways_at_once():
    with pytest.raises(ValueError, match=r"\(2\).*\(1\)"):
        read_messages([HumanMessage([PLAIN])], ["x", "y"])


@pytest.mark.parametrize("documents", ["one string", Document("one"), {"page_content": "x"}, [1], [None], [b"x"]])
def test_documents_of_the_wrong_type(documents):
    with pytest.raises(TypeError, match="Document"):
        read_messages([HumanMessage("h")], documents)


def test_messages_are_not_changed():
    conversation = [SystemMessage("s"), HumanMessage([PLAIN, "a"]), HumanMessage([RESULT, "b"])]
    before = copy.deepcopy(conversation)
    read_messages(conversation)
    assert conversation == before


# -- DocumentsPlaceholder --------------------------------------------------------------------------


@pytest.fixture
def prompt():
    return ChatPromptTemplate.from_messages([("system", "s"), DocumentsPlaceholder("context"), ("human", "{input}")])


def test_placeholder_names_its_variable(prompt):
    assert sorted(prompt.input_variables) == ["context", "input"]
    assert "{context}" in prompt.pretty_repr()
    with pytest.raises(KeyError, match="context"):
        prompt.invoke({"input": "q"})


def test_documents_go_through_the_prompt_unchanged(prompt):
    documents = make_documents()
    before = copy.deepcopy(documents)
    messages = prompt.invoke({"context": documents, "input": "q"}).to_messages()
    assert documents == before
    (_, user), found = read_messages(messages)
    assert user["content"] == "q"
    assert [document.text for document in found] == [document.page_content for document in documents]
    assert [document.id for document in found] == [document.id for document in documents]
    assert [document.title for document in found] == ["w.txt", "b.txt", None, "Heights", None]


async def test_hostile_documents_stay_documents(prompt):
    documents = [Document(text) for text in HOSTILE]
    messages = (await prompt.ainvoke({"context": documents, "input": HOSTILE[2]})).to_messages()
    given, found = read_messages(messages)
    assert [turn["content"] for turn in given] == ["s", HOSTILE[2]]
    assert [document.text for document in found] == list(HOSTILE)


def test_same_documents_give_the_same_message(prompt):
    once, again = (prompt.invoke({"context": make_documents(), "input": "q"}) for _ in range(2))
    assert once == again


def test_no_documents_no_message(prompt):
    messages = prompt.invoke({"context": [], "input": "q"}).to_messages()
    assert [message.type for message in messages] == ["system", "human"]
    optional = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context", optional=True), ("human", "{input}")])
    assert len(optional.invoke({"input": "q"}).to_messages()) == 1
    assert len(optional.invoke({"input": "q", "context": ["d"]}).to_messages()) == 2


@pytest.mark.parametrize("context", ["text", Document("d"), None, 3, [None]])
def test_placeholder_wants_a_list_of_documents(prompt, context):
    with pytest.raises(TypeError, match="Document"):
        prompt.invoke({"context": context, "input": "q"})


def test_placeholder_beside_a_history():
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), DocumentsPlaceholder("context"), ("human", "{input}")]
    )
    messages = prompt.invoke({"history": [("human", "h"), ("ai", "a")], "context": ["d"], "input": "q"}).to_messages()
    given, found = read_messages(messages)
    assert [turn["content"] for turn in given] == ["h", "a", "q"]
    assert [document.text for document in found] == ["d"]
