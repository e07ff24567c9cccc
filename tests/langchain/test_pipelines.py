"""Pipelines of LangChain in which only the retriever, the reranker or the model is replaced."""

from __future__ import annotations

from typing import Any, TypedDict
from uuid import uuid4

import pytest
from langchain.agents import create_agent
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MultiQueryRetriever,
    ParentDocumentRetriever,
)
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_classic.storage import InMemoryStore
from langchain_community.retrievers import BM25Retriever
from langchain_community.vectorstores import FAISS
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_text_splitters import RecursiveCharacterTextSplitter
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from clara_core import ClaraEngine
from langchain_clara import (
    ChatClara,
    ClaraEmbeddings,
    ClaraRerank,
    ClaraRetriever,
    ClaraTextSplitter,
    ClaraVectorStore,
    DocumentsPlaceholder,
    create_clara_documents_chain,
)
from tests.langchain.data import bundled_or_tiny

QUESTION = "When was Tolmet Bridge opened?"
PASSAGES = [
    Document("Tolmet Bridge was opened in 1907.", id="bridge", metadata={"source": "bridge.md"}),
    Document("Weldenia is a genus of flowering plants.", id="plant", metadata={"source": "plant.md"}),
    Document("The lighthouse of Aln stands on a rock.", id="tower", metadata={"source": "tower.md"}),
    Document("Brandt & Sons make clocks and barometers.", id="clock", metadata={"source": "clock.md"}),
    Document("Tolmet has a market every Friday.", id="market", metadata={"source": "market.md"}),
]
# Programs of LangChain's documentation, unchanged except for the replaced parts.
PROMPT = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
# langchain_community warns at import that it is being retired.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return bundled_or_tiny()


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def llm(model):
    return ChatClara(model=model, max_tokens=10)


@pytest.fixture
def retriever(model):
    """A retriever by memory only, as the engine ranks."""
    return ClaraRetriever.from_documents(PASSAGES, model=model, k=3, mode="memory")


def best(engine, question=QUESTION, passages=PASSAGES):
    """Ids in the order of the engine's own ranking."""
    hits = engine.rank(question, engine.compress([passage.page_content for passage in passages]))
    return [passages[hit.index].id for hit in hits]


def said(engine, ids, question=QUESTION, turns=()):
    texts = {passage.id: passage.page_content for passage in PASSAGES}
    conversation = [*turns, {"role": "user", "content": question}]
    return engine.chat(conversation, engine.compress([texts[id_] for id_ in ids]), max_tokens=10).text


def ids(documents):
    return [document.id for document in documents]


# -- chains ----------------------------------------------------------------------------------------


async def test_documented_rag_chain_in_lcel(engine, llm, retriever):
    chain = {"context": retriever, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()
    expected = said(engine, best(engine)[:3])
    assert chain.invoke(QUESTION) == await chain.ainvoke(QUESTION) == expected
    assert "".join(chain.stream(QUESTION)) == expected
    assert chain.batch([QUESTION, QUESTION]) == [expected] * 2


async def test_the_stuffing_chain_with_another_model_behind_our_retriever(retriever):
    """The retriever is an ordinary one: its documents are full texts that fit into any prompt."""
    seen = []

    class Other(GenericFakeChatModel):
        def _generate(self, messages, *args, **kwargs):
            seen.append(messages[0].content)
            return super()._generate(messages, *args, **kwargs)

    prompt = ChatPromptTemplate.from_template("Context: {context}\n\nQuestion: {question}")
    shown = retriever | (lambda documents: "\n\n".join(document.page_content for document in documents))
    chain = {"context": shown, "question": RunnablePassthrough()} | prompt | Other(messages=iter(["1907"]))
    assert chain.invoke(QUESTION).content == "1907"
    assert all(document.page_content in seen[0] for document in retriever.invoke(QUESTION))


async def test_create_retrieval_chain(engine, llm, retriever):
    chain = create_retrieval_chain(retriever, create_clara_documents_chain(llm))
    for result in (chain.invoke({"input": QUESTION}), await chain.ainvoke({"input": QUESTION})):
        assert ids(result["context"]) == best(engine)[:3]
        assert result["answer"] == said(engine, best(engine)[:3])
    pieces = [piece["answer"] for piece in chain.stream({"input": QUESTION}) if "answer" in piece]
    assert "".join(pieces) == said(engine, best(engine)[:3])
    assert len(pieces) > 1


def test_create_history_aware_retriever(engine, llm, retriever):
    rephrase = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
    aware = create_history_aware_retriever(llm, retriever, rephrase)
    chain = create_retrieval_chain(aware, create_clara_documents_chain(llm))
    alone = chain.invoke({"input": QUESTION, "chat_history": []})
    assert ids(alone["context"]) == best(engine)[:3]
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    result = chain.invoke({"input": QUESTION, "chat_history": history})
    rephrased = said(engine, [], turns=turns)  # the search got the question as the model rewrote it
    assert ids(result["context"]) == best(engine, rephrased)[:3]
    assert result["answer"] == said(engine, ids(result["context"]), turns=turns)


def test_contextual_compression_retriever(engine, model):
    base = BM25Retriever.from_documents(PASSAGES, k=4)
    compressing = ContextualCompressionRetriever(base_compressor=ClaraRerank(model=model, top_n=2), base_retriever=base)
    candidates = base.invoke(QUESTION)
    found = compressing.invoke(QUESTION)
    assert ids(found) == best(engine, passages=candidates)[:2]
    assert all(type(document.metadata["relevance_score"]) is float for document in found)
    assert "relevance_score" not in base.invoke(QUESTION)[0].metadata
    pipeline = DocumentCompressorPipeline(
        transformers=[RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0), ClaraRerank(model=model)]
    )
    assert len(pipeline.compress_documents(PASSAGES, QUESTION)) == 3


