"""Common first uses of the chat model, the reranker and the text splitter."""

from __future__ import annotations

import json

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

import clara_core
import langchain_clara
from clara_core import ClaraEngine
from langchain_clara import (
    ChatClara,
    ClaraContextMiddleware,
    ClaraRerank,
    ClaraRetriever,
    ClaraTextSplitter,
    DocumentsPlaceholder,
    create_clara_documents_chain,
)
from tests.langchain.data import bundled_or_tiny, tiny
from tests.parity_data import PARITY

QUESTION = "What does the mill at Orre grind?"
DOCUMENTS = [
    Document("The mill at Orre grinds oats.", id="mill", metadata={"town": "Orre", "year": 1811}),
    Document("Ferries to Skarn leave at noon.", id="ferry", metadata={"town": "Skarn", "year": 1954}),
    Document("The choir of Orre sings on Sundays.", id="choir", metadata={"town": "Orre", "year": 1990}),
]
PROMPT = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])


@pytest.fixture(scope="module")
def llm():
    return ChatClara(model=bundled_or_tiny(), max_tokens=8)


@pytest.fixture(scope="module")
def retriever():
    return ClaraRetriever.from_documents(DOCUMENTS, model=bundled_or_tiny(), k=2)


# -- counting a history ----------------------------------------------------------------------------

CALL = AIMessage("", tool_calls=[{"name": "look", "args": {"place": "Orre"}, "id": "1"}])
HISTORIES = {
    "empty": [],
    "system alone": [SystemMessage("Be brief.")],
    "ends with the model": [HumanMessage("Where is Orre?"), AIMessage("In the north.")],
    "begins with the model": [AIMessage("Welcome.")],
    "ends with a call of a tool": [HumanMessage("Where is Orre?"), CALL],
    "ends with the result of a tool": [HumanMessage("Where is Orre?"), CALL, ToolMessage("north", tool_call_id="1")],
    "a role of its own": [ChatMessage("Order!", role="judge")],
    "a picture": [HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}, "What is it?"])],
    "a document elsewhere": [HumanMessage([{"type": "document", "source": {"type": "url", "url": "x"}}, "Read it."])],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_every_part_of_every_history_is_counted(llm, history):
    counts = [llm.get_num_tokens_from_messages(history[:length]) for length in range(len(history) + 1)]
    assert counts[0] == 0
    assert counts == sorted(set(counts)), "every message takes room"


def test_a_history_that_can_be_answered_counts_as_its_answer_says(llm):
    history = [SystemMessage("Be brief."), HumanMessage("Where?"), AIMessage("North."), HumanMessage(QUESTION)]
    assert llm.get_num_tokens_from_messages(history) == llm.invoke(history).usage_metadata["input_tokens"]


def test_calls_and_results_of_tools_count_what_they_say(llm):
    def count(text):
        return llm.get_num_tokens_from_messages([HumanMessage("Go."), ToolMessage(text, tool_call_id="1")])

    assert count("north " * 20) > count("north") + 15
    long = CALL.model_copy(update={"tool_calls": [{"name": "look", "args": {"place": "Orre " * 20}, "id": "1"}]})
    assert llm.get_num_tokens_from_messages([long]) > llm.get_num_tokens_from_messages([CALL]) + 15


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_trim_messages_counts_with_the_model(llm, strategy):
    history = [
        SystemMessage("Be brief."),
        HumanMessage("Hello there"),
        AIMessage("Hi."),
        HumanMessage("Where is Orre?"),
    ]
    limit = llm.get_num_tokens_from_messages(history) - 1
    kept = trim_messages(history, max_tokens=limit, token_counter=llm, strategy=strategy)
    assert 0 < len(kept) < len(history)
    assert llm.get_num_tokens_from_messages(kept) <= limit
    ends = [*history, CALL, ToolMessage("north", tool_call_id="1")]
    assert trim_messages(ends, max_tokens=10_000, token_counter=llm, strategy=strategy) == ends


