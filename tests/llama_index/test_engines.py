"""Engines of LlamaIndex in which only our components are replaced."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core import (
    Document,
    PropertyGraphIndex,
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    SummaryIndex,
    VectorStoreIndex,
)
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.graph_stores.types import EntityNode, Relation
from llama_index.core.indices.property_graph import ImplicitPathExtractor
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import TreeSummarize
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import QueryBundle, TransformComponent
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import PrivateAttr

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
from tests.llama_index.doubles import QUESTION, TEXTS, HashEmbedding, ScriptedLLM, documents, nodes

# -- indexes ---------------------------------------------------------------------------------------


def test_starter_example(best_model, tmp_path):
    """The first program of LlamaIndex's documentation; only the lines of `Settings` differ."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    Settings.llm = ClaraLLM(model=best_model, max_tokens=8)
    Settings.embed_model = ClaraEmbedding(model=best_model)
    Settings.node_parser = ClaraNodeParser(model=best_model)

    documents = SimpleDirectoryReader(str(tmp_path)).load_data()
    index = VectorStoreIndex.from_documents(documents)
    query_engine = index.as_query_engine()
    response = query_engine.query("What did the author do growing up?")

    assert len(documents) == len(TEXTS)
    assert isinstance(response.response, str)
    assert {hit.text for hit in response.source_nodes} <= set(TEXTS)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"])
def test_stock_synthesizers_with_our_llm_over_text(model, mode):
    index = VectorStoreIndex.from_documents(documents(), embed_model=ClaraEmbedding(model=model))
    llm = ClaraLLM(model=model, max_tokens=4)
    assert index.as_query_engine(llm=llm, response_mode=mode).query(QUESTION) is not None


def test_index_with_everything_of_ours(model, expected):
    llm = ClaraLLM(model=model, max_tokens=8)
    index = VectorStoreIndex.from_documents(
        documents(),
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
        transformations=[ClaraNodeParser(model=model)],
    )
    engine = index.as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm), similarity_top_k=3)
    assert str(engine.query(QUESTION)) == expected(QUESTION)


async def test_rerank_over_somebody_else_s_embedding(model, engine):
    """Only the reranker is ours; the index, its store and its vectors are of other authors."""
    index = VectorStoreIndex.from_documents(documents(), embed_model=HashEmbedding())
    query_engine = index.as_query_engine(
        llm=ScriptedLLM(), similarity_top_k=4, node_postprocessors=[ClaraRerank(model=model, top_n=2)]
    )
    candidates = index.as_retriever(similarity_top_k=4).retrieve(QUESTION)
    ranked = engine.rank(QUESTION, engine.remember([hit.text for hit in candidates]), top_k=2)
    for response in (query_engine.query(QUESTION), await query_engine.aquery(QUESTION)):
        assert [hit.text for hit in response.source_nodes] == [candidates[hit.index].text for hit in ranked]


def test_our_synthesizer_over_somebody_else_s_index(model, engine):
    index = SummaryIndex.from_documents(documents())
    llm = ClaraLLM(model=model, max_tokens=8)
    response = index.as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm)).query(QUESTION)
    assert str(response) == engine.answer(QUESTION, engine.remember(list(TEXTS)), max_tokens=8).text


async def test_async_index(model):
    index = VectorStoreIndex(
        nodes(),
        embed_model=ClaraEmbedding(model=model, embed_batch_size=2),
        storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
    )
    hits = await index.as_retriever(similarity_top_k=5).aretrieve(QUESTION)
    assert [hit.node_id for hit in hits] == [
        hit.node_id for hit in index.as_retriever(similarity_top_k=5).retrieve(QUESTION)
    ]


def test_refreshing_documents(model):
    store = ClaraVectorStore(model=model)
    index = VectorStoreIndex.from_documents(
        documents(),
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=store),
        transformations=[ClaraNodeParser(model=model)],
    )
    changed = [Document(text="The bridge was closed in 1950.", doc_id="doc-1"), *documents()[2:]]
    assert index.refresh_ref_docs(changed) == [True, False, False, False]
    assert sorted(node.text for node in store.get_nodes()) == sorted([TEXTS[0], *(each.text for each in changed)])


def test_property_graph_without_embedded_entities(model):
    class Extractor(TransformComponent):
        def __call__(self, nodes: Any, **kwargs: Any) -> Any:
            for node in nodes:
                node.metadata["nodes"] = [EntityNode(name="bridge"), EntityNode(name="Aln")]
                node.metadata["relations"] = [Relation(label="over", source_id="bridge", target_id="Aln")]
            return nodes

    index = PropertyGraphIndex.from_documents(
        documents()[1:2],
        llm=ClaraLLM(model=model, max_tokens=4),
        embed_model=ClaraEmbedding(model=model),
        kg_extractors=[Extractor(), ImplicitPathExtractor()],
        embed_kg_nodes=False,
        use_async=False,
    )
    assert len(index.property_graph_store.get_triplets(entity_names=["bridge"])) == 1
    assert index.as_retriever(include_text=True).retrieve("bridge") is not None


