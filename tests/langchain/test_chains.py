"""The documents chain, the middleware of agents, and the text splitter."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver

from clara_core import ClaraEngine, UnknownOption
from langchain_clara import (
    ChatClara,
    ClaraContextMiddleware,
    ClaraRetriever,
    ClaraTextSplitter,
    DocumentsPlaceholder,
    create_clara_documents_chain,
)
from tests.langchain.data import HOSTILE, make_documents
from tests.served import served
from tests.tiny import FAMILIES, build

QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("chains")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def llm(model):
    return ChatClara(model=model, max_tokens=8)


def said(engine, documents, turns=QUESTION):
    turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    return engine.chat(turns, engine.compress([d.page_content for d in documents]), max_tokens=8).text


# -- the documents chain ---------------------------------------------------------------------------


async def test_answers_from_documents(engine, llm):
    chain = create_clara_documents_chain(llm)
    given = {"context": make_documents(), "input": QUESTION}
    expected = said(engine, make_documents())
    assert chain.invoke(given) == await chain.ainvoke(given) == expected
    assert "".join(chain.stream(given)) == "".join([piece async for piece in chain.astream(given)]) == expected
    assert len(list(chain.stream(given))) > 2
    assert chain.batch([given, {**given, "context": []}]) == [expected, said(engine, [])]


def test_history(engine, llm):
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    given = {"context": make_documents(), "input": QUESTION, "chat_history": history}
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTION},
    ]
    assert create_clara_documents_chain(llm).invoke(given) == said(engine, make_documents(), turns)


def test_a_prompt_that_was_made_for_stuffing(engine, llm):
    """{context} in its text stays empty: the documents are read as memories, not pasted."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Use this context:\n\n{context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
    )
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    chain = create_clara_documents_chain(llm, prompt)
    turns = [
        {"role": "system", "content": "Use this context:\n\n"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTION},
    ]
    given = {"context": make_documents(), "input": QUESTION, "chat_history": history}
    assert chain.invoke(given) == said(engine, make_documents(), turns)
    plain = PromptTemplate.from_template("{context}\n\nQuestion: {input}")
    answer = create_clara_documents_chain(llm, plain).invoke({"context": make_documents(), "input": QUESTION})
    assert answer == said(engine, make_documents(), f"\n\nQuestion: {QUESTION}")


def test_a_prompt_that_places_the_documents(engine, llm):
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be brief."), DocumentsPlaceholder("sources"), ("human", "{question}")]
    )
    chain = create_clara_documents_chain(llm, prompt, document_variable_name="sources")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    given = {"sources": make_documents(), "question": QUESTION}
    assert chain.invoke(given) == said(engine, make_documents(), turns)


def test_document_prompt_and_parser(engine, llm):
    class Shout(StrOutputParser):
        def parse(self, text):
            return text.upper()

    documents = [Document("The bridge.", metadata={"title": "Aln"})]
    before = copy.deepcopy(documents)
    chain = create_clara_documents_chain(
        llm, output_parser=Shout(), document_prompt=PromptTemplate.from_template("{title}: {page_content}")
    )
    answer = chain.invoke({"context": documents, "input": QUESTION})
    assert answer == said(engine, [Document("Aln: The bridge.")]).upper()
    assert documents == before


def test_missing_documents_are_named(llm):
    with pytest.raises(KeyError, match="no 'context' among 'input'"):
        create_clara_documents_chain(llm).invoke({"input": QUESTION})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_documents_and_questions(engine, llm, text):
    answer = create_clara_documents_chain(llm).invoke({"context": [Document(text)], "input": text})
    assert answer == said(engine, [Document(text)], text)


# -- the middleware --------------------------------------------------------------------------------


class Listed(BaseRetriever):
    """Returns the same documents for every question, and records the questions."""

    documents: list[Document]
    asked: list[str] = []  # noqa: RUF012 - pydantic copies this field

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        self.asked.append(query)
        return self.documents


async def test_the_agent_reads_what_was_retrieved(engine, llm):
    retriever = Listed(documents=make_documents())
    agent = create_agent(llm, tools=[], middleware=[ClaraContextMiddleware(retriever, k=2)])
    question = {"messages": [HumanMessage(QUESTION)]}
    for result in (agent.invoke(question), await agent.ainvoke(question)):
        answer = result["messages"][-1]
        assert answer.content == said(engine, make_documents()[:2])
        assert answer.response_metadata["documents"] == [{"id": "weldenia", "title": "w.txt"}, {"title": "b.txt"}]
        # Retrieved documents belong to this question only.
        assert [type(message) for message in result["messages"]] == [HumanMessage, AIMessage]
        assert result["messages"][0].content == QUESTION
    assert retriever.asked == [QUESTION] * 2


def test_the_agent_streams(engine, llm):
    agent = create_agent(llm, tools=[], middleware=[ClaraContextMiddleware(Listed(documents=make_documents()))])
    pieces = agent.stream({"messages": [HumanMessage(QUESTION)]}, stream_mode="messages")
    assert "".join(message.text for message, _ in pieces if message.text) == said(engine, make_documents())


