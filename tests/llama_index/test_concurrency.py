"""Event loops, threads, processes, and LangChain and LlamaIndex on one engine."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from clara_core import ClaraEngine
from clara_core.model.decoder import ClaraModel
from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraQueryEngine,
    ClaraRerank,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.llama_index.doubles import QUESTION, TEXTS, documents, nodes
from tests.served import SERVED, behind

CALLS = (
    "embed question", "embed text", "embed batch", "embed nodes", "complete", "chat", "stream complete", "stream chat",
    "predict", "stream predict", "rerank", "synthesize", "stream synthesize", "retrieve", "add", "add vectors",
    "query by text", "query engine", "from documents",
)  # fmt: skip


async def drained(stream):
    return [piece async for piece in await stream]


def calls_of(model):
    """An awaitable for every asynchronous method."""
    fresh = [TextNode(text=f"{text} {random.random()}") for text in TEXTS]
    embedding, llm = ClaraEmbedding(model=model), ClaraLLM(model=model, max_tokens=4)
    store, rerank = ClaraVectorStore(model=model), ClaraRerank(model=model)
    hits = [NodeWithScore(node=node, score=0.0) for node in fresh]
    synthesizer = ClaraSynthesizer(model=model, max_tokens=4)
    streaming = ClaraSynthesizer(model=model, max_tokens=4, streaming=True)
    retriever = ClaraRetriever.from_documents(documents(), model=model)
    vectors = ClaraEmbedding(model=model)(nodes(3))
    prompt = PromptTemplate("{x}")

    async def stream_synthesize():
        response = await streaming.asynthesize(QUESTION, hits)
        return [piece async for piece in response.response_gen]

    makers = (
        lambda: embedding.aget_query_embedding(QUESTION),
        lambda: embedding.aget_text_embedding(fresh[0].text),
        lambda: embedding.aget_text_embedding_batch([node.text for node in fresh]),
        lambda: embedding.acall(fresh),
        lambda: llm.acomplete(QUESTION),
        lambda: llm.achat([ChatMessage(content=QUESTION)]),
        lambda: drained(llm.astream_complete(QUESTION)),
        lambda: drained(llm.astream_chat([ChatMessage(content=QUESTION)])),
        lambda: llm.apredict(prompt, x=QUESTION),
        lambda: drained(llm.astream(prompt, x=QUESTION)),
        lambda: rerank.apostprocess_nodes(hits, query_str=QUESTION),
        lambda: synthesizer.asynthesize(QUESTION, hits),
        stream_synthesize,
        lambda: retriever.aretrieve(QUESTION),
        lambda: store.async_add(fresh),
        lambda: store.async_add(vectors),
        lambda: store.aquery(VectorStoreQuery(query_str=QUESTION)),
        lambda: ClaraQueryEngine(retriever, node_postprocessors=[rerank], max_tokens=4).aquery(QUESTION),
        lambda: ClaraRetriever.afrom_documents(documents(), model=model),
    )
    return dict(zip(CALLS, makers, strict=True))


@pytest.mark.parametrize("call", CALLS)
async def test_no_call_holds_the_event_loop(model, engine, monkeypatch, call):
    if SERVED and call == "from documents":
        pytest.skip("nothing is asked of a server before a question is")
    make = calls_of(model)[call]
    engine.cache.clear()
    loaded = behind(engine).load().model
    with (
        LoopWitness() as witness,
        wrapped(loaded, "encode", witness.around),
        wrapped(loaded, "prefill", witness.around),
    ):
        if call == "add vectors":  # does not use the device
            monkeypatch.setattr(ClaraVectorStore, "add", witness.before(ClaraVectorStore.add))
        await make()


async def test_other_store_calls_run_in_threads(model, monkeypatch):
    seen = []
    store = ClaraVectorStore(model=model)
    for name in ("add", "query", "delete", "delete_nodes", "clear", "get_nodes"):
        monkeypatch.setattr(
            ClaraVectorStore, name, lambda *args, name=name, **kwargs: seen.append((name, threading.get_ident()))
        )
    await store.async_add(nodes(1), memories=[])
    await store.aquery(VectorStoreQuery())
    await store.adelete("x")
    await store.adelete_nodes(["x"])
    await store.aclear()
    await store.aget_nodes()
    assert [name for name, _ in seen] == ["add", "query", "delete", "delete_nodes", "clear", "get_nodes"]
    assert threading.get_ident() not in {thread for _, thread in seen}


@pytest.mark.in_process
async def test_parsing_leaves_the_loop(model, monkeypatch):
    long = [documents()[0].model_copy(update={"id_": "long"})]
    long[0].set_content("The town is old and the river is wide. " * 4000)
    parser = ClaraNodeParser(model=model)
    tokenizer = ClaraEngine.from_pretrained(model).tokenizer
    with LoopWitness() as witness:
        monkeypatch.setattr(tokenizer, "windows", witness.before(tokenizer.windows))
        await parser.aget_nodes_from_documents(long)


def test_many_threads_give_what_one_gives(model):
    embedding, rerank = ClaraEmbedding(model=model), ClaraRerank(model=model, top_n=5)
    query_engine = ClaraQueryEngine.from_documents(documents(), model=model, max_tokens=6)
    questions = [f"What is said of number {number}?" for number in range(8)]

    def work(kind, question):
        if kind == 0:
            return embedding.get_text_embedding(question)
        if kind == 1:
            return embedding.get_query_embedding(question)
        if kind == 2:
            hits = [NodeWithScore(node=node) for node in nodes()]
            return [hit.score for hit in rerank.postprocess_nodes(hits, query_str=question)]
        return str(query_engine.query(question))

    jobs = [(kind, question) for question in questions for kind in range(4)]
    serial = [work(*job) for job in jobs]
    ClaraEngine.from_pretrained(model).cache.clear()
    barrier = threading.Barrier(32)

    def together(number):
        barrier.wait()
        return [(at, work(*jobs[at])) for at in ((number + step) % len(jobs) for step in range(3))]

    with ThreadPoolExecutor(32) as pool:
        results = [pair for pairs in pool.map(together, range(32)) for pair in pairs]
    for at, result in results:
        if isinstance(result, str):
            assert result == serial[at]
        else:
            assert result == pytest.approx(serial[at], abs=1e-4)
    assert any(serial[2] != serial[at] for at in range(6, len(jobs), 4))  # the questions differ


def test_a_role_is_never_that_of_somebody_else(model, engine):
    """Text and question vectors of the same string, computed concurrently."""
    embedding = ClaraEmbedding(model=model)
    alone = embedding.get_text_embedding(QUESTION), embedding.get_query_embedding(QUESTION)
    assert alone[0] != pytest.approx(alone[1], abs=1e-2)

    def ask(number):
        engine.cache.clear()
        return number % 2, (embedding.get_text_embedding, embedding.get_query_embedding)[number % 2](QUESTION)

    with ThreadPoolExecutor(16) as pool:
        for role, vector in pool.map(ask, range(64)):
            assert vector == pytest.approx(alone[role], abs=1e-4)


async def test_many_tasks_at_once(model):
    query_engine = ClaraQueryEngine.from_documents(documents(), model=model, max_tokens=6)
    questions = [f"What is said of number {number}?" for number in range(16)]
    serial = [str(query_engine.query(question)) for question in questions]
    assert [str(response) for response in await asyncio.gather(*map(query_engine.aquery, questions))] == serial


# -- LangChain and LlamaIndex side by side ---------------------------------------------------------


def models_in_memory():
    gc.collect()
    return [each for each in gc.get_objects() if issubclass(type(each), ClaraModel)]


def test_both_frameworks_hold_one_engine(tmp_path):
    from langchain_core.documents import Document

    from langchain_clara import ChatClara
    from langchain_clara import ClaraRerank as ChainRerank
    from langchain_clara import ClaraRetriever as ChainRetriever
    from tests.tiny import build

    model = str(build(tmp_path, seed=7).folder)
    before = len(models_in_memory())
    chain = ChainRetriever.from_documents([Document(text) for text in TEXTS], model=model, k=3)
    chat, chain_rerank = ChatClara(model=model, max_tokens=8), ChainRerank(model=model)
    index = ClaraRetriever.from_documents(documents(), model=model, similarity_top_k=3)
    query_engine = ClaraQueryEngine(index, node_postprocessors=[ClaraRerank(model=model)], max_tokens=8)
    parts = (chain, chat, chain_rerank)
    engines = {id(part.shared_engine) for part in parts} | {id(index.engine), id(ClaraEmbedding(model=model).engine)}
    assert len(engines) == 1

    found = chain.invoke(QUESTION)
    engine = index.engine
    answer = chat.invoke(QUESTION, documents=chain_rerank.compress_documents(found, QUESTION))
    response = query_engine.query(QUESTION)
    assert [hit.text for hit in response.source_nodes] == [
        document.page_content for document in chain_rerank.compress_documents(found, QUESTION)
    ]
    assert str(response) == answer.content
    # One model in memory: its weights exist once for both frameworks.
    assert len(models_in_memory()) == before + 1
    weights = {tensor.data_ptr() for tensor in behind(engine).load().model.parameters()}
    assert weights == {tensor.data_ptr() for tensor in behind(chat.shared_engine).load().model.parameters()}


@pytest.mark.in_process
def test_one_framework_reads_what_the_other_compressed(model, engine):
    from langchain_core.documents import Document

    from langchain_clara import ClaraRetriever as ChainRetriever
    from tests.engines import Counter

    engine.cache.clear()
    ChainRetriever.from_documents([Document(text) for text in TEXTS], model=model)
    with Counter(behind(engine).load().model, "encode") as encoded:
        ClaraEmbedding(model=model).get_text_embedding_batch(list(TEXTS))
        assert encoded.calls == 0
    assert torch.is_tensor(engine.remember([TEXTS[0]])[0].tokens)