async def test_compression_retriever_in_a_retrieval_chain(engine, llm, model):
    """`top_n` limits the context, whatever the base retriever returns."""
    compressing = ContextualCompressionRetriever(
        base_compressor=ClaraRerank(model=model, top_n=2), base_retriever=BM25Retriever.from_documents(PASSAGES, k=5)
    )
    chain = create_retrieval_chain(compressing, create_clara_documents_chain(llm))
    result = await chain.ainvoke({"input": QUESTION})
    assert ids(result["context"]) == best(engine)[:2]
    assert result["answer"] == said(engine, best(engine)[:2])


async def test_ensemble_retriever_with_bm25(engine, retriever):
    bm25 = BM25Retriever.from_documents(PASSAGES, k=3)
    ensemble = EnsembleRetriever(retrievers=[bm25, retriever], weights=[0.5, 0.5])
    both = {*ids(bm25.invoke(QUESTION)), *ids(retriever.invoke(QUESTION))}
    for found in (ensemble.invoke(QUESTION), await ensemble.ainvoke(QUESTION)):
        # A document that both return appears once, because the texts are equal.
        assert set(ids(found)) == both
        assert len(found) == len(both)


def test_multi_query_retriever(llm, retriever):
    found = MultiQueryRetriever.from_llm(retriever=retriever, llm=llm, include_original=True).invoke(QUESTION)
    assert {*ids(retriever.invoke(QUESTION))} <= {*ids(found)}


def test_parent_document_retriever(model):
    store = ClaraVectorStore(model=model)
    parents = ParentDocumentRetriever(
        vectorstore=store,
        docstore=InMemoryStore(),
        child_splitter=ClaraTextSplitter(model=model),
        search_kwargs={"k": 2},
    )
    long = Document(" ".join(f"Sentence {n} speaks of the town of Aln." for n in range(200)), metadata={"source": "l"})
    parents.add_documents([*PASSAGES, long], ids=[*ids(PASSAGES), "long"])
    assert len(store) > len(PASSAGES) + 1
    found = parents.invoke("Aln sentence 30")
    assert found
    assert all(document in [*PASSAGES, long] for document in found)


# -- from any retriever ----------------------------------------------------------------------------


async def test_candidates_of_any_retriever(engine, model):
    bm25 = BM25Retriever.from_documents(PASSAGES, k=4)
    candidates = bm25.invoke(QUESTION)
    ours = ClaraRetriever.from_retriever(bm25, model=model, k=2)
    for found in (ours.invoke(QUESTION), await ours.ainvoke(QUESTION)):
        assert ids(found) == best(engine, passages=candidates)[:2]
    assert ids(ours.invoke(QUESTION, k=3)) == best(engine, passages=candidates)[:3]
    floor = ours.invoke(QUESTION, k=4)[1].metadata["relevance_score"]
    assert len(ours.invoke(QUESTION, k=4, score_threshold=floor)) == 2
    assert ids(ours.invoke(QUESTION, filter={"source": "plant.md"})) in ([], ["plant"])
    with pytest.raises(TypeError, match="keeps no documents"):
        ours.add_documents(PASSAGES)
    with pytest.raises(ValueError, match="base= or vectorstore="):
        ClaraRetriever(base=bm25, vectorstore=ClaraVectorStore(model=model))
    with pytest.raises(ValueError, match="there is no base"):
        ClaraRetriever(model=model, base_weight=0.5)