@pytest.mark.parametrize("name", ["empty", "ends with the model", "ends with the result of a tool", "a picture"])
async def test_what_can_be_counted_is_not_always_answered(llm, name):
    with pytest.raises(ValueError, match=r"no message|model's own|tool|image_url"):
        llm.invoke(HISTORIES[name])
    with pytest.raises(ValueError, match=r"no message|model's own|tool|image_url"):
        await llm.ainvoke(HISTORIES[name])


# -- documents as iterators ------------------------------------------------------------------------

ONCE = {
    "generator": lambda: (document for document in DOCUMENTS),
    "iterator": lambda: iter(DOCUMENTS),
    "map": lambda: map(Document, ["a"]),
}


@pytest.mark.parametrize("once", ONCE.values(), ids=ONCE)
async def test_documents_that_can_be_read_once_are_refused_everywhere(llm, once):
    """The second question of a batch, and the next call of a bound model, would silently read no documents."""
    words = r"documents must be a list of Documents, got \w+; list\(\.\.\.\) makes one"
    with pytest.raises(TypeError, match=words):
        llm.batch([QUESTION, QUESTION], documents=once())
    with pytest.raises(TypeError, match=words):
        await llm.abatch([QUESTION, QUESTION], documents=once())
    with pytest.raises(TypeError, match=words):
        llm.bind(documents=once())
    with pytest.raises(TypeError, match=words):
        llm.invoke(QUESTION, documents=once())
    with pytest.raises(TypeError, match=words):
        list(llm.stream(QUESTION, documents=once()))
    with pytest.raises(TypeError, match=words):
        list(llm.batch_as_completed([QUESTION, QUESTION], documents=once()))
    # A cache would distinguish calls by the address of a generator, which a later generator may have, too.
    with pytest.raises(TypeError, match=words):
        llm.model_copy(update={"cache": InMemoryCache()}).invoke(QUESTION, documents=once())


async def test_documents_of_prompts_and_chains_are_lists_too(llm):
    words = r"'context' must be a list of Documents, got generator; list\(\.\.\.\) makes one"
    filled = {"context": (document for document in DOCUMENTS), "question": QUESTION, "input": QUESTION}
    for chain in (
        PROMPT | llm,
        create_clara_documents_chain(llm),
        create_clara_documents_chain(llm, document_prompt=PromptTemplate.from_template("{page_content}")),
    ):
        with pytest.raises(TypeError, match=words):
            chain.batch([filled, filled])
        with pytest.raises(TypeError, match=words):
            await chain.ainvoke(filled)
    rerank = ClaraRerank(model=bundled_or_tiny())
    with pytest.raises(TypeError, match="documents must be a list of Documents, got generator"):
        rerank.invoke({"question": QUESTION, "documents": filled["context"]})


def test_a_list_serves_every_question_and_every_call(llm):
    bound = llm.bind(documents=tuple(DOCUMENTS[:2]))
    answers = [
        *llm.batch([QUESTION, QUESTION], documents=DOCUMENTS[:2]),
        bound.invoke(QUESTION),
        bound.invoke(QUESTION),
    ]
    assert len({answer.text for answer in answers}) == 1
    for answer in answers:
        assert [read["id"] for read in answer.response_metadata["documents"]] == ["mill", "ferry"]


def test_strings_are_documents_under_a_document_prompt_too(llm):
    prompt = PromptTemplate.from_template("Note: {page_content}")
    chain = create_clara_documents_chain(llm, document_prompt=prompt)
    texts = [document.page_content for document in DOCUMENTS]
    assert chain.invoke({"context": texts, "input": QUESTION}) == chain.invoke(
        {"context": DOCUMENTS, "input": QUESTION}
    )


def test_stop_strings_that_can_be_read_once_are_refused(llm):
    with pytest.raises(TypeError, match="stop must be a list of strings, got list_iterator"):
        llm.bind(stop=iter(["o"]))


# -- tools and schemas -----------------------------------------------------------------------------