# -- engines of LlamaIndex with ours inside --------------------------------------------------------


def tools(query_engine):
    return [
        QueryEngineTool.from_defaults(query_engine, name=name, description=f"About {name}")
        for name in ("bridges", "ships")
    ]


async def test_router(query_engine, expected):
    choice = json.dumps([{"choice": 2, "reason": "ships"}])
    router = RouterQueryEngine.from_defaults(
        tools(query_engine), llm=query_engine._response_synthesizer.llm,
        selector=LLMSingleSelector.from_defaults(llm=ScriptedLLM(lines=[choice])),
    )  # fmt: skip
    for response in (router.query(QUESTION), await router.aquery(QUESTION)):
        assert str(response) == expected(QUESTION)
        assert response.metadata["selector_result"].ind == 1
        assert len(response.source_nodes) == 3


async def test_router_over_several(query_engine, model):
    choices = json.dumps([{"choice": 1, "reason": "a"}, {"choice": 2, "reason": "b"}])
    router = RouterQueryEngine.from_defaults(
        tools(query_engine), llm=ClaraLLM(model=model), select_multi=True,
        selector=LLMMultiSelector.from_defaults(llm=ScriptedLLM(lines=[choices])),
        summarizer=TreeSummarize(llm=ClaraLLM(model=model, max_tokens=8)),
    )  # fmt: skip
    for response in (router.query(QUESTION), await router.aquery(QUESTION)):
        assert isinstance(response.response, str)
        assert response.metadata["selector_result"].inds == [0, 1]


@pytest.mark.parametrize("use_async", [True, False])
def test_sub_questions(query_engine, engine, expected, model, use_async):
    asked = [{"sub_question": QUESTION, "tool_name": "bridges"}, {"sub_question": "Who sailed?", "tool_name": "ships"}]
    sub = SubQuestionQueryEngine.from_defaults(
        tools(query_engine), llm=ClaraLLM(model=model),
        question_gen=LLMQuestionGenerator.from_defaults(llm=ScriptedLLM(lines=[json.dumps({"items": asked})])),
        response_synthesizer=ClaraSynthesizer(model=model, max_tokens=8), use_async=use_async, verbose=False,
    )  # fmt: skip
    response = sub.query("When was it opened, and who sailed?")
    read = [hit.text for hit in response.source_nodes[:2]]
    assert read == [
        f"Sub question: {each['sub_question']}\nResponse: {expected(each['sub_question'])}" for each in asked
    ]
    wanted = engine.answer("When was it opened, and who sailed?", engine.compress(read), max_tokens=8).text
    assert str(response) == wanted


async def test_condense_question_chat(query_engine, expected):
    def chat():
        return CondenseQuestionChatEngine.from_defaults(
            query_engine, llm=ScriptedLLM(lines=[QUESTION]), chat_history=[ChatMessage(content="The bridge?")]
        )

    wanted = expected(QUESTION)
    synthesizer = query_engine._response_synthesizer
    for response in (chat().chat("And when?"), await chat().achat("And when?")):
        assert response.response == wanted
        assert len(response.source_nodes) == 3
    assert synthesizer._streaming is False
    streaming = chat().stream_chat("And when?")
    assert "".join(streaming.response_gen) == wanted
    assert len(streaming.source_nodes) == 3
    later = await chat().astream_chat("And when?")
    assert "".join([piece async for piece in later.async_response_gen()]) == wanted
    assert synthesizer._streaming is False


def test_conversation_goes_on(query_engine):
    llm = ScriptedLLM(lines=[QUESTION])
    chat = CondenseQuestionChatEngine.from_defaults(query_engine, llm=llm)
    chat.chat("Hello?")
    chat.chat("And then?")
    assert len(chat.chat_history) == 4
    assert "Hello?" in llm.prompts[-1]


async def test_fusion_with_bm25(retriever, model):
    bm25 = pytest.importorskip("llama_index.retrievers.bm25")
    words = bm25.BM25Retriever.from_defaults(nodes=retriever.vector_store.get_nodes(), similarity_top_k=3)
    fusion = QueryFusionRetriever(
        [retriever, words], llm=ClaraLLM(model=model, max_tokens=8), num_queries=1, mode="reciprocal_rerank",
        similarity_top_k=5, use_async=True,
    )  # fmt: skip
    found = await fusion.aretrieve("the bridge over the Aln")
    assert TEXTS[1] in [hit.text for hit in found]
    assert len({hit.node_id for hit in found}) == len(found)
    assert {hit.node_id for hit in found} == {hit.node_id for hit in fusion.retrieve("the bridge over the Aln")}
    engine = ClaraQueryEngine(fusion, model=model, max_tokens=8)
    assert len((await engine.aquery("the bridge over the Aln")).source_nodes) == len(found)