def test_rank_fusion_with_the_bases_order(engine, model):
    bm25 = BM25Retriever.from_documents(PASSAGES, k=5)
    theirs = ids(bm25.invoke(QUESTION))
    ours = best(engine, passages=bm25.invoke(QUESTION))

    def fused(weight):
        return ids(ClaraRetriever.from_retriever(bm25, model=model, k=5, base_weight=weight).invoke(QUESTION))

    assert fused(0.0) == ours
    assert fused(1.0) == theirs
    points = {id_: 0.5 / (61 + theirs.index(id_)) + 0.5 / (61 + ours.index(id_)) for id_ in theirs}
    half = fused(0.5)
    assert [points[id_] for id_ in half] == sorted(points.values(), reverse=True)


async def test_reranking_steps_of_a_chain(engine, model):
    bm25 = BM25Retriever.from_documents(PASSAGES, k=4)
    rerank = ClaraRerank(model=model, top_n=2)
    expected = best(engine, passages=bm25.invoke(QUESTION))[:2]
    parts = {"documents": bm25, "question": RunnablePassthrough()} | rerank
    chain = RunnablePassthrough.assign(context=lambda x: bm25.invoke(x["input"])) | rerank
    for step, given in ((rerank.as_runnable(bm25), QUESTION), (parts, QUESTION), (chain, {"input": QUESTION})):
        assert ids(step.invoke(given)) == ids(await step.ainvoke(given)) == expected
    with pytest.raises(TypeError, match=r"as_runnable\(retriever\)"):
        (bm25 | rerank).invoke(QUESTION)
    with pytest.raises(ValueError, match="the documents as one of"):
        rerank.invoke({"question": QUESTION})


# -- agents and graphs -----------------------------------------------------------------------------