class Year(BaseModel):
    """A year."""

    year: int


async def test_tools_and_schemas_are_refused_with_a_way_out(llm, retriever, monkeypatch):
    def no_engine(*_args, **_kwargs):
        raise AssertionError("no model may run")

    monkeypatch.setattr(ClaraEngine, "chat_batch", no_engine)
    monkeypatch.setattr(ClaraEngine, "achat_batch", no_engine)
    tool = create_retriever_tool(retriever, "search", "Search the town's papers.")
    with pytest.raises(NotImplementedError, match=r"cannot call tools.*create_retriever_tool.*ClaraContextMiddleware"):
        llm.bind_tools([tool])
    with pytest.raises(NotImplementedError, match=r"cannot return structured output.*output parser"):
        llm.with_structured_output(Year)
    asked = {"messages": [("human", QUESTION)]}
    with pytest.raises(NotImplementedError, match="cannot call tools"):
        create_agent(llm, tools=[tool]).invoke(asked)
    with pytest.raises(NotImplementedError, match="structured output"):
        await create_agent(llm, tools=[], response_format=Year).ainvoke(asked)
    with pytest.raises(ValueError, match="tools= cannot be used: ChatClara cannot call tools"):
        llm.bind(tools=[{"name": "search"}])
    with pytest.raises(ValueError, match="response_format= cannot be used: ChatClara cannot return structured output"):
        llm.bind(response_format={"type": "json_object"})
    with pytest.raises(TypeError, match=r"max_token.*did you mean 'max_tokens'"):
        llm.bind(max_token=4)


def test_no_tools_are_no_reason_to_refuse(llm):
    assert llm.bind_tools([]).invoke(QUESTION).text == llm.invoke(QUESTION).text


# -- profile and identity --------------------------------------------------------------------------


@pytest.mark.in_process
@pytest.mark.parametrize("name", ["bundled", "tiny", "e2e", "instruct", "base"])
def test_profile_says_what_the_engine_says(name):
    options = {"model": {"bundled": bundled_or_tiny, "tiny": tiny}[name]()} if name in ("bundled", "tiny") else {}
    if not options:
        options = {"model": str(PARITY / name / "checkpoint"), "base_model": str(PARITY / name / "base")}
    llm = ChatClara(**options)
    context = ClaraEngine.from_pretrained(**options).context
    assert llm.profile["name"] == options["model"]
    assert llm.profile["max_input_tokens"] == llm.profile["max_output_tokens"] == context
    assert ChatClara(engine=llm.shared_engine).profile == llm.profile
    assert not llm.profile["tool_calling"]


def hub_cache(folder, repo, files):
    """A repository in the cache of the Hub's client, as after a download."""
    root = folder / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        path = root / "snapshots" / ("0" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def test_profile_of_a_hub_model_from_its_cache(tmp_path):
    config = json.loads((PARITY / "e2e" / "checkpoint" / "config.json").read_text())
    options = {"model": "someone/clara", "base_model": "someone/decoder", "cache_dir": str(tmp_path)}
    assert "max_input_tokens" not in ChatClara(**options).profile
    hub_cache(tmp_path, "someone/clara", {"config.json": config})
    assert "max_input_tokens" not in ChatClara(**options).profile
    decoder = {"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": None}
    hub_cache(tmp_path, "someone/decoder", {"config.json": decoder})
    assert ChatClara(**options).profile["max_input_tokens"] == 32768


@pytest.mark.in_process
def test_a_middleware_that_needs_the_size_of_the_context(llm):
    summarize = SummarizationMiddleware(llm, trigger=("fraction", 0.01), keep=("messages", 1))
    history = [("human", "We spoke of oats, rye and barley. " * 4), ("ai", "Yes."), ("human", QUESTION)]
    messages = create_agent(llm, tools=[], middleware=[summarize]).invoke({"messages": history})["messages"]
    assert [message.text for message in messages][1] == QUESTION
    assert messages[0].text.startswith("Here is a summary")


async def test_answers_name_their_provider(llm):
    def merged(chunks):
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return whole

    answers = [
        llm.invoke(QUESTION),
        await llm.ainvoke(QUESTION),
        *llm.batch([QUESTION, QUESTION]),
        merged(list(llm.stream(QUESTION))),
        merged([chunk async for chunk in llm.astream(QUESTION)]),
    ]
    assert {answer.response_metadata["model_provider"] for answer in answers} == {"clara"}


def test_versions():
    assert langchain_clara.__version__ == clara_core.__version__
    assert langchain_clara.__version__[0].isdigit()
    assert "__version__" in dir(langchain_clara)


# -- the wrong kind of part ------------------------------------------------------------------------


async def test_a_store_where_a_retriever_belongs():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=6))
    words = r"retriever must be a retriever or a function, got InMemoryVectorStore; use store.as_retriever\(\)"
    with pytest.raises(TypeError, match=words):
        ClaraRerank(model=bundled_or_tiny()).as_runnable(store)
    with pytest.raises(TypeError, match=words):
        ClaraContextMiddleware(store)