def test_fusion_writes_its_questions_with_our_llm(retriever, model):
    fusion = QueryFusionRetriever([retriever], llm=ClaraLLM(model=model, max_tokens=8), num_queries=3, use_async=False)
    assert fusion.retrieve(QUESTION)


class ToolLLM(FunctionCallingLLM):
    """An LLM that calls the first tool with the user's words, and then repeats the tool's result."""

    _turn: int = PrivateAttr(default=0)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True)

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> Any:
        return {"messages": list(chat_history or [])}

    def get_tool_calls_from_response(self, response: Any, error_on_no_tool_call: bool = True, **kwargs: Any) -> Any:
        if self._turn > 1:
            return []
        return [ToolSelection(tool_id="1", tool_name="bridges", tool_kwargs={"input": QUESTION})]

    async def achat(self, messages: Any, **kwargs: Any) -> Any:
        self._turn += 1
        said = "" if self._turn == 1 else str(messages[-1].content)
        return ChatResponse(message=ChatMessage(role="assistant", content=said))

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        response = await self.achat(messages)

        async def pieces() -> Any:
            yield response

        return pieces()

    def chat(self, messages: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    stream_chat = complete = stream_complete = acomplete = astream_complete = chat


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex reads every attribute of an agent
async def test_tool_of_an_agent(query_engine, expected):
    tool = tools(query_engine)[0]
    assert tool.call(QUESTION).content == (await tool.acall(QUESTION)).content == expected(QUESTION)
    assert len(tool.call(QUESTION).raw_output.source_nodes) == 3
    agent = FunctionAgent(tools=[tool], llm=ToolLLM())
    answer = await agent.run(QUESTION)
    assert expected(QUESTION) in str(answer)
    assert [call.tool_name for call in answer.tool_calls] == ["bridges"]


def test_questions_that_are_rewritten_first(query_engine, expected):
    class Rewrite(BaseQueryTransform):
        def _get_prompts(self) -> Any:
            return {}

        def _update_prompts(self, prompts: Any) -> None:
            pass

        def _run(self, query_bundle: QueryBundle, metadata: Any) -> QueryBundle:
            return QueryBundle(query_str=QUESTION)

    assert str(TransformQueryEngine(query_engine, Rewrite()).query("something")) == expected(QUESTION)


# -- postprocessors and evaluators -----------------------------------------------------------------


def test_similarity_cutoff(retriever, model):
    hits = retriever.retrieve(QUESTION)
    cutoff = (hits[0].score + hits[1].score) / 2
    engine = ClaraQueryEngine(
        retriever, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=cutoff)], max_tokens=4
    )
    assert [hit.node_id for hit in engine.query(QUESTION).source_nodes] == [hits[0].node_id]


def test_long_context_reorder(retriever, model, engine):
    reordered = ClaraQueryEngine(
        retriever, node_postprocessors=[ClaraRerank(model=model, top_n=3), LongContextReorder()], max_tokens=8
    )
    response = reordered.query(QUESTION)
    texts = [hit.text for hit in response.source_nodes]
    assert sorted(texts) == sorted(hit.text for hit in retriever.retrieve(QUESTION))
    assert str(response) == engine.answer(QUESTION, engine.remember(texts), max_tokens=8).text


def test_sentence_windows(model, engine):
    text = "The bridge is long. It was opened in 1907. Ships pass below. Trains pass above."
    parser = SentenceWindowNodeParser.from_defaults(window_size=1)
    retriever = ClaraRetriever.from_documents([Document(text=text)], [parser], model=model, similarity_top_k=2)
    query_engine = ClaraQueryEngine(
        retriever, max_tokens=8, node_postprocessors=[MetadataReplacementPostProcessor(target_metadata_key="window")]
    )
    response = query_engine.query(QUESTION)
    read = [hit.text for hit in response.source_nodes]
    assert all(len(each) > 35 for each in read)
    assert str(response) == engine.answer(QUESTION, engine.compress(read), max_tokens=8).text


def test_faithfulness_is_judged_by_the_text_of_the_sources(query_engine):
    judge = ScriptedLLM(lines=["YES"])
    response = query_engine.query(QUESTION)
    assert FaithfulnessEvaluator(llm=judge).evaluate_response(QUESTION, response).passing
    assert any(text in prompt for text in TEXTS for prompt in judge.prompts)


def test_citations_are_compressed_anew(retriever, model, engine):
    """The citation engine splits nodes and leaves the vector of the whole node on each part."""
    cited = CitationQueryEngine.from_args(
        VectorStoreIndex.from_vector_store(retriever.vector_store, embed_model=ClaraEmbedding(model=model)),
        llm=ClaraLLM(model=model),
        retriever=retriever,
        response_synthesizer=ClaraSynthesizer(model=model, max_tokens=8),
    )
    response = cited.query(QUESTION)
    read = [hit.text for hit in response.source_nodes]
    assert read[0].startswith("Source 1:")
    assert str(response) == engine.answer(QUESTION, engine.compress(read), max_tokens=8).text
