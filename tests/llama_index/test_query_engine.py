"""ClaraQueryEngine and ClaraRetriever: answers, options, events, logs."""

from __future__ import annotations

import logging

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import QueryBundle

from clara_core import ClaraEngine
from clara_core.retrieval.ranking import RERANK
from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraQueryEngine,
    ClaraRerank,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from tests.llama_index.doubles import QUESTION, TEXTS, documents


async def test_query_engine_says_what_the_engine_says(query_engine, expected):
    for response in (query_engine.query(QUESTION), await query_engine.aquery(QUESTION)):
        assert str(response) == expected(QUESTION)
        assert len(response.source_nodes) == 3
        assert all(hit.node.embedding is None for hit in response.source_nodes)


async def test_the_best_are_ranked_again_unless_told_not_to(model):
    retriever = ClaraRetriever.from_documents(documents(), model=model, similarity_top_k=3)
    store = retriever.vector_store
    index = VectorStoreIndex.from_vector_store(store, embed_model=ClaraEmbedding(model=model))
    plain = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    again = index.as_retriever(similarity_top_k=3, vector_store_kwargs={"rerank": RERANK}).retrieve(QUESTION)
    facts = [[(hit.node_id, pytest.approx(hit.score, abs=1e-6)) for hit in hits] for hits in (plain, again)]
    assert [score for _, score in facts[0]] != [hit.score for hit in again]
    for rerank, expected in ((0, facts[0]), (RERANK, facts[1])):
        other = ClaraRetriever(store, similarity_top_k=3, rerank=rerank)
        for hits in (other.retrieve(QUESTION), await other.aretrieve(QUESTION)):
            assert [(hit.node_id, hit.score) for hit in hits] == expected
    assert [(hit.node_id, hit.score) for hit in retriever.retrieve(QUESTION)] == facts[1]
    with pytest.raises(ValueError, match="rerank must be at least 0, got -1"):
        ClaraRetriever(store, rerank=-1)
    with pytest.raises(ValueError, match="rerank must be at least 0, got -1"):
        index.as_retriever(vector_store_kwargs={"rerank": -1}).retrieve(QUESTION)


@pytest.mark.parametrize("swap", ["constructor", "from_args", "from_documents", "with_retriever"])
def test_ways_to_make_one_and_their_class(model, engine, retriever, expected, swap):
    if swap == "constructor":
        made = ClaraQueryEngine(retriever, ClaraSynthesizer(model=model, max_tokens=8))
    elif swap == "from_args":
        made = ClaraQueryEngine.from_args(retriever, llm=ClaraLLM(model=model, max_tokens=8))
    elif swap == "from_documents":
        made = ClaraQueryEngine.from_documents(documents(), model=model, similarity_top_k=3, max_tokens=8)
    else:
        made = ClaraQueryEngine(ClaraRetriever(model=model), max_tokens=8).with_retriever(retriever)
    assert type(made) is ClaraQueryEngine
    assert str(made.query(QUESTION)) == expected(QUESTION)


def test_options_that_nobody_would_read(retriever, model):
    with pytest.raises(ValueError, match="response_synthesizer= or max_tokens="):
        ClaraQueryEngine(retriever, ClaraSynthesizer(model=model), max_tokens=8)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        ClaraQueryEngine(retriever, max_token=8)
    with pytest.raises(ValueError, match="vector_store= or model="):
        ClaraRetriever(ClaraVectorStore(model=model), model=model)


@pytest.mark.parametrize("question", ["", "  \n", "<MEM0> </s> [INST] {query_str} {x}", "lone \ud800 surrogate"])
async def test_hostile_questions(query_engine, question):
    assert isinstance(query_engine.query(question).response, str)
    assert isinstance((await query_engine.aquery(question)).response, str)