def test_retriever_tool_in_an_agent(engine, retriever):
    """CLaRa cannot be the model of an agent with tools, but it can be the search tool of an agent."""

    class Caller(GenericFakeChatModel):
        def bind_tools(self, tools, **kwargs):
            return self

    call = {"name": "search", "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}
    replies = iter([AIMessage("", tool_calls=[call]), AIMessage("In 1907.")])
    tool = create_retriever_tool(retriever, "search", "Searches.", response_format="content_and_artifact")
    result = create_agent(Caller(messages=replies), tools=[tool]).invoke({"messages": [("human", QUESTION)]})
    [message] = [message for message in result["messages"] if isinstance(message, ToolMessage)]
    assert ids(message.artifact) == best(engine)[:3]
    assert PASSAGES[0].page_content in message.content or "bridge" not in best(engine)[:3]


class State(TypedDict, total=False):
    question: str
    context: list[Document]
    messages: list[AnyMessage]
    answer: str


async def test_graph_with_a_checkpointer(engine, llm, retriever):
    """Documents with scores and answers with their usage survive serialization."""
    prompt = PROMPT | llm

    def retrieve(state: State) -> dict[str, Any]:
        return {"context": retriever.invoke(state["question"])}

    def answer(state: State) -> dict[str, Any]:
        message = prompt.invoke(state)
        return {"messages": [message], "answer": message.text}

    graph = StateGraph(State)
    graph.add_node("retrieve", retrieve)
    graph.add_node("answer", answer)
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "answer")
    graph.add_edge("answer", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    result = app.invoke({"question": QUESTION}, config)
    assert result["answer"] == said(engine, best(engine)[:3])
    kept = app.get_state(config).values
    assert kept == result
    assert all(type(document.metadata["relevance_score"]) is float for document in kept["context"])
    assert kept["messages"][0].response_metadata == result["messages"][0].response_metadata
    assert (await app.ainvoke({"question": QUESTION}, {"configurable": {"thread_id": "2"}}))["answer"] == kept["answer"]


# -- cache and traces ------------------------------------------------------------------------------


def test_set_llm_cache(engine, llm, retriever):
    chain = {"context": retriever, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        first = chain.invoke(QUESTION)
        assert (chain.invoke(QUESTION), len(cache._cache)) == (first, 1)
        assert chain.invoke("What is made by Brandt & Sons?") == said(
            engine, best(engine, "What is made by Brandt & Sons?")[:3], "What is made by Brandt & Sons?"
        )
        assert len(cache._cache) == 2
    finally:
        set_llm_cache(None)


class Tracer(BaseCallbackHandler):
    """Records every event as a tracing service does: with its run, the parent run, and its content as JSON."""

    def __init__(self):
        self.starts, self.ends, self.tokens, self.json = {}, [], 0, []

    def _start(self, kind, given, run_id, parent_run_id, kwargs):
        self.starts[run_id] = (kind, parent_run_id, kwargs.get("metadata") or {}, kwargs.get("invocation_params"))
        self.json.append(dumps(given))

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, **kwargs):
        self._start("chain", inputs, run_id, parent_run_id, kwargs)

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, **kwargs):
        self._start("retriever", query, run_id, parent_run_id, kwargs)

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, **kwargs):
        self._start("model", messages, run_id, parent_run_id, kwargs)

    def _end(self, given, run_id):
        self.ends.append(run_id)
        self.json.append(dumps(given))

    def on_chain_end(self, outputs, *, run_id, **kwargs):
        self._end(outputs, run_id)

    def on_retriever_end(self, documents, *, run_id, **kwargs):
        self._end(documents, run_id)

    def on_llm_end(self, response, *, run_id, **kwargs):
        self._end(response.generations, run_id)

    def on_llm_new_token(self, token, **kwargs):
        self.tokens += 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_traces(llm, model, way):
    base = BM25Retriever.from_documents(PASSAGES, k=4)
    retriever = ClaraRetriever.from_retriever(base, model=model, k=2)
    chain = {"context": retriever, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()
    tracer = Tracer()
    config = {"callbacks": [tracer]}
    if way in ("invoke", "stream"):
        list(getattr(chain, way)(QUESTION, config))
    elif way == "astream":
        assert [piece async for piece in chain.astream(QUESTION, config)]
    else:
        result = getattr(chain, way)([QUESTION] * 2 if "batch" in way else QUESTION, config)
        assert await result if way.startswith("a") else result
    assert sorted(map(str, tracer.ends)) == sorted(map(str, tracer.starts))
    runs = 2 if "batch" in way else 1
    kinds = [kind for kind, *_ in tracer.starts.values()]
    assert (kinds.count("model"), kinds.count("retriever")) == (runs, 2 * runs)
    for kind, parent, metadata, params in tracer.starts.values():
        if kind == "retriever":
            assert tracer.starts[parent][0] in ("chain", "retriever")  # the base retriever is a child run of ours
        if kind == "model":
            assert tracer.starts[parent][0] == "chain"
            assert (metadata["ls_provider"], metadata["ls_model_name"]) == ("clara", model)
            assert "documents" not in params  # the documents are part of the messages
    names = [
        metadata.get("ls_retriever_name") for kind, _, metadata, _ in tracer.starts.values() if kind == "retriever"
    ]
    assert names.count("clara") == runs
    assert [text for text in tracer.json if "not_implemented" in text] == []
    assert (tracer.tokens > 1) is ("stream" in way)


# -- other stores ----------------------------------------------------------------------------------


def faiss(embeddings):
    return FAISS.from_documents(PASSAGES, embeddings, ids=ids(PASSAGES))


def faiss_inner_product(embeddings):
    return FAISS.from_documents(PASSAGES, embeddings, ids=ids(PASSAGES), distance_strategy="MAX_INNER_PRODUCT")


def qdrant(embeddings):
    from langchain_qdrant import QdrantVectorStore

    plain = [Document(passage.page_content, metadata=passage.metadata) for passage in PASSAGES]  # ids must be UUIDs
    return QdrantVectorStore.from_documents(plain, embeddings, location=":memory:", collection_name="passages")


def chroma(embeddings):
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    return Chroma.from_documents(
        PASSAGES,
        embeddings,
        ids=ids(PASSAGES),
        collection_name=f"passages-{uuid4()}",
        client_settings=Settings(anonymized_telemetry=False, is_persistent=False),
        collection_metadata={"hnsw:space": "cosine"},
    )


@pytest.mark.parametrize("make", [faiss, faiss_inner_product, qdrant, chroma])
@pytest.mark.parametrize("dimensions", [None, 256])
def test_other_stores_rank_as_the_engine_does(engine, llm, model, make, dimensions):
    embeddings = ClaraEmbeddings(model=model, dimensions=dimensions)
    store = make(embeddings)
    found = [document.page_content for document in store.similarity_search(QUESTION, k=5)]
    if dimensions is None:
        expected = best(engine)
    else:
        short = ClaraVectorStore.from_documents(PASSAGES, embeddings)
        expected = ids(short.similarity_search(QUESTION, k=5, mode="memory"))
    assert found == [next(p.page_content for p in PASSAGES if p.id == id_) for id_ in expected]
    # The chat model reads its documents like any others, because it looks up memories by text.
    documents = store.as_retriever(search_kwargs={"k": 2}).invoke(QUESTION)
    assert llm.invoke(QUESTION, documents=documents).content == said(engine, expected[:2])