async def test_a_function_is_a_retriever(llm):
    middleware = ClaraContextMiddleware(lambda _question: DOCUMENTS, k=1)
    agent = create_agent(llm, tools=[], middleware=[middleware])
    asked = {"messages": [("human", QUESTION)]}
    for result in (agent.invoke(asked), await agent.ainvoke(asked)):
        assert result["messages"][-1].response_metadata["documents"] == [{"id": "mill"}]


async def test_reranking_the_wrong_things():
    rerank = ClaraRerank(model=bundled_or_tiny())
    for documents, query, named in [
        (["text"], QUESTION, r"documents\[0\] must be a Document, got str"),
        ("text", QUESTION, "documents must be a list of Documents, got one str"),
        (DOCUMENTS, {"question": QUESTION}, "the question must be a string, got dict"),
        ([], HumanMessage(QUESTION), "the question must be a string, got HumanMessage"),
    ]:
        with pytest.raises(TypeError, match=named):
            rerank.compress_documents(documents, query)
        with pytest.raises(TypeError, match=named):
            await rerank.acompress_documents(documents, query)


def test_splitting_the_wrong_things():
    splitter = ClaraTextSplitter(model=bundled_or_tiny())
    with pytest.raises(TypeError, match="texts must be a list of strings, got one str"):
        splitter.create_documents("a text, not a document a letter")
    with pytest.raises(TypeError, match=r"documents\[0\] must be a Document, got str; texts go to"):
        splitter.split_documents(["text"])
    with pytest.raises(TypeError, match="documents must be a list of Documents, got one Document"):
        splitter.split_documents(DOCUMENTS[0])


def test_splitting_what_can_be_walked_through_once():
    splitter = ClaraTextSplitter(model=bundled_or_tiny(), add_start_index=True)
    pieces = splitter.create_documents((d.page_content for d in DOCUMENTS), (d.metadata for d in DOCUMENTS))
    assert pieces == splitter.split_documents(document for document in DOCUMENTS)
    assert [piece.metadata["town"] for piece in pieces] == ["Orre", "Skarn", "Orre"]
    assert "start_index" not in DOCUMENTS[0].metadata


# -- an answer without text ------------------------------------------------------------------------


async def test_an_answer_without_text_is_an_answer():
    """A model may end immediately; the usage shows it, and nothing fails."""
    llm = ChatClara(model=tiny(), max_tokens=8)
    first = llm.invoke(QUESTION).text[0]
    silent = llm.bind(stop=[first])
    for answer in (silent.invoke(QUESTION), await silent.ainvoke(QUESTION), *silent.batch([QUESTION, QUESTION])):
        assert (answer.text, answer.response_metadata["finish_reason"]) == ("", "stop")
    chunks = list(silent.stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == ""
    assert [chunk.response_metadata["finish_reason"] for chunk in chunks if chunk.response_metadata] == ["stop"]