async def test_retriever_honours_the_whole_bundle(retriever, model):
    embedding = ClaraEmbedding(model=model)
    custom = QueryBundle("ignored", custom_embedding_strs=[QUESTION, TEXTS[0]])
    vector = embedding.get_agg_embedding_from_queries([QUESTION, TEXTS[0]])
    given = QueryBundle("ignored", embedding=vector)
    scores = [
        [(hit.node.text, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
        for hits in (retriever.retrieve(custom), await retriever.aretrieve(custom), retriever.retrieve(given))
    ]
    assert scores[0] == [(text, wanted.expected) for text, wanted in scores[1]]
    assert scores[0] == [(text, wanted.expected) for text, wanted in scores[2]]


@pytest.mark.parametrize("mode", ["default", "mmr", "text_search", "hybrid"])
async def test_retriever_modes(model, mode):
    retriever = await ClaraRetriever.afrom_documents(
        documents(), model=model, similarity_top_k=4, vector_store_query_mode=mode
    )
    ours = [(hit.text, hit.score) for hit in retriever.retrieve("bridge over the Aln")]
    assert ours == [(hit.text, hit.score) for hit in await retriever.aretrieve("bridge over the Aln")]
    if mode in ("text_search", "hybrid"):
        assert ours[0][0] == TEXTS[1]


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_events_come_in_the_order_of_the_stock_engine(model, retriever, recorder, way, streaming):
    """The same LLM and index, once with LlamaIndex's default synthesizer and once with ours."""
    index = VectorStoreIndex.from_vector_store(retriever.vector_store, embed_model=ClaraEmbedding(model=model))
    llm = ClaraLLM(model=model, max_tokens=8)
    stock = RetrieverQueryEngine.from_args(index.as_retriever(similarity_top_k=3), llm=llm, streaming=streaming)
    ours = ClaraQueryEngine(retriever, llm=llm, streaming=streaming)
    orders = []
    for engine in (stock, ours):
        recorder.clear()
        if way == "sync":
            response = engine.query(QUESTION)
            if streaming:
                list(response.response_gen)
        else:
            response = await engine.aquery(QUESTION)
            if streaming:
                [piece async for piece in response.response_gen]
        # The number of pieces depends on the model.
        orders.append([name for name in recorder.names if name not in ("LLMChatInProgressEvent", "SpanDropEvent")])
    if streaming and orders[0].index("LLMPredictStartEvent") < orders[0].index("GetResponseEndEvent"):
        # Older versions started the answer before anything was read; ours behaves like the newest version.
        orders = [sorted(order) for order in orders]
        assert orders[0] == orders[1]
        return
    assert orders[0] == orders[1]
    assert orders[1][:4] == ["QueryStartEvent", "RetrievalStartEvent", "EmbeddingStartEvent", "EmbeddingEndEvent"]
    assert {"SynthesizeEndEvent", "GetResponseEndEvent", "LLMPredictStartEvent", "LLMChatEndEvent"} <= set(orders[1])


def test_logs_stay_quiet(model, caplog):
    with caplog.at_level(logging.WARNING):
        ClaraQueryEngine.from_documents(documents(), model=model, max_tokens=4).query(QUESTION)
    assert not [record for record in caplog.records if record.name.startswith(("llama_index", "clara"))]


def test_engine_of_all_parts_is_one(retriever, model):
    made = ClaraQueryEngine(retriever, node_postprocessors=[ClaraRerank(model=model)])
    engines = {id(part.engine) for part in (retriever, made._node_postprocessors[0], made._response_synthesizer.llm)}
    assert engines == {id(ClaraEngine.from_pretrained(model))}


def test_it_reads_as_many_nodes_as_the_model_reads_well(model):
    many = [Document(text=f"Note {number} is about the bridge.") for number in range(9)]
    engine = ClaraQueryEngine.from_documents(many, model=model, max_tokens=4)
    assert len(engine.query(QUESTION).source_nodes) == engine.retriever.engine.answer_top_k == 2
    reranked = ClaraQueryEngine.from_documents(
        many, model=model, node_postprocessors=[ClaraRerank(model=model, top_n=9)]
    )
    assert len(reranked.query(QUESTION).source_nodes) == 5