def test_the_agent_remembers_and_retrieves_for_the_last_question(engine, llm):
    retriever = Listed(documents=make_documents())
    agent = create_agent(
        llm,
        tools=[],
        system_prompt="Be brief.",
        middleware=[ClaraContextMiddleware(retriever)],
        checkpointer=InMemorySaver(),
    )
    config = {"configurable": {"thread_id": "1"}}
    first = agent.invoke({"messages": [HumanMessage(QUESTION)]}, config)["messages"][-1].content
    result = agent.invoke({"messages": [HumanMessage("And the plant?")]}, config)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And the plant?"},
    ]
    assert result["messages"][-1].content == said(engine, make_documents(), turns)
    assert retriever.asked == [QUESTION, "And the plant?"]


def test_a_question_with_its_own_documents_is_left_alone(engine, llm):
    retriever = Listed(documents=make_documents())
    agent = create_agent(llm, tools=[], middleware=[ClaraContextMiddleware(retriever)])
    block = {"type": "text-plain", "mime_type": "text/plain", "text": "Short note."}
    message = HumanMessage([block, {"type": "text", "text": QUESTION}])
    assert agent.invoke({"messages": [message]})["messages"][-1].content == said(engine, [Document("Short note.")])
    assert retriever.asked == []


def test_nothing_retrieved_and_nothing_asked(engine, llm):
    agent = create_agent(llm, tools=[], middleware=[ClaraContextMiddleware(Listed(documents=[]))])
    assert agent.invoke({"messages": [HumanMessage(QUESTION)]})["messages"][-1].content == said(engine, [])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ClaraContextMiddleware(Listed(documents=[]), k=0)


def test_the_middleware_serves_other_models():
    """Any model that reads documents in messages gets them in the same form."""
    from langchain_core.language_models import GenericFakeChatModel

    seen = []

    class Model(GenericFakeChatModel):
        def _generate(self, messages, *args, **kwargs):
            seen.extend(messages)
            return super()._generate(messages, *args, **kwargs)

    agent = create_agent(
        Model(messages=iter(["yes"])),
        tools=[],
        middleware=[ClaraContextMiddleware(RunnableLambda(lambda question: [Document(question, id="q")]))],
    )
    agent.invoke({"messages": [SystemMessage("s"), HumanMessage("h")]})
    block = {"type": "text-plain", "mime_type": "text/plain", "text": "h", "id": "q"}
    assert [message.content for message in seen] == ["s", [block], "h"]


# -- the splitter ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def splitter(request, tmp_path_factory):
    folder = build(tmp_path_factory.mktemp(f"splitter-{request.param}"), request.param).folder
    return ClaraTextSplitter(model=str(folder), add_start_index=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=400)
    | st.lists(st.sampled_from(["A sentence. ", "word ", "\n\n", "富士山"]), max_size=200).map("".join)
)
def test_no_text_is_lost_and_every_piece_fits(splitter, text):
    pieces = splitter.split_text(text)
    assert "".join(pieces) == text
    assert all(splitter.count_tokens(piece) <= 64 for piece in pieces)
    assert all(pieces)


def test_documents_keep_metadata_and_say_where_they_begin(splitter):
    documents = make_documents()
    before = copy.deepcopy(documents)
    pieces = splitter.split_documents(documents)
    assert documents == before
    by_text = {document.page_content: document for document in documents}
    for piece in pieces:
        start = piece.metadata["start_index"]
        whole = next(text for text in by_text if text[start : start + len(piece.page_content)] == piece.page_content)
        assert piece.metadata == {**by_text[whole].metadata, "start_index": start}
    assert len(pieces) > len(documents)
    # A document that fits is one piece.
    assert pieces[0].page_content == documents[0].page_content
    assert splitter.transform_documents(documents) == pieces


def test_repeated_text_begins_where_it_begins(splitter):
    text = "The same sentence. " * 60
    pieces = splitter.create_documents([text], [{"source": "s"}])
    assert len(pieces) > 2
    starts = [piece.metadata["start_index"] for piece in pieces]
    assert starts == [sum(len(p.page_content) for p in pieces[:at]) for at in range(len(pieces))]


def test_metadata_is_not_shared(splitter):
    pieces = splitter.create_documents(["The same sentence. " * 60], [{"tags": ["a"]}])
    pieces[0].metadata["tags"].append("b")
    assert pieces[1].metadata["tags"] == ["a"]
    with pytest.raises(ValueError, match="got 1 for 2 texts"):
        splitter.create_documents(["a", "b"], [{}])


def test_splitting_loads_no_weights(tmp_path):
    tiny = build(tmp_path)
    splitter = ClaraTextSplitter(model=str(tiny.folder))
    assert splitter.split_text("One sentence.") == ["One sentence."]
    assert "start_index" not in splitter.create_documents(["a"])[0].metadata
    assert ClaraEngine.from_pretrained(str(tiny.folder))._loaded is None
    with pytest.raises(UnknownOption, match="did you mean 'compression'"):
        ClaraTextSplitter(compresion=16)


def test_pieces_are_one_window_each(model, engine):
    pieces = ClaraTextSplitter(model=model).split_documents(make_documents())
    assert all(memory.n_windows == 1 for memory in engine.compress([piece.page_content for piece in pieces]))
    assert len(ClaraRetriever.from_documents(pieces, model=model).vectorstore) == len(pieces)
